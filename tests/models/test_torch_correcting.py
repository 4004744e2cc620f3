"""torch: quantised copies as people have them, fused, trained, wrapped or quantising while they run, have the float
model's mean outputs once they are corrected, or the reason is given."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.errors import MismatchError
from streamstats.jobs.run import run

torch = pytest.importorskip("torch", reason="`make models` tests with it")

from streamstats.models.torch import apply_correctors, recording  # noqa: E402

nn: Any = torch.nn
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:Please use quant_min"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def correctors(network: Any, folder: Path, *given: Any, statistics: tuple[str, ...] = (), **named: Any) -> Path:
    return counted(network, folder, *given, statistics=statistics, **named)[0]


def counted(
    network: Any, folder: Path, *given: Any, statistics: tuple[str, ...] = (), **named: Any
) -> tuple[Path, Any]:
    """(what a run leaves, the account of the recording)."""
    with torch.no_grad(), recording(network, folder / "s.zarr") as account:
        network(*given, **named)
    config = {"source": str(folder / "s.zarr"), "output": str(folder / "out"), "statistics": list(statistics)}
    run(JobConfig.model_validate(config).job())
    return folder / "out", account


def mean(y: Any, channel: int = 1) -> Any:
    return y.detach().double().mean(dim=[axis for axis in range(y.ndim) if axis != channel]).numpy()


# Batch normalisation, folded


class Normed(nn.Module):  # type: ignore[misc]
    """A convolution whose batch normalisation is far from the identity."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.enter, self.leave = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv, self.bn, self.relu = kind(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU()
        with torch.no_grad():
            for parameter in (self.bn.weight, self.bn.running_var):
                parameter.copy_(torch.rand(6) * 0.6 + 0.7)
            self.bn.running_mean.copy_(torch.randn(6) * 0.1)
            self.bn.bias.fill_(8.0)  # nothing is cut off by the activation

    def forward(self, x: Any) -> Any:
        return self.leave(self.relu(self.bn(self.conv(self.enter(x)))))


def inputs() -> Any:
    return torch.randn(64, 4, 8, 8) + 0.7


def rounded(conv: Any, bits: int = 3) -> None:
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(ss.fake_quantize(conv.weight.numpy(), bits)))


