"""Spectra: what the second moments of a layer's inputs say about them, computed from the exact sums of products."""
