"""Cell counters: their interface, the classical one, the detector."""