@pytest.mark.parametrize("recorded", ["as trained", "fused"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_fused_layers_are_found_and_folded(tmp_path: Path, recorded: str, relu: bool, transposed: bool) -> None:
    network, x = Normed(transposed).eval(), inputs()
    parts = ["conv", "bn", "relu"] if relu and not transposed else ["conv", "bn"]
    fused = torch.ao.quantization.fuse_modules(copy.deepcopy(network), [parts])
    quantized = copy.deepcopy(fused)
    conv = quantized.conv if hasattr(quantized.conv, "weight") else quantized.conv[0]
    rounded(conv)
    shift = mean(quantized(x)) - mean(network(x))
    given = network if recorded == "as trained" else fused
    (outcome,) = apply_correctors(given, quantized, correctors(given, tmp_path, x))
    assert outcome.outcome == "corrected"
    assert np.abs(shift).max() > 0.02
    np.testing.assert_allclose(mean(quantized(x)), mean(network(x)), atol=2e-6)


@pytest.mark.parametrize("recorded", ["as trained", "fused"])
def test_converted_modules_are_corrected(tmp_path: Path, recorded: str) -> None:
    ao = torch.ao.quantization
    network, x = Normed().eval(), inputs()
    fused = ao.fuse_modules(copy.deepcopy(network), [["conv", "bn", "relu"]])
    quantized = copy.deepcopy(fused)
    weights = ao.MinMaxObserver.with_args(dtype=torch.qint8, quant_min=-4, quant_max=3)
    quantized.qconfig = ao.QConfig(activation=ao.MinMaxObserver.with_args(dtype=torch.quint8), weight=weights)
    quantized = ao.prepare(quantized)
    quantized(x)
    quantized = ao.convert(quantized)
    given = network if recorded == "as trained" else fused
    stored = quantized.conv.weight().dequantize().double()
    shift = (fused.conv[0].weight.double() - stored).flatten(1) @ x.double().mean(dim=(0, 2, 3))
    before = quantized.conv.bias().clone()
    (outcome,) = apply_correctors(given, quantized, correctors(given, tmp_path, x))
    assert outcome.outcome == "corrected"
    assert shift.abs().max() > 0.02
    np.testing.assert_allclose((quantized.conv.bias() - before).detach().numpy(), shift.detach().numpy(), atol=2e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_with_groups_are_folded(tmp_path: Path, groups: int) -> None:
    network = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.BatchNorm2d(6)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.rand(6) + 0.5)
    x = inputs()
    quantized = copy.deepcopy(network)
    scale = (network[1].weight / (network[1].running_var + network[1].eps).sqrt()).detach()
    with torch.no_grad():
        folded = network[0].weight.view(groups, 4 // groups, 6 // groups, 2, 2) * scale.view(groups, 1, -1, 1, 1)
        quantized[0].weight.copy_(folded.reshape(4, 6 // groups, 2, 2))
        quantized[0].bias.mul_(scale)
    quantized[1] = nn.Identity()
    np.testing.assert_allclose(quantized(x).detach(), network(x).detach(), atol=1e-5)
    rounded(quantized[0])
    (outcome,) = apply_correctors(network, quantized, correctors(network, tmp_path, x, statistics=("taps",)))
    assert outcome.corrected
    np.testing.assert_allclose(mean(quantized(x)), mean(network(x)), atol=2e-6)


@pytest.mark.parametrize("converted", [False, True])
def test_models_prepared_for_training_are_corrected(tmp_path: Path, converted: bool) -> None:
    ao = torch.ao.quantization
    network, x = Normed(), inputs()
    fused = ao.fuse_modules_qat(copy.deepcopy(network).train(), [["conv", "bn", "relu"]])
    weights = ao.FakeQuantize.with_args(
        observer=ao.MinMaxObserver, quant_min=-4, quant_max=3, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
    )
    fused.qconfig = ao.QConfig(activation=nn.Identity if not converted else ao.default_fake_quant, weight=weights)
    quantized = ao.prepare_qat(fused)
    network.eval()
    quantized.eval()
    quantized(x)
    for module in quantized.modules():
        if isinstance(module, ao.FakeQuantize):
            module.disable_observer()
    shift = mean(quantized(x)) - mean(network(x))
    wanted = mean(network(x))
    if converted:
        quantized = ao.convert(quantized)
    (outcome,) = apply_correctors(network, quantized, correctors(network, tmp_path, x))
    assert outcome.corrected, outcome.reason
    assert np.abs(shift).max() > 0.02
    np.testing.assert_allclose(mean(quantized(x)), wanted, atol=0.02 if converted else 2e-6)


def test_a_module_that_cannot_have_a_bias_is_refused(tmp_path: Path) -> None:
    class Bare(nn.Module):  # type: ignore[misc]
        def __init__(self, weight: Any) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.from_numpy(ss.fake_quantize(weight.detach().numpy(), 3)))

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(x, self.weight)

    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    quantized = copy.deepcopy(network)
    quantized[0] = Bare(network[0].weight)
    rounded(quantized[1])
    outcomes = apply_correctors(network, quantized, correctors(network, tmp_path, torch.randn(8, 4)))
    assert [each.outcome for each in outcomes] == ["refused", "corrected"]
    assert outcomes[0].reason == "a Bare has no attribute `bias`; give it one, or None"


def test_a_norm_that_is_still_there_is_not_folded(tmp_path: Path) -> None:
    network, x = Normed().eval(), inputs()
    quantized = copy.deepcopy(network)
    rounded(quantized.conv)
    (outcome,) = apply_correctors(network, quantized, correctors(network, tmp_path, x))
    assert outcome.corrected
    np.testing.assert_allclose(mean(quantized(x)), mean(network(x)), atol=2e-6)


@pytest.mark.parametrize("side", ["output", "input"])
def test_a_scaled_weight_is_refused(tmp_path: Path, side: str) -> None:
    network, x = nn.Sequential(nn.Linear(12, 8)), torch.randn(64, 12) + 0.7
    quantized = copy.deepcopy(network)
    factors = torch.rand(8, 1) + 0.5 if side == "output" else torch.rand(1, 12) + 0.5
    with torch.no_grad():
        quantized[0].weight.mul_(factors)
    rounded(quantized[0], 8)
    with pytest.raises(MismatchError, match=f"its own times 0.* to 1.* for each {side}, which is no rounding"):
        apply_correctors(network, quantized, correctors(network, tmp_path, x))


# Modules that quantise while they run


class OnTheFly(nn.Linear):  # type: ignore[misc]
    def levels(self) -> Any:
        return torch.from_numpy(ss.fake_quantize(self.weight.detach().numpy(), 3))

    def forward(self, x: Any) -> Any:
        return nn.functional.linear(x, self.levels(), self.bias)


class Levels(nn.Module):  # type: ignore[misc]
    def forward(self, weight: Any) -> Any:
        return torch.from_numpy(ss.fake_quantize(weight.detach().numpy(), 3))


class Conv1D(nn.Module):  # type: ignore[misc]
    def __init__(self, weight: Any, bias: Any) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Any) -> Any:
        return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).view(x.size(0), x.size(1), -1)


def on_the_fly(network: Any) -> Any:
    quantized = nn.Sequential(OnTheFly(12, 8))
    quantized.load_state_dict(network.state_dict())
    return quantized


def parametrised(network: Any) -> Any:
    quantized = copy.deepcopy(network)
    nn.utils.parametrize.register_parametrization(quantized[0], "weight", Levels())
    return quantized


def dynamic(network: Any) -> Any:
    observer = torch.ao.quantization.MinMaxObserver.with_args(dtype=torch.qint8, quant_min=-4, quant_max=3)
    return torch.ao.quantization.quantize_dynamic(
        network,
        {nn.Linear: torch.ao.quantization.QConfig(torch.ao.quantization.default_dynamic_quant_observer, observer)},
    )


def wrapped(network: Any) -> Any:
    quantized = copy.deepcopy(network)
    rounded(quantized[0])
    return torch.ao.quantization.QuantWrapper(quantized)


def each_wrapped(network: Any) -> Any:
    quantized = copy.deepcopy(network)
    rounded(quantized[0])
    quantized[0] = torch.ao.quantization.QuantWrapper(quantized[0])
    return quantized


def of_brevitas(network: Any) -> Any:
    brevitas = pytest.importorskip("brevitas.nn")
    quantized = nn.Sequential(brevitas.QuantLinear(12, 8, bias=True, weight_bit_width=3))
    quantized.load_state_dict(network.state_dict(), strict=False)
    return quantized


@pytest.mark.parametrize("quantise", [on_the_fly, parametrised, dynamic, wrapped, each_wrapped, of_brevitas])
def test_the_weight_that_is_computed_with_is_corrected(tmp_path: Path, quantise: Any) -> None:
    network, x = nn.Sequential(nn.Linear(12, 8)), torch.randn(64, 12) + 0.7
    quantized = quantise(network).eval()
    shift = mean(quantized(x)) - mean(network(x))
    (outcome,) = apply_correctors(network, quantized, correctors(network, tmp_path, x))
    assert outcome.outcome == "corrected"
    assert np.abs(shift).max() > 0.02
    np.testing.assert_allclose(mean(quantized(x)), mean(network(x)), atol=2e-2 if quantise is dynamic else 2e-6)


def test_probing_a_module_leaves_it_as_it_is(tmp_path: Path) -> None:
    class Counting(OnTheFly):
        def __init__(self, *extents: int) -> None:
            super().__init__(*extents)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return super().forward(x)

    network, x = nn.Sequential(nn.Linear(12, 8)), torch.randn(64, 12) + 0.7
    quantized = nn.Sequential(Counting(12, 8)).train()
    quantized.load_state_dict(network.state_dict(), strict=False)
    apply_correctors(network, quantized, correctors(network, tmp_path, x))
    assert (int(quantized[0].calls), quantized[0].training) == (0, True)


def test_outcomes_are_told_apart(tmp_path: Path) -> None:
    class Stubborn(nn.Linear):
        def forward(self, _: Any) -> Any:
            raise RuntimeError("needs a scale")

    names = ("corrected", "unchanged", "never", "unknown", "scaled", "missing")
    network = nn.ModuleDict({name: nn.Linear(12, 8) for name in names})
    x = torch.randn(64, 12) + 0.7

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> None:
            for module in self.network.values():
                module(x)

    quantized = copy.deepcopy(network)
    rounded(quantized["corrected"])
    packed = torch.ao.nn.quantized.Linear(12, 8)
    codes = torch.quantize_per_tensor(network["unchanged"].weight.detach(), 0.1, 0, torch.qint8)
    packed.set_weight_bias(codes, None)
    with torch.no_grad():
        network["unchanged"].weight.copy_(packed.weight().dequantize())
        quantized["scaled"].weight.mul_(0.1)
    quantized["unchanged"] = packed
    quantized["unknown"] = Stubborn(12, 8)
    quantized["missing"] = nn.Identity()
    loop, copied = Loop(), Loop()
    copied.network = quantized
    outcomes = apply_correctors(loop, copied, correctors(loop, tmp_path, x))
    assert {each.layer.removeprefix("network/"): each.outcome for each in outcomes} == {
        "corrected": "corrected",
        "unchanged": "unchanged",
        "never": "never quantised",
        "unknown": "refused",
        "scaled": "refused",
        "missing": "refused",
    }
    reasons = {each.layer.removeprefix("network/"): each.reason for each in outcomes}
    assert (
        "a Stubborn may quantise its weight while it runs, and it does not run on its own (needs a"
        in reasons["unknown"]
    )
    assert "its own times 0.1 to 0.1 for each output" in reasons["scaled"]
    assert reasons["never"] == "its weight in the quantised model is the float one"


class Standardised(nn.Conv2d):  # type: ignore[misc]
    """A convolution that standardises its weight, as timm's does."""

    def forward(self, x: Any) -> Any:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize("copied", ["as it is", "as a plain convolution"])
def test_float_modules_that_compute_their_weight_are_compared_by_it(tmp_path: Path, copied: str) -> None:
    network, x = nn.Sequential(Standardised(4, 6, 1)), inputs()
    quantized = copy.deepcopy(network)
    if copied != "as it is":
        quantized = nn.Sequential(nn.Conv2d(4, 6, 1))
        quantized.load_state_dict(network.state_dict())
        with torch.no_grad():
            quantized[0].weight.sub_(quantized[0].weight.mean(dim=(1, 2, 3), keepdim=True))
    rounded(quantized[0])
    (outcome,) = apply_correctors(network, quantized, correctors(network, tmp_path, x))
    assert outcome.corrected
    np.testing.assert_allclose(mean(quantized(x)), mean(network(x)), atol=2e-6)


def test_weights_that_were_trained_since_are_refused(tmp_path: Path) -> None:
    network, x = nn.Sequential(nn.Linear(12, 8)), torch.randn(64, 12) + 0.7
    out = correctors(network, tmp_path, x)
    trained = copy.deepcopy(network)
    with torch.no_grad():
        trained[0].weight.add_(torch.randn(8, 12) * 0.02)
    with pytest.raises(MismatchError, match="the float weight that the quantised module rounds is not the model's"):
        apply_correctors(network, on_the_fly(trained), out)
    with pytest.raises(MismatchError, match="of 96 quantised weights are further from their own than rounding"):
        apply_correctors(network, torch.ao.quantization.quantize_dynamic(trained, {nn.Linear}), out)


def test_modules_under_other_names_are_matched_by_their_weights(tmp_path: Path) -> None:
    network, x = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 8)), torch.randn(64, 12) + 0.7
    modules = copy.deepcopy(network)
    for module in modules:
        rounded(module, 4)
    quantized = nn.ModuleDict({"c": modules[2], "b": modules[1], "a": modules[0]})
    out = correctors(network, tmp_path, x)
    twins = nn.ModuleDict({"a": copy.deepcopy(modules[0]), "b": copy.deepcopy(modules[0])})
    assert {each.outcome for each in apply_correctors(network, quantized, out)} == {"corrected"}
    given = x
    for name, module in zip("abc", network, strict=True):
        y = module(given)
        np.testing.assert_allclose(mean(quantized[name](given)), mean(y), atol=2e-6)
        given = y
    with pytest.raises(MismatchError, match="has no module of its name with a weight, and 2 of other names have its"):
        apply_correctors(network, twins, out)


