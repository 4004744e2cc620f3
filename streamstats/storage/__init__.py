"""The only code that writes result files: atomic files, tensors, locks, and the names of layers."""
