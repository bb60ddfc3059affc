"""Files of annotations from users and their tools: bounded reading, GeoJSON features, QuPath's objects."""
