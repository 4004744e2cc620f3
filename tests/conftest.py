"""What holds for every test: hypothesis has no deadline, and the asserts of shared modules show their values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from graphs import Network

collect_ignore = ["matrix"]
"""Networks and ways to quantise them, without tests; some need torch."""

pytest.register_assert_rewrite("laws", "graphs")

settings.register_profile("streamstats", deadline=None, max_examples=25)  # speed belongs to the benchmarks
settings.register_profile("thorough", deadline=None, max_examples=400)  # for `make soak`
settings.load_profile("streamstats")


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """A network to record from, in the folder of the test."""
    from graphs import network_in  # not above: it loads onnx

    return network_in(tmp_path)
