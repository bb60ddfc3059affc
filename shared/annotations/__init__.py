"""Annotations of users and their tools: bounded reading, GeoJSON features, QuPath's objects, polygons."""
