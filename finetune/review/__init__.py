"""Review loop: regions of slides whose annotation would teach a detector most, with its cells to correct."""
