"""Training losses of the rivals (`shared.model.rivals`): maps made of cells, and what is minimised."""
