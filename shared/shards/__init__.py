"""The format of shards, which both stages that touch them share."""
