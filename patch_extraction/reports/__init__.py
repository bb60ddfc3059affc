"""Reports of a harvest: slide table, HTML page, pictures."""
