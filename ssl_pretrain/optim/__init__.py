"""Optimisers and parameter groups."""
