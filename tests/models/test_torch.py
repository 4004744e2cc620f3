"""torch: inputs recorded while a loop runs, and biases corrected in quantised copies."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import streamstats as ss
from streamstats.calibration.selection import select_layers
from streamstats.config import JobConfig
from streamstats.errors import MismatchError, UsageError
from streamstats.jobs.run import run

torch = pytest.importorskip("torch", reason="`make models` tests with it")

from streamstats.models.torch import apply_correctors, linear_modules, measuring, recording  # noqa: E402

nn: Any = torch.nn


class Network(nn.Module):  # type: ignore[misc]
    """Convolutions of all kinds, a shared module, and linear layers at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU())
        self.shared = nn.Conv2d(8, 8, 3, padding="same", groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.head = nn.ModuleDict({"fc": nn.Linear(6, 5)})

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = torch.relu(self.shared(torch.relu(self.shared(x))))
        x = torch.relu(self.up(x))
        return self.head["fc"](x.mean(dim=(2, 3)))


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return Network().eval()


def samples(number: int = 40) -> Any:
    return torch.randn(number, 3, 9, 9, generator=torch.Generator().manual_seed(1)) + 0.5


def run_out(folder: Path, *, taps: bool = True) -> Path:
    config = {"source": str(folder / "s.zarr"), "output": str(folder / "out")}
    run(JobConfig.model_validate(config | {"statistics": ["taps"] if taps else []}).job())
    return folder / "out"


def recorded(network: Any, folder: Path, x: Any, **options: Any) -> Path:
    with torch.no_grad(), recording(network, folder / "s.zarr", **options):
        for batch in x.split(7):
            network(batch)
    return folder / "s.zarr"


def inputs_of(network: Any, x: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: found.setdefault(name, []).append(given[0]))
        for name, module in linear_modules(network).items()
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


def test_modules_have_the_names_of_their_places(network: Any) -> None:
    assert [*linear_modules(network)] == ["stem/0", "shared", "up", "head/fc"]


def test_inputs_are_recorded_as_they_come_and_hooks_go(network: Any, tmp_path: Path) -> None:
    x = samples()
    store = recorded(network, tmp_path, x)
    found = ss.reduce(store)
    for name, blocks in inputs_of(network, x).items():
        values = torch.cat(blocks).double().numpy()
        axis = 1
        assert found[name].rows == len(values) == (80 if name == "shared" else 40)
        others = tuple(a for a in range(values.ndim) if a != axis)
        np.testing.assert_allclose(found[name].mean, values.mean(axis=others), rtol=1e-6)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_hooks_go_where_the_loop_fails_and_what_was_recorded_stays(network: Any, tmp_path: Path) -> None:
    def failing_loop() -> None:
        with recording(network, tmp_path / "s.zarr"):
            network(samples(5))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_loop()
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert ss.reduce(tmp_path / "s.zarr")["up"].rows == 5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_other_precisions_are_recorded_as_they_are(tmp_path: Path, dtype: str) -> None:
    class Idle(nn.Linear):
        def forward(self, _: Any) -> None:  # torch multiplies no float8 on a processor
            pass

    layer = Idle(4, 3)
    x = torch.randn(6, 2, 4).to(getattr(torch, dtype)).transpose(0, 1)
    with recording(layer, tmp_path / "s.zarr"):
        layer(x)
    stored = zarr.open_array(tmp_path / "s.zarr" / "Idle")[:]
    assert stored.tobytes() == x.contiguous().view(torch.uint8).numpy().tobytes()
    found = ss.reduce(tmp_path / "s.zarr")["Idle"]
    assert str(found.sums.space.dtype) == dtype
    exact = x.double().mean(dim=(0, 1)).numpy()
    np.testing.assert_allclose(found.mean, exact, rtol=1e-12)


def test_one_sample_without_its_axis_and_named_arguments(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 3))
    with recording(network, tmp_path / "s.zarr"):
        network[0](torch.ones(2, 8))
        network[0](input=torch.ones(4, 2, 8))
    assert ss.reduce(tmp_path / "s.zarr")["0"].rows == 5


