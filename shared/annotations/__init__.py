"""Reading of annotations by users and their tools: bounded files, GeoJSON features, QuPath objects, polygons."""
