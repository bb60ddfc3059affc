"""From slide tars to shards: packing, verification, the output folder and its locks."""
