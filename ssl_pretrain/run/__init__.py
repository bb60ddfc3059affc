"""Parts of a pre-training run: batch plan, setup, state, logging, export."""
