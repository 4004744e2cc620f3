"""What holds for every test: hypothesis has no deadline, and the asserts of shared modules show their values."""

from __future__ import annotations

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("laws")

settings.register_profile("streamstats", deadline=None)  # speed belongs to the benchmarks
settings.load_profile("streamstats")