# Attention, Conv1D, output sizes


class Attending(nn.Module):  # type: ignore[misc]
    def __init__(self, **extents: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True, **extents)

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        return self.attn(q, k, v, need_weights=False)[0]


def projected(network: Any, parts: list[Any]) -> list[Any]:
    """The mean projections of queries, keys and values, by torch's own function in float64."""
    attn = network.attn
    weights = [attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight]
    if attn.in_proj_weight is not None:
        weights = attn.in_proj_weight.chunk(3)
    biases = (torch.zeros(48) if attn.in_proj_bias is None else attn.in_proj_bias).chunk(3)
    each = zip(parts, weights, biases, strict=True)
    return [mean(nn.functional.linear(x.double(), w.double(), b.double()), 2) for x, w, b in each]


@pytest.mark.parametrize("inputs_are", ["one", "several", "of other extents", "one, without biases"])
def test_projections_of_attention_are_corrected(tmp_path: Path, inputs_are: str) -> None:
    extents = {"of other extents": {"kdim": 6, "vdim": 10}, "one, without biases": {"bias": False}}.get(inputs_are, {})
    network = Attending(**extents).eval()
    x = torch.randn(24, 7, 16) + 1
    parts = [x, x, x] if inputs_are.startswith("one") else [
        torch.randn(24, 7, extents.get(name, 16)) + at + 1 for at, name in enumerate(("qdim", "kdim", "vdim"))
    ]  # fmt: skip
    quantized = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in quantized.named_parameters():
            if parameter.ndim == 2:
                bits = 3 if "in_proj" in name or "_proj_weight" in name else 8
                parameter.copy_(torch.from_numpy(ss.fake_quantize(parameter.numpy(), bits)))
    before = projected(quantized, parts)
    outcomes = apply_correctors(network, quantized, correctors(network, tmp_path, *parts))
    assert {each.outcome for each in outcomes} == {"corrected"}
    assert len(outcomes) == (2 if inputs_are.startswith("one") else 4)
    for wanted, found, shifted in zip(projected(network, parts), projected(quantized, parts), before, strict=True):
        assert np.abs(shifted - wanted).max() > 0.02
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    quantized(*parts)


