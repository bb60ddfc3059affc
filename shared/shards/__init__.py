"""Format of shards, shared by the stages that write and read them."""
