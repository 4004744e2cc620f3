"""Rows: samples are found on whichever axis they are, and where there are none of one shape, positions are rows.

What is stored is compared with the same network in numpy, of integers, so that it is exact in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import integers, make_model, node, one_line, saved, stored, values
from networks import qdq_of
from onnx import TensorProto, helper

from streamstats.config import JobConfig
from streamstats.errors import MismatchError, UsageError
from streamstats.jobs.run import run
from streamstats.models.onnx.record import RecordedLayer, measure, record
from streamstats.outputs.results import open_results
