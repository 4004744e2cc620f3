"""torch: padding is left out of what is recorded and measured, as the call of the model says."""

from __future__ import annotations

import warnings
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamstats as ss
from streamstats.errors import UsageError

torch = pytest.importorskip("torch", reason="`make models` tests with it")

from streamstats.models.torch import measuring, recording  # noqa: E402

nn: Any = torch.nn
N, T, C = 12, 5, 4


class Encoder(nn.Module):  # type: ignore[misc]
    """A layer over tokens, and one over the mean of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Linear(C, 6), nn.Linear(6, 2)

    def forward(self, ids: Any, attention_mask: Any = None, turned: bool = False) -> Any:  # noqa: ARG002
        x = ids.transpose(0, 1) if turned else ids
        return self.head(torch.relu(self.tokens(x)).mean(dim=0 if turned else 1))


@pytest.fixture
def encoder() -> Any:
    torch.manual_seed(0)
    return Encoder().eval()


def batch() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(T) < torch.randint(1, T + 1, (N, 1), generator=generator)
    return torch.where(mask[..., None], torch.randn(N, T, C, generator=generator), torch.tensor(float("nan"))), mask


def means(store: Path) -> dict[str, Any]:
    return {name: found.mean for name, found in ss.reduce(store, nonfinite="skip").items()}


@pytest.mark.parametrize("form", ["by name", "by place", "integers", "a function"])
@pytest.mark.parametrize("positions_as_rows", [False, True])
def test_what_the_mask_leaves_out_is_not_counted(
    encoder: Any, tmp_path: Path, form: str, positions_as_rows: bool
) -> None:
    x, mask = batch()
    options: dict[str, Any] = {"positions_as_rows": positions_as_rows}
    calls = {
        "by name": lambda: encoder(x, attention_mask=mask),
        "by place": lambda: encoder(x, mask),
        "integers": lambda: encoder(x, attention_mask=mask.to(torch.int64)),
        "a function": lambda: encoder(x),
    }
    if form == "a function":
        options["mask"] = lambda ids: ~torch.isnan(ids[..., 0])
    with recording(encoder, tmp_path / "s.zarr", **options):
        calls[form]()
    with measuring(encoder, nonfinite="skip", **options) as meter:
        calls[form]()
    found = ss.reduce(tmp_path / "s.zarr", layers=[ss.LayerRule("tokens")])["tokens"]  # padding is NaN
    np.testing.assert_allclose(found.mean, x.numpy()[mask.numpy()].astype("f8").mean(axis=0), rtol=1e-6)
    assert found.statistics == meter.statistics["tokens"].statistics
    assert found.masked == (None if positions_as_rows else (N * T - int(mask.sum()), N * T))
    assert ss.reduce(tmp_path / "s.zarr", nonfinite="skip")["head"].rows == N


FORMS = {
    "floats": lambda mask: mask.float(),
    "added": lambda mask: torch.where(mask, 0.0, -torch.inf),
    "least of half": lambda mask: torch.where(mask, 0.0, torch.finfo(torch.float16).min).half(),
    "scores": lambda mask: torch.where(mask, 0.0, -1e9)[:, None, None],
    "booleans of scores": lambda mask: mask[:, None, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_read_as_attention_reads_them(encoder: Any, form: str) -> None:
    x, mask = batch()
    named = UserDict(ids=x, attention_mask=FORMS[form](mask))  # as the tokenisers of transformers give them
    with measuring(encoder, layers=["tokens"]) as meter:  # padding is NaN
        encoder(**named)
    np.testing.assert_allclose(meter.statistics["tokens"].mean, x[mask].double().mean(0).numpy(), rtol=1e-6)
    left = N * T - int(mask.sum())
    assert meter.account.padding == f"{left} of {N * T} positions are padding, by attention_mask"
    assert repr(meter.account).endswith(meter.account.padding)


def test_lengths_may_change_with_their_masks(encoder: Any) -> None:
    x, mask = batch()
    with measuring(encoder, layers=["tokens"], positions_as_rows=True) as meter:
        for extent in (T, 3, 1):
            encoder(x[:, :extent], mask[:, :extent])
    kept = torch.cat([x[:, :extent][mask[:, :extent]] for extent in (T, 3, 1)]).double()
    assert meter.statistics["tokens"].rows == len(kept)
    np.testing.assert_allclose(meter.statistics["tokens"].mean, kept.mean(0).numpy(), rtol=1e-6)


class Translator(nn.Module):  # type: ignore[misc]
    """A layer of torch's encoder, whose mask is an argument, or is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(C, 2, 8, batch_first=True)

    def forward(self, src: Any, src_key_padding_mask: Any = None, lengths: Any = None, causal: bool = False) -> Any:
        if lengths is not None:
            src_key_padding_mask = torch.arange(T) >= lengths[:, None]
        scores = nn.Transformer.generate_square_subsequent_mask(T) if causal else None
        return self.layer(src, scores, src_key_padding_mask)


