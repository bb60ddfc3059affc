"""Output files of a prediction: cells (GeoJSON, CSV, Parquet), summaries, pictures, reports."""
