"""Cell counters: interface, classical method, detector."""
