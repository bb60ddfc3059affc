"""Output files of a prediction: cells, summaries, pictures, reports."""