def test_shapes_that_change_need_positions_as_rows(tmp_path: Path) -> None:
    layer = nn.Conv2d(2, 3, 1)
    said = "not all inputs of Conv2d were recorded, but only 1 row: .* sample shape .* use `positions_as_rows`"
    with pytest.raises(MismatchError, match=said), recording(layer, tmp_path / "a.zarr") as account:
        shapes = [layer(torch.ones(1, 2, extent, extent)).shape for extent in (4, 5)]
    assert [shape[-1] for shape in shapes] == [4, 5], "the loop runs on"
    assert not account["Conv2d"].recorded
    with recording(layer, tmp_path / "b.zarr", positions_as_rows=True):
        layer(torch.ones(1, 2, 4, 4))
        layer(3 * torch.ones(2, 2, 2, 2))
    found = ss.reduce(tmp_path / "b.zarr")["Conv2d"]
    assert (found.rows, found.mean.tolist()) == (24, [40 / 24, 40 / 24])


def test_kernels_are_recorded_where_taps_see_zeros_or_values(network: Any, tmp_path: Path) -> None:
    recorded(network, tmp_path, samples(3))
    found = {layer.name: layer.kernel for layer in select_layers(tmp_path / "s.zarr").layers}
    assert found == {
        "stem/0": ss.Kernel((3, 3), ss.Geometry((2, 2), (1,) * 4)),
        "shared": ss.Kernel((3, 3), ss.Geometry(pads=(1,) * 4), groups=4),
        "up": ss.Kernel((3, 3), ss.Geometry((2, 2), (1,) * 4, (), (1, 1)), transposed=True),
        "head/fc": ss.Kernel(),
    }
    reflecting, growing = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(2, 2, 3, stride=2)
    others = nn.ModuleDict({"reflecting": reflecting, "growing": growing})
    with recording(others, tmp_path / "others.zarr"):
        reflecting(torch.ones(1, 2, 5, 5))
        growing(torch.ones(1, 2, 5, 5), output_size=(12, 12))
    assert {layer.name: layer.kernel for layer in select_layers(tmp_path / "others.zarr").layers} == {
        "reflecting": None,
        "growing": ss.Kernel((3, 3), ss.Geometry((2, 2), output_padding=(1, 1)), transposed=True),
    }
    with pytest.raises(UsageError, match=r"layer reflecting: `taps` cannot be counted, because the kernel of"):
        ss.reduce(tmp_path / "others.zarr", layers=[ss.LayerRule("*", statistics=("taps",))])


def test_measuring_gives_the_bits_of_recording_and_running(network: Any, tmp_path: Path) -> None:
    x, statistics = samples(), ["magnitude", "histogram", "taps"]
    recorded(network, tmp_path, x)
    config = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "statistics": statistics}
    expected = run(JobConfig.model_validate(config).job()).statistics
    with torch.no_grad(), measuring(network, statistics=statistics) as meter:
        for batch in x.split(7):
            network(batch)
    found = meter.statistics
    assert found.keys() == expected.keys()
    for layer, each in found.items():  # the shared module adds rows for each call: the same, in another order
        assert each.statistics == expected[layer].statistics
        assert each.rows == expected[layer].rows
    meter.save(tmp_path / "measured")
    apply_correctors(network, fake_quantized(network), tmp_path / "measured")
    network(x)
    assert meter.statistics["head/fc"].rows == len(x), "hooks must go with the block"


def test_layers_are_chosen_by_name(network: Any, tmp_path: Path) -> None:
    recorded(network, tmp_path, samples(), layers=["head/*"])
    assert [*ss.reduce(tmp_path / "s.zarr")] == ["head/fc"]
    with pytest.raises(UsageError, match="to record that match nothing; its layers are: stem/0, shared"):
        recorded(network, tmp_path / "other", samples(), layers=["nothing"])


def fake_quantized(network: Any, bits: int = 4) -> Any:
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for module in linear_modules(rounded).values():
            module.weight.copy_(torch.from_numpy(ss.fake_quantize(module.weight.numpy(), bits)))
    return rounded


def mean_outputs(network: Any, inputs: dict[str, list[Any]]) -> dict[str, Any]:
    """The mean output of each layer over the inputs that it is given."""
    found = {}
    with torch.no_grad():
        for name, module in linear_modules(network).items():
            y = torch.cat([copy.deepcopy(module).double()(x.double()) for x in inputs[name]])
            found[name] = y.mean(dim=[a for a in range(y.ndim) if a != 1]).numpy()
    return found


