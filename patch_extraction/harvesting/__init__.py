"""From a slide to its patches: slide list, candidates, harvest, worker processes."""
