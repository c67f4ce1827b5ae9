"""E2D: a plain 2-D network on the drawn slices, its training and its scores."""
