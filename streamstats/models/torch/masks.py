"""Masks of torch models: which positions of a batch count, as the arguments of the model's call say.

A mask `[N, T]` is that of inputs `[N, T, C]`. It is read as transformers and torch read it: ones or true for positions
that count (`attention_mask`), true for padding (`src_key_padding_mask`), or what is added to scores, 0 and −inf. Layers
whose inputs have other positions count whole; if they see more than one position of each sample, a warning names them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...calibration.masking import AMBIGUOUS_ZEROS, USUAL, broadcasts_to, mask_values, positions_of_axis
from ...errors import UsageError, counted, listed
from ...statistics.masks import Mask

if TYPE_CHECKING:
    import torch

PADDING = "key_padding_mask"
"""How arguments end that are true where there is padding."""
OF_SOURCES = "src_key_padding_mask"
"""The argument of torch's encoders. In a model that also takes targets, it is not the mask of all inputs."""
LEAST_ADDED = -1e4
"""What is added to the scores of padding is at most this."""
NO_MASK = (
    "attention left whole positions of its samples out, but the model's call had no mask that is known, so padding was "
    "counted like data; give a function of the model's arguments as `mask`, or None if these positions count"
)
MaskOf = str | Callable[..., Any] | None
"""The name of an argument of the model, or a function of all its arguments, or None for no mask."""


