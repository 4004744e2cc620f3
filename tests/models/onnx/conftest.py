"""The network that recordings are checked with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import Network, integers, make_model, node, saved


@pytest.fixture
def network(tmp_path: Path) -> Network:
    nodes = [
        node("Conv", ["x", "w1", "b1"], "h", "/conv"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "w2"], "rows"),
        node("Flatten", ["r"], "f"),
        node("Gemm", ["f", "w3"], "y", "/head/fc"),
    ]
    constants = {
        "w1": integers(4, 3, 1, 1),
        "b1": integers(4),
        "w2": integers(6, 2),
        "w3": integers(4 * 5 * 6, 2),
    }
    x = integers(11, 3, 5, 6)
    model = make_model(nodes, constants, {"x": ("N", 3, 5, 6)}, ["y", "rows"])
    np.save(tmp_path / "x.npy", x)
    return Network(saved(model, tmp_path), x, constants)
