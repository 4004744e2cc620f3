"""Quantisation ranges: steps and zero points from what a run has counted, for any bit width, without the data."""
