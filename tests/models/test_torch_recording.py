"""torch: products that no module of its own makes are recorded, the loop computes what it would, nothing is skipped
in silence."""

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
from streamstats.errors import NonFiniteError, UsageError

torch = pytest.importorskip("torch", reason="`make models` tests with it")

from torch.nn import functional  # noqa: E402

from streamstats.models.torch import measuring, recording  # noqa: E402

nn: Any = torch.nn


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def stored(store: Path, layer: str) -> Any:
    return zarr.open_array(store / layer, mode="r")[:]


def same_bits(tensor: Any, array: Any) -> bool:
    return bool(tensor.detach().contiguous().numpy().tobytes() == array.tobytes())


# Attention


def attention_by_hand(module: Any, x: Any, padding: Any = None) -> Any:
    """What the output projection of `module` multiplies, float64: [N, T, E]."""
    n, t, e = x.shape
    projected = functional.linear(x.double(), module.in_proj_weight.double(), module.in_proj_bias.double())
    q, k, v = (each.view(n, t, module.num_heads, -1).transpose(1, 2) for each in projected.chunk(3, dim=-1))
    scores = q @ k.transpose(-1, -2) / (e / module.num_heads) ** 0.5
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, e)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "with gradients"])
def test_projections_of_attention_are_recorded_and_its_output_keeps_its_bits(
    tmp_path: Path, batch_first: bool, fast: bool
) -> None:
    network = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 4, batch_first=batch_first)}).eval()
    x = torch.randn(12, 7, 16) + 0.5
    given = x if batch_first else x.transpose(0, 1)
    with torch.set_grad_enabled(not fast):
        expected = network["attn"](given, given, given, need_weights=False)[0]
        with recording(network, tmp_path / "s.zarr") as account:
            found = network["attn"](given, given, given, need_weights=False)[0]
    assert torch.equal(found, expected)
    assert {name: (each.recorded, each.rows) for name, each in account.items()} == {
        "attn/in_proj": (True, 12),
        "attn/out_proj": (True, 12),
    }
    assert same_bits(x, stored(tmp_path / "s.zarr", "attn/in_proj"))
    wanted = attention_by_hand(network["attn"], x).detach().numpy()
    np.testing.assert_allclose(stored(tmp_path / "s.zarr", "attn/out_proj"), wanted, atol=1e-6)


def test_the_input_of_an_output_projection_has_the_bits_that_the_projection_multiplies(tmp_path: Path) -> None:
    network = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(5, 7, 16)
    with recording(network, tmp_path / "s.zarr"):
        y = network(x, x, x)[0]
    assert functional.linear.__module__ == "torch._C._nn"
    rows = torch.from_numpy(stored(tmp_path / "s.zarr", "out_proj")).transpose(0, 1).reshape(-1, 16)
    again = functional.linear(rows, network.out_proj.weight, network.out_proj.bias).view(7, 5, 16).transpose(0, 1)
    assert torch.equal(again, y)


@pytest.mark.parametrize("extents", [{}, {"kdim": 6, "vdim": 10}], ids=["packed", "of other extents"])
def test_attention_to_other_inputs_is_recorded_in_three_projections(tmp_path: Path, extents: dict[str, int]) -> None:
    network = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 4, **extents)})
    q, k, v = (
        torch.randn(3, 2, 16),
        torch.randn(5, 2, extents.get("kdim", 16)),
        torch.randn(5, 2, extents.get("vdim", 16)),
    )
    with recording(network, tmp_path / "s.zarr") as account:
        network["attn"](q, k, v)
    assert [name for name, each in account.items() if each.recorded] == [
        *(f"attn/{each}_proj" for each in "qkv"),
        "attn/out_proj",
    ]
    assert len(account) == 4
    for name, x in zip("qkv", (q, k, v), strict=True):
        assert same_bits(x.transpose(0, 1), stored(tmp_path / "s.zarr", f"attn/{name}_proj"))


def test_dropout_draws_the_same_numbers(tmp_path: Path) -> None:
    network = nn.MultiheadAttention(16, 4, dropout=0.5).train()
    x = torch.randn(5, 3, 16)
    torch.manual_seed(1)
    expected = network(x, x, x)[0]
    torch.manual_seed(1)
    with recording(network, tmp_path / "s.zarr"):
        found = network(x, x, x)[0]
    assert torch.equal(found, expected)
    assert found.requires_grad


def encoder() -> Any:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).eval()


