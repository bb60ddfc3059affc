"""One file a self-supervised method: config, networks, loss, state."""
