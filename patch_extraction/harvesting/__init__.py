"""From slides to patches: slide list, candidates, harvest of a slide, worker processes."""
