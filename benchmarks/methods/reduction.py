"""streamstats' own reduction, start-up excluded: from the plan being ready to the means of all layers.

Opening the store and planning are outside the time; `command` has all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measuring import Run
from stores import LayerSource, Source

from streamstats import Quantization
from streamstats.calibration.selection import LayerRule
from streamstats.jobs import job
from streamstats.jobs.workers import Cluster, open_workers


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """What `streamstats.reduce` does with the plan."""
    with reducing(source, Cluster(threads=threads)) as run:
        yield run


@contextmanager
def reducing(source: Source, cluster: Cluster) -> Iterator[Callable[[], Run]]:
    """The same on any cluster."""
    rules = [_rule(layer) for layer in source.layers]

    def run() -> Run:
        prepared = job.prepare(source.path, workers, layers=rules)
        start = time.perf_counter()
        statistics = job.execute(prepared, workers).statistics
        means = {name: layer.mean for name, layer in statistics.items()}
        return Run(time.perf_counter() - start, means)

    with open_workers(cluster, []) as workers:
        yield run


def _rule(layer: LayerSource) -> LayerRule:
    quantization = None if layer.step is None else Quantization(layer.step, layer.zero_point)
    return LayerRule(layer.name, layer.channel_axis, quantization)