def test_attention_of_torch_ao_is_corrected_in_its_modules(tmp_path: Path) -> None:
    network, x = Attending().eval(), torch.randn(24, 7, 16) + 1
    quantized = copy.deepcopy(network)
    quantized.attn = torch.ao.nn.quantizable.MultiheadAttention(16, 4, batch_first=True).eval()
    linear = [quantized.attn.linear_Q, quantized.attn.linear_K, quantized.attn.linear_V]
    with torch.no_grad():
        for module, w, b in zip(
            linear, network.attn.in_proj_weight.chunk(3), network.attn.in_proj_bias.chunk(3), strict=True
        ):
            module.weight.copy_(torch.from_numpy(ss.fake_quantize(w.detach().numpy(), 3)))
            module.bias.copy_(b)
        quantized.attn.out_proj.load_state_dict(network.attn.out_proj.state_dict())
    outcomes = {
        each.layer: each.outcome
        for each in apply_correctors(network, quantized, correctors(network, tmp_path, x, x, x))
    }
    assert outcomes == {"attn/in_proj": "corrected", "attn/out_proj": "never quantised"}
    for module, wanted in zip(linear, projected(network, [x, x, x]), strict=True):
        np.testing.assert_allclose(mean(copy.deepcopy(module).double()(x.double()), 2), wanted, atol=2e-6)


