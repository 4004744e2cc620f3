"""The zarr side: layers of a calibration store, read block by block and appended to."""
