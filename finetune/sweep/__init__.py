"""The paper's tables, row by row and seed by seed, beside the numbers it prints."""