def test_attention_of_both_kinds_of_calls_is_refused(tmp_path: Path) -> None:
    class Both(Attending):
        def forward(self, x: Any, y: Any) -> Any:
            return super().forward(x, y, y) + super().forward(x, x, x)

    network, x = Both().eval(), torch.randn(24, 7, 16) + 1
    quantized = copy.deepcopy(network)
    with torch.no_grad():
        quantized.attn.in_proj_weight.mul_(1.01)
    rounded(quantized.attn.out_proj)
    out = correctors(network, tmp_path, x, torch.randn(24, 7, 16))
    outcomes = {each.layer: each.reason for each in apply_correctors(network, quantized, out)}
    assert outcomes.pop("attn/out_proj") == ""
    assert all("in some calls and several in others" in reason for reason in outcomes.values())


def test_conv1d_is_corrected(tmp_path: Path) -> None:
    network, x = nn.Sequential(Conv1D(torch.randn(12, 8), torch.zeros(8))), torch.randn(16, 5, 12) + 0.7
    quantized = copy.deepcopy(network)
    rounded(quantized[0])
    (outcome,) = apply_correctors(network, quantized, correctors(network, tmp_path, x))
    assert outcome.corrected
    np.testing.assert_allclose(mean(quantized(x), 2), mean(network(x), 2), atol=3e-6)


