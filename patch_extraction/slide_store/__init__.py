"""What a harvested slide leaves on disk: its record, its tar, its fingerprint."""