def test_encoders_on_their_fast_path_are_recorded_and_keep_their_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = encoder(), torch.randn(12, 7, 16)
    fast, ran = torch._transformer_encoder_layer_fwd, []
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *given: ran.append(1) or fast(*given))
    with torch.no_grad():
        expected = network(x)
        with recording(network, tmp_path / "s.zarr") as account:
            assert torch.equal(network(x), expected)
    assert len(ran) == 4, "two layers, twice, on the fast path"
    assert [name for name, each in account.items() if each.rows == 12 and each.recorded] == [
        f"layers/{number}/{name}"
        for number in (0, 1)
        for name in ("self_attn/in_proj", "self_attn/out_proj", "linear1", "linear2")
    ]
    with torch.enable_grad():  # hooks of one's own, off the fast path
        seen: list[Any] = []
        network.layers[0].linear2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        network(x)
    assert same_bits(seen[0], stored(tmp_path / "s.zarr", "layers/0/linear2"))


@pytest.mark.parametrize("options", [{"activation": torch.tanh}, {"nhead": 1}], ids=["activation", "odd heads"])
def test_encoders_that_could_be_fast_and_are_not_are_recorded_once(tmp_path: Path, options: dict[str, Any]) -> None:
    layer = nn.TransformerEncoderLayer(
        **{"d_model": 16, "nhead": 4, "dim_feedforward": 32, "batch_first": True} | options
    )
    network, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(12, 7, 16)
    with torch.no_grad():
        expected = network(x)
        with recording(network, tmp_path / "s.zarr") as account:
            assert torch.equal(network(x), expected)
    assert {each.rows for each in account.values()} == {12}


def test_an_encoder_of_other_layers_is_heard(tmp_path: Path) -> None:
    class Own(nn.TransformerEncoderLayer):
        def __init__(self) -> None:
            super().__init__(16, 4, 32, batch_first=True)
            self.mix = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Any, *_: Any, **__: Any) -> Any:
            return torch.mm(x[0], mat2=self.mix)[None]

    network = nn.TransformerEncoder(Own(), 2, enable_nested_tensor=False).eval()
    with torch.no_grad(), recording(network, tmp_path / "s.zarr", layers=["*/mix"]) as account:
        network(torch.randn(1, 7, 16))
    assert {each.layer: each.rows for each in account.recorded} == {"layers/0/mix": 7, "layers/1/mix": 7}


def test_tokens_of_nested_tensors_are_recorded_without_padding(tmp_path: Path) -> None:
    network, x = encoder(), torch.randn(12, 7, 16)
    padding = torch.zeros(12, 7, dtype=torch.bool)
    padding[::2, 5:] = True
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        expected = network(x, src_key_padding_mask=padding)
        with recording(network, tmp_path / "s.zarr"):
            found = network(x, src_key_padding_mask=padding)
    assert torch.equal(found, expected)
    assert not expected[0, 5:].any(), "torch took the path of nested tensors"
    assert same_bits(x[~padding], stored(tmp_path / "s.zarr", "layers/0/self_attn/in_proj"))
    wanted = attention_by_hand(network.layers[0].self_attn, x, padding)[~padding].detach().numpy()
    np.testing.assert_allclose(stored(tmp_path / "s.zarr", "layers/0/self_attn/out_proj"), wanted, atol=1e-6)


def test_nested_inputs_of_a_module_are_recorded_by_their_tokens(tmp_path: Path) -> None:
    layer = nn.Linear(4, 3)
    parts = [torch.randn(2, 4), torch.randn(5, 4)]
    with warnings.catch_warnings(), recording(layer, tmp_path / "s.zarr"):
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        layer(torch.nested.nested_tensor(parts))
    assert same_bits(torch.cat(parts), stored(tmp_path / "s.zarr", "Linear"))


def test_another_model_in_the_loop_keeps_its_bits_and_is_not_recorded(tmp_path: Path) -> None:
    network, other, x = encoder(), encoder(), torch.randn(3, 7, 16)
    with torch.no_grad():
        expected = other(x)
        with recording(network, tmp_path / "s.zarr") as account:
            network(x)
            assert torch.equal(other(x), expected)
    assert {each.rows for each in account.values()} == {3}
    assert "forward" not in vars(network.layers[0])
    assert nn.MultiheadAttention.forward.__module__ == "torch.nn.modules.activation"


# Products with parameters


