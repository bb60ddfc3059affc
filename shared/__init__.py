"""The model core and what the three stages have in common; imports no stage."""
