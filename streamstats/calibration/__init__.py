"""The zarr side: layers of a calibration store, read block by block and appended to."""

from .encoding.narrow_types import register

register()  # before any store is opened, in every process
