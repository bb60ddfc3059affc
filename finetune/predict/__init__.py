"""Prediction of whole slides and images: tiles, cells without duplicates at seams, files for QuPath."""
