"""Measures of what a backbone has learned, during a run and after."""
