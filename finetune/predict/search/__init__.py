"""From an area to its cells: tiles, inference, deduplication, cell store."""
