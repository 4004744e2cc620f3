"""Reading blocks of a layer: straight from its files, many small ones at once, or through zarr."""
