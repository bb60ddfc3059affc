"""Weights files: reading ours and other projects', writing ours, fitting shapes."""
