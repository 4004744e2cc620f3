"""Where calibration stores lie: local folders, zip archives, object stores, and every other URL that zarr can open.

`source.py` has the protocol, `choose.py` picks the source for a location, and each other source has a module.
"""
