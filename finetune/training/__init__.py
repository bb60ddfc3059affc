"""Parts of a training step and its state; knows no recipe."""
