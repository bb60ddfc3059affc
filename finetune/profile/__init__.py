"""Parameters, speed and memory of detectors, and cost of training them."""