@pytest.mark.parametrize("kind", ["booleans", "floats"])
def test_masks_of_padding_are_true_where_nothing_counts(kind: str) -> None:
    (x, mask), network = batch(), Translator().eval()
    given = ~mask if kind == "booleans" else torch.where(mask, 0.0, -torch.inf)
    with torch.no_grad(), measuring(network) as meter:
        network(torch.nan_to_num(x), given)
    found = meter.statistics["layer/self_attn/in_proj"]
    np.testing.assert_allclose(found.mean, x[mask].double().mean(0).numpy(), rtol=1e-6)
    assert found.masked == (N * T - int(mask.sum()), N * T)


def test_masks_of_sources_are_not_those_of_targets() -> None:
    network = nn.Transformer(C, 2, 1, 1, 8, batch_first=True)
    x, mask = torch.randn(N, T, C), batch()[1]
    with (
        pytest.warns(UserWarning, match="whole positions of its samples out"),
        measuring(network, layers=["*decoder*"]) as meter,
    ):
        network(x, x, src_key_padding_mask=~mask)
    assert {each.masked for each in meter.statistics.values()} == {None}


def test_numbers_in_a_mask_of_padding_are_refused() -> None:
    x, network = torch.ones(N, T, C), Translator()
    said = "2 weights|3 weights|4 weights"
    with (
        pytest.warns(UserWarning, match=said),
        measuring(network),
        pytest.raises(UsageError, match=r"src_key_padding_mask holds 1\.0; expected booleans, or 0 and −inf"),
    ):
        network(x, torch.ones(N, T))


