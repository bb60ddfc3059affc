"""Stage 1: whole-slide images -> patches with enough cells -> WebDataset shards."""