class Conv1D(nn.Module):  # type: ignore[misc]
    """The one of transformers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Any) -> Any:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Loose(nn.Module):  # type: ignore[misc]
    """Parameters that are multiplied without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 5))
        self.kernel = nn.Parameter(torch.randn(3, 5, 3))
        self.experts = nn.Parameter(torch.randn(3, 8, 5))
        self.position = nn.Parameter(torch.randn(7, 4))
        self.tied = nn.Embedding(9, 5)

    def forward(self, x: Any) -> Any:
        x = functional.linear(x + self.position, self.a)
        y = x @ self.b
        functional.conv1d(y.transpose(1, 2), self.kernel, padding=1, stride=2)
        functional.linear(y[0], self.experts[0])
        functional.linear(y[1], self.experts[2])
        return y @ self.tied.weight.t()


def test_conv1d_is_recorded_with_its_samples(tmp_path: Path) -> None:
    network, x = nn.Sequential(Conv1D(4, 6), nn.GELU(), Conv1D(6, 2)), torch.randn(3, 7, 4)
    with recording(network, tmp_path / "s.zarr"):
        network(x)
    assert same_bits(x, stored(tmp_path / "s.zarr", "0"))
    assert stored(tmp_path / "s.zarr", "2").shape == (3, 7, 6)


@pytest.mark.parametrize("inference", [True, False])
def test_parameters_that_functions_multiply_by_are_layers(tmp_path: Path, inference: bool) -> None:
    network, x = Loose(), torch.randn(2, 7, 4)
    expected = "1 weight of the model skipped: experts/1 .never called"
    with (
        torch.inference_mode(inference),
        pytest.warns(UserWarning, match=expected),
        recording(network, tmp_path / "s.zarr") as account,
    ):
        network(x)
    a = functional.linear(x + network.position, network.a)
    y = a @ network.b
    for name, wanted in {
        "a": x + network.position,
        "b": a,
        "kernel": y.transpose(1, 2),
        "experts/0": y[0],
        "experts/2": y[1],
        "tied/weight": y,
    }.items():
        assert same_bits(wanted, stored(tmp_path / "s.zarr", name)), name
        assert account[name].recorded
    assert account["position"].reason == "no channels are multiplied by it"
    kernels = {layer.name: layer.kernel for layer in select_layers(tmp_path / "s.zarr").layers}
    assert kernels["kernel"] == ss.Kernel((3,), ss.Geometry((2,), (1, 1)))


class Experts(nn.Module):  # type: ignore[misc]
    """A stack of weights [experts, outputs, inputs], and rows in order of their experts."""

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.stack, self.grouped = nn.Parameter(torch.randn(4, 8, 16, dtype=torch.bfloat16)), grouped

    def forward(self, x: Any, ends: Any = None) -> Any:
        weights = self.stack.transpose(1, 2)
        return functional.grouped_mm(x, weights, offs=ends) if self.grouped else torch.bmm(x, weights)


def test_each_expert_of_a_stack_is_a_layer(tmp_path: Path) -> None:
    network, x = Experts(grouped=True), torch.randn(10, 16).bfloat16()
    ends = torch.tensor([3, 4, 4, 10], dtype=torch.int32)
    said = "1 weight of the model skipped: stack/2 .called with empty inputs only"
    with torch.no_grad(), pytest.warns(UserWarning, match=said), recording(network, tmp_path / "s.zarr") as account:
        network(x, ends)
    assert {name: each.rows for name, each in account.items()} == {
        "stack/0": 3,
        "stack/1": 1,
        "stack/2": 0,
        "stack/3": 6,
    }
    assert same_bits(x[4:].view(torch.int16), stored(tmp_path / "s.zarr", "stack/3"))


def test_each_expert_of_a_batch_is_a_layer(tmp_path: Path) -> None:
    network, x = Experts(grouped=False), torch.randn(4, 5, 16).bfloat16()
    with torch.no_grad(), recording(network, tmp_path / "s.zarr"):
        network(x)
    for number in range(4):
        assert same_bits(x[number].view(torch.int16), stored(tmp_path / "s.zarr", f"stack/{number}"))


