"""Slides and images: opening them, reading pixels, resolution, tissue, geometry."""
