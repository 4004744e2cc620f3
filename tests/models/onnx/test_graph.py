"""Reading ONNX files: what is not a model is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import CASES, one_line, save_means, values

from streamstats.errors import UsageError
from streamstats.models.onnx.correct import correct
from streamstats.models.onnx.graph import load_model
from streamstats.models.onnx.record import record


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x00" * 64, bytes(range(256)), None, "folder"], ids=repr)
def test_a_file_that_is_not_a_model_is_refused_in_one_line(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    np.save(tmp_path / "x.npy", values(4, 3))
    out = save_means(tmp_path / "out", {"layer": np.ones(3)})
    one_line(lambda: load_model(path), UsageError, "bad.onnx")
    one_line(lambda: record(path, tmp_path / "x.npy", tmp_path / "store"), UsageError, "bad.onnx")
    one_line(lambda: correct(path, out, tmp_path / "c.onnx", bits=4), UsageError, "bad.onnx")
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "c.onnx").exists()


def test_missing_external_data_is_refused_in_one_line(tmp_path: Path) -> None:
    onnx.save(
        CASES["gemm"].model(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="gone",
        size_threshold=0,
    )
    (tmp_path / "gone").unlink()
    one_line(lambda: load_model(tmp_path / "m.onnx"), UsageError, "m.onnx")