class Growing(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)

    def forward(self, x: Any) -> Any:
        return self.up(x, output_size=(16, 16))


def test_transposed_convolutions_with_an_output_size_are_exact(tmp_path: Path) -> None:
    network, x = Growing(), inputs()
    quantized = copy.deepcopy(network)
    rounded(quantized.up)
    (outcome,) = apply_correctors(network, quantized, correctors(network, tmp_path, x, statistics=("taps",)))
    assert outcome.corrected
    assert network(x).shape[-1] == 16
    np.testing.assert_allclose(mean(quantized(x)), mean(network(x)), atol=2e-6)


def test_strided_convolutions_of_one_tap_are_exact_without_asking_for_taps(tmp_path: Path) -> None:
    network, x = nn.Conv2d(4, 6, 1, stride=2), inputs()
    x[:, :, ::2, ::2] += 1
    quantized = copy.deepcopy(network)
    rounded(quantized)
    (outcome,) = apply_correctors(network, quantized, correctors(network, tmp_path, x))
    assert outcome.corrected
    np.testing.assert_allclose(mean(quantized(x)), mean(network(x)), atol=2e-6)


# Exported models


class Exported(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.fc, self.last = nn.Linear(6, 5), nn.Linear(5, 5, bias=False)
        with torch.no_grad():
            self.body[1].weight.copy_(torch.rand(6) + 0.5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.fc(self.body(x).mean((2, 3))))
        return self.last(torch.relu(self.last(x)))


def mean_inputs(network: Any, x: Any) -> dict[str, Any]:
    """The mean input of each module with a weight over all its calls, by plain hooks: float64[channels]."""
    found: dict[str, list[Any]] = {}

    def keep(name: str, given: Any) -> None:
        found.setdefault(name, []).append(given.detach().double())

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: keep(name, given[0]))
        for name, module in network.named_modules()
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return {name: mean(torch.cat(blocks)) for name, blocks in found.items()}


