"""Finding the arrays of a zarr group, whatever store it is in, with errors that name the location and the remedy."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.errors import ContainsArrayError, GroupNotFoundError

from ...errors import DataError, StoreError, UsageError, first_line


def arrays_below(store: Store | str, location: str, *, consolidated: bool) -> dict[str, zarr.Array[Any]]:
    """Every array of the group in `store` by name, in the order of the names; `location` is for messages.

    Metadata is read from a consolidated copy, if there is one, only where `consolidated`. Raises as `Source.arrays`.
    """
    members = _members(_open_group(store, location, consolidated), location)
    if not members:
        raise UsageError(f"{location} is a zarr group without arrays; record activations into it first")
    return dict(sorted(members.items()))


def _open_group(store: Store | str, location: str, consolidated: bool) -> zarr.Group:
    try:
        return zarr.open_group(store, mode="r", use_consolidated=None if consolidated else False)
    except ContainsArrayError as error:
        raise UsageError(f"{location} is a zarr array; give the group above it as the source") from error
    except (GroupNotFoundError, FileNotFoundError) as error:
        if _is_array(store):
            raise UsageError(f"{location} is a zarr array; give the group above it as the source") from error
        raise UsageError(
            f"{location} is not a zarr group (it has no zarr.json or .zgroup); give the folder of a zarr group as "
            "the source"
        ) from error
    except (DataError, StoreError):
        raise
    except Exception as error:
        raise DataError(f"zarr cannot open {location} as a group: {first_line(error)}; repair the store") from error


def _is_array(store: Store | str) -> bool:
    try:
        zarr.open_array(store, mode="r")
    except Exception:
        return False
    return True


def _members(group: zarr.Group, location: str) -> dict[str, zarr.Array[Any]]:
    try:
        return {name: node for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
    except (DataError, StoreError):
        raise
    except Exception as error:
        raise DataError(
            f"{location}: zarr cannot read the metadata of an array or group: {first_line(error)}; repair the store"
        ) from error
