"""Summaries of a harvest: CSV, HTML page, pictures."""
