"""Readers of annotated data, one module a layout."""
