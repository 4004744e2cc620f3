"""Statistics whose merging is exact; numpy and numba, no input or output."""