@pytest.mark.parametrize("grad", [True, False])  # without gradients, on the fast path
def test_masks_that_the_model_makes_itself_are_told_in_a_warning(grad: bool) -> None:
    (x, mask), network = batch(), Translator().eval()
    x = torch.nan_to_num(x)
    with torch.set_grad_enabled(grad):
        with pytest.warns(UserWarning, match="whole positions of its samples out.*give a function"), measuring(network):
            network(x, lengths=mask.sum(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with measuring(network):
                network(x, causal=True)
            with measuring(network, mask=None):
                network(x, lengths=mask.sum(1))
            with measuring(network, mask=lambda _src, lengths: torch.arange(T) < lengths[:, None]) as meter:
                network(x, lengths=mask.sum(1))
    assert meter.statistics["layer/linear2"].masked == (N * T - int(mask.sum()), N * T)


def test_layers_that_saw_nothing_say_how() -> None:
    class Calls(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.never, self.empty, self.padded, self.taken = (nn.Linear(C, C) for _ in range(4))

        def forward(self, x: Any, attention_mask: Any) -> Any:  # noqa: ARG002
            self.empty(x[:0])
            return self.padded(x) @ torch.mul(self.taken.weight, 2)

    with (
        pytest.warns(UserWarning, match="4 weights of the model skipped"),
        measuring(network := Calls().eval()) as meter,
    ):
        network(torch.ones(3, T, C), torch.zeros(3, T, dtype=torch.int64))
    assert {name: each.reason for name, each in meter.account.items()} == {
        "never": "never called",
        "empty": "called with empty inputs only",
        "padded": "called with positions that the mask leaves out only",
        "taken": "its module was never called; mul took its weight, out of reach",
    }


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_is_left_out_of_attention(batch_first: bool) -> None:
    class Attending(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(C, 2, batch_first=batch_first)

        def forward(self, x: Any, attention_mask: Any) -> Any:  # noqa: ARG002
            x = x if batch_first else x.transpose(0, 1)
            return self.attn(x, x, x)[0]

    x, mask = torch.randn(N, T, C), batch()[1]
    with torch.no_grad(), measuring(network := Attending().eval()) as meter:
        network(x, mask)
    for name in ("attn/in_proj", "attn/out_proj"):
        assert meter.statistics[name].masked == (N * T - int(mask.sum()), N * T)
    found = meter.statistics["attn/in_proj"].mean
    np.testing.assert_allclose(found, x[mask].double().mean(dim=0).numpy(), rtol=1e-6)


def test_masks_can_be_left_out(encoder: Any, tmp_path: Path) -> None:
    x, mask = batch()
    with recording(encoder, tmp_path / "s.zarr", mask=None):
        encoder(x, mask)
    assert ss.reduce(tmp_path / "s.zarr", nonfinite="skip")["tokens"].sums.nonfinite.any()


def test_layers_with_other_positions_are_named_in_a_warning(encoder: Any, tmp_path: Path) -> None:
    x, mask = batch()
    with (
        pytest.warns(UserWarning, match=r"not applied to tokens: the input of tokens has the positions \(5, 12\)"),
        recording(encoder, tmp_path / "s.zarr"),
    ):
        encoder(x, attention_mask=mask, turned=True)


def test_what_is_no_mask_is_refused(encoder: Any, tmp_path: Path) -> None:
    x, mask = batch()
    for wrong, said in {
        "of four axes": (
            mask[:, None, None].repeat(1, 2, 1, 1),
            r"has the shape \(12, 2, 1, 5\); expected \(samples, pos",
        ),
        "of small numbers": ((mask.float() - 1) * 3, "attention_mask holds -3.0; expected 1"),
        "of zeros": (
            torch.zeros(N, T),
            "the mask attention_mask holds floats that are all 0: it may be an",
        ),
        "of other numbers": (mask.long() * 3, "attention_mask holds 3; expected 1"),
    }.values():
        nothing = pytest.warns(UserWarning, match="2 weights of the model skipped: tokens, head")
        with nothing, recording(encoder, tmp_path / "s.zarr"), pytest.raises(UsageError, match=said):
            encoder(x, attention_mask=wrong)
    with (
        pytest.raises(UsageError, match="the mask is 'pads', but the arguments of the model are ids, attention_mask"),
        recording(encoder, tmp_path / "s.zarr", mask="pads"),
    ):
        pass


def test_a_mask_that_no_call_can_give_is_refused(encoder: Any, tmp_path: Path) -> None:
    x, mask = batch()
    with (
        pytest.raises(UsageError, match="the mask is of type Tensor; expected the name of an argument"),
        recording(encoder, tmp_path / "s.zarr", mask=mask),
    ):
        pass
    said = r"`mask` takes \(ids.*\), but the model is called with 1 argument by place and, by name, attention_mask"
    with pytest.raises(UsageError, match=said), recording(encoder, tmp_path / "s.zarr", mask=lambda ids: ids):
        encoder(x, attention_mask=mask)


def test_models_without_a_mask_are_recorded_without_a_word(tmp_path: Path) -> None:
    layer = nn.Linear(C, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with recording(layer, tmp_path / "s.zarr"):
            layer(torch.ones(3, 7, C))
    assert ss.reduce(tmp_path / "s.zarr")["Linear"].masked is None