def test_mean_outputs_of_a_fake_quantised_copy_are_restored(network: Any, tmp_path: Path) -> None:
    x = samples()
    recorded(network, tmp_path, x)
    rounded = fake_quantized(network)
    inputs = inputs_of(network, x)
    wanted, before = mean_outputs(network, inputs), mean_outputs(rounded, inputs)
    outcomes = apply_correctors(network, rounded, run_out(tmp_path))
    assert [(each.layer, each.corrected) for each in outcomes] == [(name, True) for name in wanted]
    after = mean_outputs(rounded, inputs)
    for name, mean in wanted.items():
        assert np.abs(before[name] - mean).max() > 1e-3
        np.testing.assert_allclose(after[name], mean, atol=2e-6)
    assert rounded.shared.bias is not None


def test_modules_of_torch_ao_are_corrected(network: Any, tmp_path: Path) -> None:
    x = samples()
    recorded(network, tmp_path, x)
    out = run_out(tmp_path)
    layer = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2))
    layer[0].load_state_dict(network.stem[0].state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ao = torch.ao.quantization
        packed = torch.ao.nn.quantized.Conv2d(3, 8, 3, padding=1, stride=2)
        codes = torch.quantize_per_tensor(layer[0].weight.detach(), 0.05, 0, torch.qint8)
        packed.set_weight_bias(codes, layer[0].bias.detach())
        trained = torch.ao.nn.qat.Conv2d(3, 8, 3, padding=1, stride=2, qconfig=ao.get_default_qat_qconfig())
        trained.load_state_dict(network.stem[0].state_dict(), strict=False)
    single = nn.ModuleDict({"stem": layer})
    (outcome,) = apply_correctors(single, nn.ModuleDict({"stem": nn.Sequential(packed)}), out, other_weights=True)
    assert outcome.corrected
    inputs = torch.cat(inputs_of(network, x)["stem/0"]).double()
    conv = copy.deepcopy(layer[0]).double()
    with torch.no_grad():
        wanted = conv(inputs).mean(dim=(0, 2, 3))
        conv.weight.copy_(packed.weight().dequantize())
        conv.bias.copy_(packed.bias())
        np.testing.assert_allclose(conv(inputs).mean(dim=(0, 2, 3)).numpy(), wanted.numpy(), atol=2e-6)
    (outcome,) = apply_correctors(single, nn.ModuleDict({"stem": nn.Sequential(trained)}), out, other_weights=True)
    assert outcome.corrected


def test_linear_layers_of_torchao_are_corrected(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 16))
    x = torch.randn(50, 32) + 1
    with recording(network, tmp_path / "s.zarr"):
        network(x)
    rounded = copy.deepcopy(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(rounded, quantization.Int8WeightOnlyConfig())
    (outcome,) = apply_correctors(network, rounded, run_out(tmp_path))
    assert outcome.corrected
    with torch.no_grad():
        np.testing.assert_allclose(rounded(x).mean(dim=0).numpy(), network(x).mean(dim=0).numpy(), atol=1e-5)


def test_what_cannot_be_corrected_says_why(network: Any, tmp_path: Path) -> None:
    recorded(network, tmp_path, samples(), layers=["stem/*", "head/*", "up"])
    out = run_out(tmp_path, taps=False)
    rounded = fake_quantized(network)
    rounded.up = nn.Identity()
    with torch.no_grad():
        rounded.stem[0].weight.copy_(torch.randn_like(rounded.stem[0].weight))
    outcomes = {each.layer: each for each in apply_correctors(network, rounded, out)}
    reason = "the quantised model has no module of its name with a weight, and none of another name has its weight"
    assert outcomes["up"].reason == reason
    assert outcomes["shared"].reason == "no corrector: the run left none for it"
    assert outcomes["stem/0"].reason.startswith("the quantised weight is not close to its own")
    assert outcomes["head/fc"].corrected
    with pytest.raises(UsageError, match="holds no layer of the model"):
        apply_correctors(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)), out)


def test_a_copy_is_corrected_once_only_and_one_of_another_model_not_at_all(network: Any, tmp_path: Path) -> None:
    recorded(network, tmp_path, samples())
    out = run_out(tmp_path)
    quantized = fake_quantized(network)
    apply_correctors(network, quantized, out)
    before = quantized.head["fc"].bias.clone()
    with pytest.raises(UsageError, match="already been corrected"):
        apply_correctors(network, quantized, out)
    assert torch.equal(quantized.head["fc"].bias, before)
    with pytest.raises(MismatchError, match="no module was corrected"):
        apply_correctors(network, nn.Sequential(nn.Linear(6, 5)), out)
