"""torch: what was recorded of one version of a model is not used for another."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import one_line

from streamstats.errors import MismatchError

torch = pytest.importorskip("torch", reason="`make models` tests with it")

from streamstats.models.fingerprints import Fingerprints, weight_digest  # noqa: E402
from streamstats.models.torch import apply_correctors, correct, measuring, recording  # noqa: E402
from streamstats.models.torch.correcting import MARK  # noqa: E402
from streamstats.models.torch.fingerprint import _digest, fingerprint, fingerprints  # noqa: E402

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
        "the weight of layer 0 in the Sequential that is given is not the one that was recorded",
        *(fingerprints(each).weights["0"][:18] for each in (model, later)),
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


def test_a_model_with_a_sparse_buffer_is_recorded_and_its_layers_are_known_by_their_weights() -> None:
    model = network()
    layers = fingerprints(model).weights
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    assert fingerprints(model) == Fingerprints("", layers)
    with torch.no_grad(), measuring(model) as meter:
        model(torch.randn(16, 4))
    assert meter.statistics["0"].weights == (("0", layers["0"]),)


def normalised() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
    model[0].register_buffer("positions", torch.arange(4.0), persistent=False)
    return model


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn_x2", "bfloat16", "float64", "complex64"]
)
def test_weights_of_any_dtype_have_a_digest_of_their_bytes(name: str) -> None:
    dtype = getattr(torch, name)
    content = np.arange(32, dtype=np.uint8)
    values = torch.frombuffer(bytearray(content.tobytes()), dtype=torch.uint8).view(dtype)
    for value in (values, values[:0], values.reshape(2, -1).T):
        found = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        assert _digest(value) == weight_digest(str(dtype), value.shape, found.tobytes())


def test_a_view_that_negates_has_the_digest_of_its_values() -> None:
    negated = torch.complex(torch.randn(3), torch.randn(3)).conj().imag
    assert negated.is_neg()
    assert _digest(negated) == _digest(negated.resolve_neg().clone())


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
        "layer 0 was recorded from a model with other weights",
        *(fingerprint(model)[:18], fingerprint(later)[:18]),
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


def equal_layers() -> Any:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()


def test_layers_that_have_changed_places_do_not_get_what_was_counted_of_others(tmp_path: Path) -> None:
    """The fingerprint of the model is the same: its parameters are."""
    model = equal_layers()
    with torch.no_grad(), measuring(model) as meter, recording(model, tmp_path / "s.zarr"):
        model(torch.randn(16, 4))
    meter.save(tmp_path / "out")
    swapped = nn.Sequential(model[2], model[1], model[0]).eval()
    assert fingerprint(swapped) == fingerprint(model)
    for other_weights in (False, True):
        one_line(
            lambda other=other_weights: apply_correctors(
                swapped, rounded(swapped), tmp_path / "out", other_weights=other
            ),
            MismatchError,
            "layers of the Sequential that is given have weights that were recorded under other names",
            "2 → 0, 0 → 2;",
        )
    with (
        pytest.raises(MismatchError, match=r"layer 0: the fingerprint of its weight is torch:\w{12}…; the store holds"),
        torch.no_grad(),
        recording(swapped, tmp_path / "s.zarr"),
    ):
        swapped(torch.randn(16, 4))


def test_modules_that_share_a_parameter_are_known_by_their_names(tmp_path: Path) -> None:
    model = equal_layers()
    model[2].weight = model[0].weight
    with torch.no_grad(), measuring(model) as meter:
        model(torch.randn(16, 4))
    meter.save(tmp_path / "out")
    assert all(each.corrected for each in apply_correctors(model, rounded(model), tmp_path / "out"))


def test_a_result_says_that_another_model_was_counted(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad(), measuring(model) as meter:
        model(torch.randn(16, 4))
    meter.save(tmp_path / "out")
    later = retrained(model)
    done = correct(later, rounded(later), tmp_path / "out", other_weights=True)
    said = "the weight of layer 0 in the Sequential that is given is not the one that was recorded"
    assert said in done.provenance()["other_weights"]
    assert correct(model, rounded(model), tmp_path / "out").provenance()["other_weights"] is None
