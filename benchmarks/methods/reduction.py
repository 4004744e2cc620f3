"""streamstats' own reduction, start-up excluded: from the layers being known to the means of all layers.

Opening the store is outside the time; `command` has all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from counting import Counting
from measuring import Run
from stores import LayerSource, Source

from streamstats import Geometry, Kernel, LayerRule, Quantization
from streamstats.jobs.opening import open_workers
from streamstats.jobs.workers import Cluster


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """What `streamstats.reduce` does with the layers."""
    with reducing(source, Cluster(threads=threads)) as run:
        yield run


@contextmanager
def reducing(source: Source, cluster: Cluster, statistics: tuple[str, ...] = ()) -> Iterator[Callable[[], Run]]:
    """The same on any cluster, with other `statistics` beside the means."""
    rules = [_rule(layer, statistics) for layer in source.layers]

    def run() -> Run:
        counting = Counting.of(source.path, workers, rules)
        start = time.perf_counter()
        found = counting.count()
        means = {name: layer.mean for name, layer in found.items()}
        return Run(time.perf_counter() - start, means)

    with open_workers(cluster, []) as workers:
        yield run


def _rule(layer: LayerSource, statistics: tuple[str, ...]) -> LayerRule:
    quantization = None if layer.step is None else Quantization(layer.step, layer.zero_point)
    kernel = Kernel(layer.taps, Geometry(pads=tuple(taps // 2 for taps in layer.taps) * 2))
    return LayerRule(layer.name, layer.channel_axis, quantization, statistics, kernel)