class BatchMask:
    """The mask of the batch that the model runs on. It is a forward pre-hook of the model, with its named arguments."""

    def __init__(self, model: torch.nn.Module, mask: MaskOf, to_numpy: Callable[[Any], npt.NDArray[Any]]) -> None:
        self._mask, self._to_numpy = mask, to_numpy
        self._signature = inspect.signature(model.forward)
        self._current: Mask | None = None
        self._whole: dict[str, tuple[int, ...]] = {}
        self._unknown, self._used, self._left_out, self._positions = False, "", 0, 0
        if not (mask is None or isinstance(mask, str) or callable(mask)):
            raise UsageError(
                f"the mask is of type {type(mask).__name__}; expected the name of an argument of the model, a function "
                "of all its arguments, which returns the mask of their batch, or None"
            )
        if isinstance(mask, str) and mask != USUAL and not self._takes(mask):
            names = ", ".join(self._signature.parameters)
            raise UsageError(f"the mask is {mask!r}, but the arguments of the model are {names}; name one of these")

    @property
    def _of_sources(self) -> bool:
        """Whether the model takes a mask of padding that is that of all its inputs."""
        names = self._signature.parameters
        return OF_SOURCES in names and not any(name.startswith("tgt") for name in names)

    def _takes(self, name: str) -> bool:
        named = {each.name for each in self._signature.parameters.values()}
        usual = name == USUAL and self._of_sources
        return (
            usual or name in named or any(each.kind == each.VAR_KEYWORD for each in self._signature.parameters.values())
        )

    @property
    def current(self) -> Mask | None:
        """The mask of the last call of the model; None for none."""
        return self._current

    @property
    def may_apply(self) -> bool:
        """Whether a call of the model may give a mask."""
        return self._mask is not None and (not isinstance(self._mask, str) or self._takes(self._mask))

    def __call__(self, module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:  # noqa: ARG002
        """Take the mask from the arguments of a call of the model. Raises `UsageError` for what is not a mask."""
        name, found = self._found(arguments, named)
        self._current = None
        if found is None:
            return
        what = f"the mask {name}" if name else "the mask"
        array = np.asarray(found) if isinstance(found, np.ndarray) else self._to_numpy(found)
        if name:
            array = _as_counting(what, _keys(array), padding=name.endswith(PADDING))
        if array.ndim != 2 and name:
            raise UsageError(
                f"{what} has the shape {array.shape}; expected (samples, positions): give a function of the model's "
                "arguments that returns such a mask as `mask`, or None to count every position"
            )
        try:
            self._current = mask_values(what, array)
        except UsageError as error:
            raise UsageError(
                f"{error}: give a function of the model's arguments as `mask`, or None to count every position"
            ) from error
        self._used = name or "the function `mask`"
        self._left_out += int((~self._current).sum())
        self._positions += self._current.size

    def _found(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[str, Any]:
        """(the name of the argument that is the mask, empty for a function; the mask, None for none)."""
        if not isinstance(self._mask, str):
            return "", None if self._mask is None else _called(self._mask, arguments, named)
        given = {**self._signature.bind_partial(*arguments).arguments, **named}
        names = [self._mask, *([OF_SOURCES] if self._mask == USUAL and self._of_sources else [])]
        return next(((name, given[name]) for name in names if given.get(name) is not None), ("", None))

    def hear(self, mask: Any) -> None:
        """Attention runs with a `mask` of scores, [..., queries, keys], true or 0 where they count; None for none.

        If the model's call had no mask, and this one leaves whole positions out, `warn` says so.
        """
        if mask is None or self._mask is None or self._current is not None or self._unknown:
            return
        left_out = mask <= LEAST_ADDED if mask.is_floating_point() else ~mask
        self._unknown = mask.ndim > 1 and bool(left_out.all(dim=-2).any())

    @property
    def note(self) -> str:
        """What the mask left out, for people; empty if there was none."""
        if not self._used:
            return ""
        return f"{self._left_out:,} of {self._positions:,} positions are padding, by {self._used}"

    def of(self, layer: str, values: npt.NDArray[Any], axis: int) -> Mask | None:
        """The mask of the input `values` of `layer`, channels on `axis`; None if there is none with its positions."""
        if self._current is None:
            return None
        positions = positions_of_axis(values.shape, axis)
        if broadcasts_to(self._current.shape, positions) and self._current.shape[0] == len(values):
            return self._current
        if np.prod(positions) > len(self._current):
            self._whole[layer] = positions
        return None

    def warn(self) -> None:
        """Warn of masks that were not known, and of layers that see several positions and could not be masked."""
        if self._unknown:
            warnings.warn(NO_MASK, stacklevel=6)
        if self._whole:
            layer, positions = next(iter(self._whole.items()))
            warnings.warn(
                f"the mask was not applied to {listed(self._whole)}: the input of {layer} has the positions "
                f"{positions}; padding in them counts like data",
                stacklevel=6,
            )


def _keys(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`array`, without the axes of heads and queries of a mask [N, 1, 1, T] of scores."""
    return array[:, 0, 0] if array.ndim == 4 and array.shape[1:3] == (1, 1) else array


def _as_counting(what: str, array: npt.NDArray[Any], *, padding: bool) -> npt.NDArray[Any]:
    """`array` as ones where positions count. Raises `UsageError` for floats that may mean either."""
    if array.dtype.kind not in "bui":
        real = np.asarray(array, np.float64)
        if not real.any() and not padding:
            raise UsageError(f"{what} {AMBIGUOUS_ZEROS}, or a function of the arguments as `mask`")
        if padding or (real < 0).any():
            added = (real == 0) | (real <= LEAST_ADDED)
            if added.all():
                return np.asarray(real == 0)
            if padding:
                raise UsageError(f"{what} holds {real[~added][0]}; expected booleans, or 0 and −inf")
        return array
    return array == 0 if padding else array


def _called(mask: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What `mask` returns for a call of the model. Raises `UsageError` if it does not take the model's arguments."""
    try:
        signature = inspect.signature(mask)
    except (TypeError, ValueError):  # of a function that is not written in Python
        return mask(*arguments, **named)
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        places = counted(len(arguments), "argument by place", "arguments by place")
        raise UsageError(
            f"the function `mask` takes {signature}, but the model is called with {places} and, by name, "
            f"{listed(named)} ({error}); give a function of all the arguments of the model"
        ) from error
    return mask(*arguments, **named)
