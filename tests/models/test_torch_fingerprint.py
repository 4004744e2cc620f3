"""torch: what was recorded of one version of a model is not used for another."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from graphs import one_line

from streamstats.errors import MismatchError

torch = pytest.importorskip("torch", reason="`make models` tests with it")

from streamstats.models.torch import apply_correctors, measuring, recording  # noqa: E402
from streamstats.models.torch.correcting import MARK  # noqa: E402
from streamstats.models.torch.fingerprint import fingerprint  # noqa: E402

nn: Any = torch.nn


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def rounded(model: Any) -> Any:
    quantized = copy.deepcopy(model)
    with torch.no_grad():
        for each in (quantized[0], quantized[2]):
            each.weight.copy_((each.weight * 8).round() / 8)
    return quantized


def retrained(model: Any) -> Any:
    """The model after a step of training."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(1.01)
    return other


def test_correctors_of_another_version_of_the_model_are_refused(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad(), measuring(model) as meter:
        model(torch.randn(16, 4))
    meter.save(tmp_path / "out")
    assert meter.statistics["0"].models == (fingerprint(model),)
    later, quantized = retrained(model), rounded(retrained(model))
    one_line(
        lambda: apply_correctors(later, quantized, tmp_path / "out"),
        MismatchError,
        *("layer 0", "the Sequential that is given", fingerprint(model)[:18], fingerprint(later)[:18]),
        "`other_weights=True`",
    )
    assert not getattr(quantized, MARK, False)
    done = apply_correctors(later, quantized, tmp_path / "out", other_weights=True)
    assert all(each.corrected for each in done)
    assert all(each.corrected for each in apply_correctors(model, rounded(model), tmp_path / "out"))


def test_rows_of_another_version_of_the_model_are_not_appended(tmp_path: Path) -> None:
    model, x = network(), torch.randn(16, 4)
    later = retrained(model)
    with torch.no_grad(), recording(model, tmp_path / "s.zarr"):
        model(x)
    with (
        pytest.raises(
            MismatchError,
            match=r"fingerprint of the recorded model is torch:[0-9a-f]{12}…; the store holds torch:[0-9a-f]{12}…; ap",
        ),
        torch.no_grad(),
        recording(later, tmp_path / "s.zarr"),
    ):
        later(x)


def normalised() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
    model[0].register_buffer("positions", torch.arange(4.0), persistent=False)
    return model


def test_re_estimated_statistics_of_a_normalisation_make_another_model(tmp_path: Path) -> None:
    """They change the inputs of all later layers, although every parameter stays as it is."""
    model, x = normalised(), torch.randn(8, 2, 9, 9)
    with torch.no_grad(), measuring(model) as meter:
        model(x)
    meter.save(tmp_path / "out")
    later = copy.deepcopy(model).train()
    with torch.no_grad():
        later(3 * x + 1)
    later.eval()
    one_line(
        lambda: apply_correctors(later, copy.deepcopy(later), tmp_path / "out"),
        MismatchError,
        *("layer 0", fingerprint(model)[:18], fingerprint(later)[:18]),
    )


def test_counts_of_batches_and_what_is_not_saved_change_no_fingerprint() -> None:
    model = normalised()
    known = fingerprint(model)
    model[1].num_batches_tracked += 1
    model[0].positions += 1
    assert fingerprint(model) == known


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_a_copy_with_observers_keeps_the_fingerprint_whatever_they_see() -> None:
    model = normalised()
    observed = copy.deepcopy(model)
    observed.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    torch.ao.quantization.prepare(observed, inplace=True)
    assert len([*observed.modules()]) > len([*model.modules()])
    observed(torch.randn(8, 2, 9, 9))
    assert fingerprint(observed) == fingerprint(model)


def test_a_model_without_all_its_parameters_has_no_fingerprint() -> None:
    assert fingerprint(nn.Linear(4, 6, device="meta")) == ""
    assert fingerprint(nn.LazyLinear(3)) == ""
    assert fingerprint(nn.LazyBatchNorm1d(affine=False)) == ""