class Products(torch.fx.Interpreter):  # type: ignore[misc]
    """The weight and bias of each product that a graph runs, float64, in order."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.found: list[tuple[Any, Any]] = []

    def call_function(self, target: Any, arguments: Any, named: Any) -> Any:
        if "conv2d" in str(target) or "linear" in str(target):
            weight, bias = (*arguments, None)[1:3]
            zeros = torch.zeros(len(weight)) if bias is None else bias
            self.found.append((weight.detach().double().flatten(1).numpy(), zeros.detach().double().numpy()))
        return super().call_function(target, arguments, named)


def products(model: Any, x: Any) -> list[tuple[Any, Any]]:
    interpreter = Products(model)
    interpreter.run(x)
    return interpreter.found


@pytest.mark.filterwarnings("ignore")  # torchao's own
@pytest.mark.parametrize("stage", ["prepared for training", "converted"])
def test_models_of_pt2e_are_corrected_in_their_graphs(tmp_path: Path, stage: str) -> None:
    flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    quantizers = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    network, x, training = Exported().eval(), inputs(), stage != "converted"
    quantizer = quantizers.X86InductorQuantizer()
    quantizer.set_global(quantizers.get_default_x86_inductor_quantization_config(is_qat=training))
    exported = torch.export.export(network, (x,)).module()
    prepared = (flow.prepare_qat_pt2e if training else flow.prepare_pt2e)(exported, quantizer)
    prepared(x)
    quantized = prepared if training else flow.convert_pt2e(prepared)
    before = products(quantized, x)
    outcomes = apply_correctors(network, quantized, correctors(network, tmp_path, x))
    found = {each.layer: (each.outcome, each.reason) for each in outcomes}
    assert found == dict.fromkeys(("body/0", "fc", "last"), ("corrected", ""))
    scale = network.body[1].weight / (network.body[1].running_var + network.body[1].eps).sqrt()
    folded = network.body[0].weight * scale.view(-1, 1, 1, 1)
    weights = {"body.0": folded, "fc": network.fc.weight, "last": network.last.weight}
    inputs_are, after = mean_inputs(network, x), products(quantized, x)
    for number, name in enumerate(("body.0", "fc", "last", "last")):
        weight, bias = weights[name].detach().double().flatten(1).numpy(), before[number][1]
        wanted = weight @ inputs_are[name] + bias
        assert np.abs(before[number][0] @ inputs_are[name] + bias - wanted).max() > 1e-4
        np.testing.assert_allclose(after[number][0] @ inputs_are[name] + after[number][1], wanted, atol=1e-6)
    quantized.graph.lint()


class Words(nn.Module):  # type: ignore[misc]
    """Attention, whose two products one module makes, and a matrix that `addmm` multiplies by."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.wide = nn.MultiheadAttention(8, 2, batch_first=True), Conv1D(torch.randn(8, 6), torch.zeros(6))

    def forward(self, x: Any) -> Any:
        return self.wide(self.attn(x, x, x, need_weights=False)[0])


@pytest.mark.filterwarnings("ignore")  # torch's own, on exporting
def test_attention_and_conv1d_are_found_in_exported_graphs(tmp_path: Path) -> None:
    network, x = Words().eval().requires_grad_(False), torch.randn(16, 5, 8) + 0.7
    quantized = torch.export.export(copy.deepcopy(network), (x,)).module()
    for name, parameter in quantized.named_parameters():
        if "weight" in name:
            parameter.copy_(torch.from_numpy(ss.fake_quantize(parameter.numpy(), 4)))
    stored = dict(quantized.named_parameters())
    done = {each.layer: each for each in apply_correctors(network, quantized, correctors(network, tmp_path, x))}
    assert {name: each.outcome for name, each in done.items()} == dict.fromkeys(
        ("attn/in_proj", "attn/out_proj", "wide"), "corrected"
    )
    whole = network.attn.in_proj_weight.double() - stored["attn.in_proj_weight"].double()
    np.testing.assert_allclose(done["attn/in_proj"].term, whole @ x.double().mean((0, 1)), atol=1e-9)
    attended = network.attn(x, x, x, need_weights=False)[0].double().mean((0, 1))
    last = (network.wide.weight.double() - stored["wide.weight"].double()).T @ attended
    np.testing.assert_allclose(done["wide"].term, last, atol=1e-6)
    biases = [tuple(value.shape) for name, value in quantized.named_parameters() if name.startswith("corrected_bias")]
    assert biases == [(24,), (8,), (6,)]
    quantized.graph.lint()


@pytest.mark.parametrize("whole", [False, True])
def test_a_module_that_tracing_takes_apart_is_refused_and_can_be_kept_whole(tmp_path: Path, whole: bool) -> None:
    fx, ao = pytest.importorskip("torch.ao.quantization.quantize_fx"), torch.ao.quantization
    network, x = nn.Sequential(nn.Linear(8, 8), Conv1D(torch.randn(8, 6), torch.zeros(6))).eval(), torch.randn(9, 5, 8)
    config = ao.fx.custom_config.PrepareCustomConfig()
    if whole:
        config.set_non_traceable_module_classes([Conv1D])
    mapping = ao.get_default_qconfig_mapping("x86")
    prepared = fx.prepare_fx(copy.deepcopy(network), mapping, (x,), prepare_custom_config=config)
    prepared(x)
    first, last = apply_correctors(network, fx.convert_fx(prepared), correctors(network, tmp_path, x))
    assert first.outcome == "corrected"
    assert (last.outcome, "non_traceable" in last.reason) == (
        ("never quantised", False) if whole else ("refused", True)
    )