@pytest.mark.parametrize("norm", ["parametrizations.weight_norm", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_modules_that_compute_their_weight_are_recorded_once(tmp_path: Path, norm: str) -> None:
    normed = nn.utils.parametrizations.weight_norm if "." in norm else nn.utils.weight_norm
    network, x = nn.Sequential(normed(nn.Linear(4, 3)), nn.Linear(3, 2)), torch.randn(5, 4)
    with recording(network, tmp_path / "s.zarr") as account:
        network(x)
    assert [(name, each.rows) for name, each in account.items()] == [("0", 5), ("1", 5)]
    assert same_bits(x, stored(tmp_path / "s.zarr", "0"))


def test_inputs_that_the_model_overwrites_are_recorded_as_they_were(tmp_path: Path) -> None:
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    given = x.clone()
    with recording(layer, tmp_path / "s.zarr"):
        layer(given)
        given.zero_()
    assert same_bits(x, stored(tmp_path / "s.zarr", "Linear"))


def test_a_module_that_pads_by_itself_is_recorded_once(tmp_path: Path) -> None:
    layer = nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect")
    x = torch.randn(4, 2, 6)
    with recording(layer, tmp_path / "s.zarr"):
        layer(x)
    assert same_bits(x, stored(tmp_path / "s.zarr", "Conv1d"))


def test_modules_that_were_compiled_before_are_recorded(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(12, 16)
    compiled = torch.compile(network, backend="eager")
    with torch.no_grad():
        expected = compiled(x)
        with recording(compiled, tmp_path / "s.zarr") as account:
            assert torch.equal(compiled(x), expected)
    assert [*account] == ["0", "2"]
    assert same_bits(x, stored(tmp_path / "s.zarr", "0"))


# The account


class Everything(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(9, 4), nn.LSTM(4, 6, batch_first=True)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.mixed = nn.Parameter(torch.randn(6, 6))

    def forward(self, ids: Any) -> Any:
        y, _ = self.lstm(self.embed(ids))
        y = self.experts[0](y)
        self.experts[1](y[:0])
        return torch.einsum("nti,oi->nto", y, self.mixed)


def test_every_weight_is_in_the_account_and_what_was_skipped_in_a_warning(tmp_path: Path) -> None:
    network = Everything()
    said = (
        r"5 weights of the model skipped: experts/1 \(called with empty inputs only\); "
        r"experts/2 \(never called\); "
        r"mixed \(the parameter \[6, 6\] of a Everything, which is no linear module; seen only in einsum\); "
        r"lstm/weight_ih_l0, lstm/weight_hh_l0 \(recurrent: "
    )
    with pytest.warns(UserWarning, match=said) as warned, recording(network, tmp_path / "s.zarr") as account:
        network(torch.randint(0, 9, (2, 5)))
    assert warned[0].filename == __file__, "it points to the line of the user"
    matrices = {name.removesuffix(".weight").replace(".", "/") for name, p in network.named_parameters() if p.ndim > 1}
    assert {name.removesuffix("/weight") for name in account} == matrices
    assert [each.layer for each in account.recorded] == ["experts/0"]
    assert "experts/0 (Linear): 2 rows" in repr(account)
    assert account["embed/weight"].document() == {
        "layer": "embed/weight",
        "operator": "Embedding",
        "recorded": False,
        "rows": 0,
        "reason": "a table of rows to look up; it multiplies nothing",
        "skipped": False,
    }


def test_what_was_not_asked_for_is_no_warning_and_measuring_has_an_account() -> None:
    network = Everything()
    with measuring(network, layers=["experts/0"]) as meter:
        network(torch.randint(0, 9, (2, 5)))
    assert [*meter.statistics] == ["experts/0"]
    assert [each.layer for each in meter.account.recorded] == ["experts/0"]
    assert meter.account["experts/1"].reason == "not among the `layers` to record"


def test_what_cannot_be_recorded_is_named_at_the_end_and_the_loop_runs_on(tmp_path: Path) -> None:
    network = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
    x = torch.randn(4, 3)
    bad = x.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="only 4 rows: layer a, row 6"), measuring(network) as meter:
        ran = [(network["a"](each), network["b"](x)) for each in (x, bad, x)]
    assert len(ran) == 3
    assert {name: each.rows for name, each in meter.statistics.items()} == {"a": 4, "b": 12}
    assert meter.account["b"].recorded
    assert not meter.account["a"].recorded
    complex_layer = nn.Linear(3, 2, dtype=torch.complex64)
    with pytest.raises(UsageError, match="complex64"), recording(complex_layer, tmp_path / "s.zarr"):
        complex_layer(x.to(torch.complex64))


def test_a_copy_made_inside_the_block_is_not_recorded(tmp_path: Path) -> None:
    network, x = encoder(), torch.randn(3, 7, 16)
    with torch.no_grad(), recording(network, tmp_path / "s.zarr"):
        network(x)
        copy.deepcopy(network)(x)
    assert len(stored(tmp_path / "s.zarr", "layers/0/linear1")) == 3
