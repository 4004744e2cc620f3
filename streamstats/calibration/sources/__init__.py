"""Where calibration stores lie: folders of this machine, archives, object stores, and whatever else zarr can open."""
