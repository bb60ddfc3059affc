"""What a prediction writes: cells, summaries, pictures, the report."""
