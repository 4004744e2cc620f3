"""The kernels alone: data in memory, one core, as a share of numpy's fastest read of the same bytes.

The yardstick is `np.max` on a 64-bit view. A block is larger than the caches. Channels last come with 8 to 16,384
channels, channels first with runs of 16 to 784 neighbours; the figures of a row should not fall off a cliff.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from measuring import machine, rates_in_turn
from tables import Table, show, show_json

from streamstats.statistics.extrema import ChannelExtrema
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.running import RunningSums
from streamstats.statistics.statistic import Space

Array = npt.NDArray[Any]

CHANNELS_LAST = (8, 64, 192, 1024, 16384)
INNER_OF_CHANNELS_FIRST = (784, 49, 16)
CHANNELS_FIRST = 192
DECADES = 16
KINDS = ("int8", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float32 wide", "float64")
YARDSTICK = "np.max"
MEASURED = "measure"
NOTES = (
    "exact sum, count, minimum and maximum of each channel, in one pass: what a run measures of a block.",
    f"float32 wide: spread evenly over {DECADES} decades, of both signs; other floats: ReLU of normal data.",
    f"last N: N channels, last axis; first N: {CHANNELS_FIRST} channels on axis 1 with N values each after it.",
)


@dataclass(frozen=True)
class Shape:
    """A block of about a given size: its name in the table, shape and channel axis."""

    name: str
    shape: tuple[int, ...]
    channel_axis: int


def main() -> None:
    """Measure every kind of values in every shape."""
    options = _parser().parse_args()
    size = int((8 if options.quick else options.size) * 2**20)
    repeats = 2 if options.quick else options.repeats
    about = machine()
    figures = {kind: _measure_kind(kind, size, repeats) for kind in KINDS}
    if options.json:
        show_json({"machine": about, "bytes_per_second": figures})
    else:
        show([_table(figures)], about, NOTES, markdown=options.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work? 8 MiB, two repeats")
    parser.add_argument("--size", type=float, default=64, metavar="MIB", help="of a block (default 64)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each (default 7)")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    return parser


def _measure_kind(kind: str, size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Shape → what is measured → bytes a second."""
    values = _values(kind, size)
    return {shape.name: _measure_shape(values, shape, repeats) for shape in _shapes(values.size)}


def _measure_shape(values: Array, shape: Shape, repeats: int) -> dict[str, float]:
    block = values[: int(np.prod(shape.shape))].reshape(shape.shape)
    functions: dict[str, Callable[[], object]] = {
        YARDSTICK: block.reshape(-1).view(np.int64).max,
        MEASURED: partial(_measure, block, shape.channel_axis),
    }
    return rates_in_turn(functions, block.nbytes, repeats)


def _measure(block: Array, channel_axis: int) -> tuple[ChannelMean, ChannelExtrema]:
    accumulator = RunningSums(block.dtype, block.shape[channel_axis])
    accumulator.add(block, channel_axis)
    found, space = accumulator.found(), Space(block.dtype, (block.shape[channel_axis],), 0)
    return ChannelMean.from_measures(space, found), ChannelExtrema.from_measures(space, found)


def _shapes(elements: int) -> Iterator[Shape]:
    for channels in CHANNELS_LAST:
        yield Shape(f"last {channels}", (elements // channels, channels), 1)
    for inner in INNER_OF_CHANNELS_FIRST:
        samples = elements // (CHANNELS_FIRST * inner)
        yield Shape(f"first {inner}", (samples, CHANNELS_FIRST, inner), 1)


def _values(kind: str, size: int) -> Array:
    """`size` bytes of values."""
    name, _, wide = kind.partition(" ")
    dtype = np.dtype(name)
    rng = np.random.default_rng(16)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, size // dtype.itemsize, dtype, endpoint=True)
    values = rng.standard_normal(size // dtype.itemsize, np.float32)
    if wide:
        return values * 10 ** rng.uniform(-DECADES / 2, DECADES / 2, values.size).astype(np.float32)
    return np.maximum(values, 0).astype(dtype)


def _table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    shapes = [shape.name for shape in _shapes(CHANNELS_FIRST * max(INNER_OF_CHANNELS_FIRST))]
    return Table(
        f"share of `{YARDSTICK}` on a 64-bit view (GB/s)",
        ["values", *shapes],
        [[kind, *(_cell(of_kind[shape]) for shape in shapes)] for kind, of_kind in figures.items()],
    )


def _cell(rates: Mapping[str, float]) -> str:
    return f"{rates[MEASURED] / rates[YARDSTICK]:.2f} ({rates[MEASURED] / 1e9:.1f})"


if __name__ == "__main__":
    main()
