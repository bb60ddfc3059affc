"""The life of a run: batch plan, setup, state, logging, export."""
