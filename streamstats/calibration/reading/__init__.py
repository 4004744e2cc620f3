"""Reading blocks of a layer: from its files, where their encoding is known, or through zarr."""
