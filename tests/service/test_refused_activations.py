"""Activations that are refused, or cannot be stored, leave no store, no layer, and nobody who owns one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamstats.calibration.recorder import Recorder
from streamstats.errors import MismatchError, OutputError, StreamstatsError, UsageError
from streamstats.layouts import Kernel
from streamstats.quantization import Quantization
from streamstats.service.lanes import Activations, Lane
from streamstats.service.service import Service
from streamstats.service.settings import ServiceConfig

REFUSED: dict[str, dict[str, Any]] = {
    "no such axis": {"channel_axis": 5},
    "the axis of the samples": {"channel_axis": 0},
    "a kernel of too many axes": {"kernel": Kernel((3, 3))},
    "codes that are floats": {"quantization": Quantization(0.5, 0)},
}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(ServiceConfig(data=str(tmp_path / "data"), roots=[str(tmp_path)]))
    service.start()
    yield service
    service.stop()


def sent(key: str, sender: str, layer: str = "a/b", rows: int = 4, channels: int = 3, **about: Any) -> Activations:
    samples = np.ones((rows, 5, channels), np.float32)
    return Activations(layer, key, key, samples, sender=sender, **about)


def owner(service: Service, store: str) -> str:
    return service.stores.owner(store)[0]


@pytest.mark.parametrize("case", REFUSED)
def test_refused_activations_make_no_store(service: Service, case: str) -> None:
    with pytest.raises((UsageError, MismatchError)):
        service.stores.append("s", sent("k", "ann", **REFUSED[case])).result(60)
    assert service.stores.names() == []
    assert list(service.stores.folder.iterdir()) == []
    assert service.database.query("SELECT * FROM stores") == []
    service.stores.append("s", sent("k", "ben")).result(60)
    assert owner(service, "s") == "ben"


@pytest.mark.parametrize("case", REFUSED)
def test_refused_activations_make_no_layer(service: Service, case: str) -> None:
    service.stores.append("s", sent("k", "ann")).result(60)
    with pytest.raises((UsageError, MismatchError)):
        service.stores.append("s", sent("k", "ben", "other/l", **REFUSED[case])).result(60)
    assert service.stores.view("s").layers == {"a/b": 4}
    assert not (service.stores.path("s") / "other").exists()
    assert service.stores.append("s", sent("k", "ben", "other", rows=2)).result(60).start == 0
    assert service.stores.append("s", sent("l", "ben")).result(60).start == 4


def test_activations_that_cannot_be_stored_leave_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as failing:
        failing.setattr(Recorder, "append", full)
        with pytest.raises(OutputError, match="full"):
            service.stores.append("s", sent("k", "ann")).result(60)
    assert service.stores.names() == []
    service.stores.append("s", sent("k", "ben")).result(60)
    assert owner(service, "s") == "ben"
    with monkeypatch.context() as failing:
        failing.setattr(Recorder, "append", full)
        for layer in ("a/b", "c"):
            with pytest.raises(OutputError, match="full"):
                service.stores.append("s", sent("l", "ann", layer)).result(60)
    assert service.stores.view("s").layers == {"a/b": 4}


def test_a_store_belongs_to_whoever_stores_the_first_rows(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "_work", lambda _: None)  # until all have arrived
    answers = [
        service.stores.append("s", sent("k", "ann", channel_axis=0)),
        service.stores.append("s", sent("k", "ben")),
        service.stores.append("s", sent("l", "eve", channels=2)),
        service.stores.append("s", sent("m", "eve")),
    ]
    lane = service.stores._lanes["s"]
    lane._take_turn()
    lane._drop_recorder()
    assert [isinstance(each.exception(60), StreamstatsError) for each in answers] == [True, False, True, False]
    assert owner(service, "s") == "ben"
    assert service.stores.view("s").rows == 8
