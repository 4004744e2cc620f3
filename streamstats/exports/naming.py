"""Names: what a layer of an output is called in the file of another tool.

The user names layers; the rule of the format names all others. Layers that get
the same name must have equal statistics: a tensor that two layers read is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..errors import UsageError, listed, suggestion
from ..outputs.layer_statistics import LayerStatistics

Names = Mapping[str, str | Sequence[str] | None]
"""Layer → its name in the file, or several names; None leaves the layer out."""
Rule = Callable[[str], str]
"""Layer → its name in the file, for layers without another one."""


def identity(layer: str) -> str:
    """The name of the layer itself, for formats that name tensors, and layers that have the names of their tensors."""
    return layer


def module_name(layer: str) -> str:
    """The name of the torch module: `recording` writes `/` in place of `.`.

    >>> module_name("model/layers/0/mlp")
    'model.layers.0.mlp'
    """
    return layer.replace("/", ".")


def weight_name(layer: str) -> str:
    """The name of the module's weight.

    >>> weight_name("blk/0/attn_q"), weight_name("blk.0.attn_q.weight")
    ('blk.0.attn_q.weight', 'blk.0.attn_q.weight')
    """
    return module_name(layer).removesuffix(".weight") + ".weight"


def named(
    layers: Mapping[str, LayerStatistics], names: Names | None, rule: Rule, *, by_kernel: bool = False
) -> tuple[dict[str, LayerStatistics], dict[str, str]]:
    """(name in the file → statistics, sorted; name in the file → layer).

    `by_kernel` says that the content depends on the kernel of a layer. Raises `UsageError` for a name without a layer,
    for an empty name, and for layers that get the same name though their statistics differ.
    """
    unknown = sorted((names or {}).keys() - layers.keys())
    if unknown:
        raise UsageError(
            f"there are names for layers that are not exported: {listed(unknown)}; expected some of "
            f"{listed(layers)}{suggestion(unknown[0], layers)}"
        )
    found: dict[str, LayerStatistics] = {}
    origins: dict[str, str] = {}
    for layer, statistics in layers.items():
        for name in _names_of(layer, names or {}, rule):
            if not name:
                raise UsageError(f"layer {layer} has an empty name; expected text, or null to leave the layer out")
            if name in found and not _agree(found[name], statistics, by_kernel=by_kernel):
                raise UsageError(
                    f"layers {origins[name]} and {layer} are both called {name}, but their statistics differ; expected "
                    "a name for each; choose other names, or leave one of them out"
                )
            found.setdefault(name, statistics)
            origins.setdefault(name, layer)
    return dict(sorted(found.items())), origins


def _agree(first: LayerStatistics, second: LayerStatistics, *, by_kernel: bool) -> bool:
    """Whether both read the same array, with whatever kernels unless `by_kernel`, or have equal statistics."""
    if by_kernel and first.space.kernel != second.space.kernel:
        return False
    return first.array == second.array != "" or first.statistics == second.statistics


def _names_of(layer: str, names: Names, rule: Rule) -> Iterator[str]:
    if layer not in names:
        yield rule(layer)
        return
    given = names[layer]
    if isinstance(given, str):
        yield given
    else:
        yield from given or ()
