"""Scores of predictions against annotations, and their sheets of pictures."""
