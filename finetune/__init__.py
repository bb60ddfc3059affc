"""Stage 3: backbone weights and point annotations -> a detector -> cells."""
