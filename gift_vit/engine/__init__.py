"""Training and evaluation. Knows nothing of methods, datasets or trackers."""