# Parameters without modules


class Loose(nn.Module):  # type: ignore[misc]
    """Products with parameters of its own; each keeps its inputs."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"conv": (6, 2, 1, 1), "square": (6, 6), "wide": (6, 8), "bare": (8, 8), "one": (8, 8), "two": (8, 8)}
        for name, size in sizes.items():
            setattr(self, name, nn.Parameter(torch.randn(size)))
        for name, extent in {"shift": 6, "offset": 6, "beside": 8, "both": 8}.items():
            setattr(self, name, nn.Parameter(torch.randn(extent)))

    def forward(self, x: Any) -> Any:
        functional = nn.functional
        self.seen = {"conv": x.movedim(1, -1).flatten(0, -2)}
        y = functional.conv2d(x, self.conv, self.shift, groups=2).movedim(1, -1).flatten(0, -2)
        self.seen["square"] = y
        y = functional.linear(y, self.square, bias=self.offset)
        self.seen["wide"] = y
        y = torch.addmm(self.beside, y, self.wide) @ self.bare
        return functional.linear(functional.linear(y, self.one, self.both), self.two, self.both)


def test_parameters_are_corrected_in_the_biases_that_their_calls_add(tmp_path: Path) -> None:
    network, x = Loose().requires_grad_(False), torch.randn(16, 4, 5, 5) + 0.7
    quantized = copy.deepcopy(network)
    for name in ("conv", "square", "wide", "bare", "one", "two"):
        weight = getattr(quantized, name)
        weight.copy_(torch.from_numpy(ss.fake_quantize(weight.numpy(), 4)))
    before = copy.deepcopy(quantized)
    out, account = counted(network, tmp_path, x)
    done = {each.layer: each for each in apply_correctors(network, quantized, out, account=account)}
    assert {name for name, each in done.items() if each.outcome == "corrected"} == {"conv", "square", "wide"}
    assert done["bare"].reason.startswith("no one parameter is added as the bias")
    assert done["one"].reason == done["two"].reason
    assert "the bias both is added behind other weights, too" in done["one"].reason
    means = {name: each.double().mean(0) for name, each in network.seen.items()}
    moved = {name: getattr(network, name).double() - getattr(before, name).double() for name in means}
    halves = moved["conv"].reshape(2, 3, 2) @ means["conv"].reshape(2, 2, 1)
    wanted = {
        "shift": halves.flatten(),
        "offset": moved["square"] @ means["square"],
        "beside": means["wide"] @ moved["wide"],
    }
    for name, term in wanted.items():
        assert term.abs().max() > 1e-3
        np.testing.assert_allclose((getattr(quantized, name) - getattr(before, name)).numpy(), term, atol=1e-6)
    assert torch.equal(quantized.both, before.both)


def test_without_the_account_parameters_are_refused_and_the_remedy_is_named(tmp_path: Path) -> None:
    network, x = Loose().requires_grad_(False), torch.randn(16, 4, 5, 5)
    quantized = copy.deepcopy(network)
    quantized.conv.copy_(torch.from_numpy(ss.fake_quantize(network.conv.numpy(), 4)))
    with pytest.raises(MismatchError, match="give `account`, what the recording yielded"):
        apply_correctors(network, quantized, correctors(network, tmp_path, x))


def test_parameters_that_were_scaled_or_left_in_float_are_told(tmp_path: Path) -> None:
    network, x = Loose().requires_grad_(False), torch.randn(16, 4, 5, 5)
    quantized = copy.deepcopy(network)
    quantized.square *= 1.5
    quantized.conv.copy_(torch.from_numpy(ss.fake_quantize(network.conv.numpy(), 4)))
    out, account = counted(network, tmp_path, x)
    done = {each.layer: each for each in apply_correctors(network, quantized, out, account=account)}
    assert (done["conv"].outcome, done["wide"].outcome) == ("corrected", "never quantised")
    assert "its own times 1.5 to 1.5 for each output" in done["square"].reason
