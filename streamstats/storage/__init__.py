"""The only code that writes result files: whole files, tensors, locks, and the names of layers."""
