"""Statistics that merge exactly. This package needs only numpy and numba, and does no input or output."""
