"""The demo keeps its promise: a nearly useless network comes back, from files a person can go on with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamstats.config import load_config
from streamstats.demo import show
from streamstats.demo.digits import calibration_digits, held_out_digits
from streamstats.errors import UsageError
from streamstats.jobs.run import run


@pytest.fixture(scope="module", autouse=True)
def fewer_bit_widths() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "OTHER_BITS", (4,))
        yield


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> show.Outcome:
    return show.run(tmp_path_factory.mktemp("demo"), lambda _message: None)


def test_correction_brings_a_nearly_useless_network_back(outcome: show.Outcome) -> None:
    found, fewest = outcome.by_bits[show.BITS], outcome.by_bits[4]
    assert outcome.float_accuracy > 0.97
    assert found.quantized < 0.5
    assert min(found[1:]) > 0.95
    assert fewest.iterative > fewest.one_pass > fewest.quantized + 0.5


def test_ranges_of_least_squared_error_are_better_also_with_8_bit_activations(outcome: show.Outcome) -> None:
    found = outcome.by_bits[4]
    assert found.least_squares > found.one_pass + 0.05
    assert found.with_activations > found.one_pass + 0.05


def test_rounding_by_second_moments_is_better_than_to_nearest(outcome: show.Outcome) -> None:
    assert outcome.by_bits[4].by_moments > outcome.by_bits[4].least_squares + 0.01


def test_it_is_judged_on_digits_that_calibration_has_not_seen() -> None:
    calibration, held_out = calibration_digits(), held_out_digits()
    assert len(calibration.labels) + len(held_out.labels) == 1797
    seen = {image.tobytes() for image in calibration.images}
    repeated = sum(image.tobytes() in seen for image in held_out.images)
    assert repeated == 0


def test_it_says_what_each_file_is_and_leaves_no_other(outcome: show.Outcome) -> None:
    assert {path.name for path in outcome.folder.iterdir()} == set(show.FILES)
    for name in show.FILES:
        assert name in outcome.text()
    assert f"In {outcome.folder}:" in outcome.text()
    assert re.search(r"float +█+.* 9\d\.\d%", outcome.text())


def test_its_configuration_does_the_same_run_again(outcome: show.Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outcome.folder)
    before = Path("out/state/block1/depthwise.safetensors").read_bytes()
    run(load_config("run.yaml").job())
    assert Path("out/state/block1/depthwise.safetensors").read_bytes() == before


@pytest.mark.soak
def test_it_can_be_repeated_in_its_own_folder(outcome: show.Outcome) -> None:
    (outcome.folder / "four-bits.onnx").write_bytes(b"what a person made of it")
    again = show.run(outcome.folder, lambda _message: None)
    (outcome.folder / "four-bits.onnx").unlink()
    assert again == outcome


def test_it_refuses_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    for name in ("run.yaml", "model.onnx"):
        (tmp_path / name).write_text("a person's work")
        with pytest.raises(UsageError, match="no earlier demo left"):
            show.run(tmp_path, lambda _message: None)
        assert (tmp_path / name).read_text() == "a person's work"
