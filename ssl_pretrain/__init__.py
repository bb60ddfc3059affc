"""Stage 2: shards -> self-supervised pre-training -> backbone weights."""
