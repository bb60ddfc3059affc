"""From slide tars to shards: packing, verifying, the output folder and its locks."""
