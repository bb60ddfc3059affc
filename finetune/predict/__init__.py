"""Whole slides and images to cells: tiles, cells without seams, files for QuPath and people."""
