"""Procedural slides and annotated tiles for the demo and the tests."""
