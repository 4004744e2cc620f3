"""Two jobs of a service on one store, to which more was sent in between: their results are of one store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import streamstats as ss
from streamstats.errors import MismatchError

VALUES = np.random.default_rng(3).normal(size=(20, 4)).astype(np.float32)


def test_fetched_jobs_before_and_after_more_was_sent_are_not_merged_twice(client: ss.Client, tmp_path: Path) -> None:
    for number, rows in enumerate((slice(0, 12), slice(12, 20))):
        client.ingest("grew", "l", VALUES[rows], key=str(number))
        client.fetch(client.wait(client.submit({"kind": "run", "source": "store:grew"}).id).id, tmp_path / str(number))
    outputs = [tmp_path / "0", tmp_path / "1"]
    for different in (False, True):
        with pytest.raises(MismatchError, match=r"rows 0:12 are counted in both; expected each row once"):
            ss.merge(outputs, tmp_path / "both", different_stores=different)
    assert ss.compare(*outputs).same_stores
    later = client.wait(client.submit({"kind": "run", "source": "store:grew", "rows": "12:"}).id)
    client.fetch(later.id, tmp_path / "later")
    merged = ss.merge([tmp_path / "0", tmp_path / "later"], tmp_path / "all")["l"]
    assert (merged.covered, merged.statistics) == (((0, 20),), ss.load(tmp_path / "1")["l"].statistics)
