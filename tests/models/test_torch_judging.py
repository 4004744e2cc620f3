"""torch: quantised copies are judged on held-out batches, corrections that do harm are left out, and a worse model is
refused on request; the reference is the forward of torch in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from told import Told

import streamstats as ss
from streamstats.errors import HarmError, MismatchError, UsageError
from streamstats.models.harm import HARMFUL
from streamstats.models.judgement import CORRECTED, FLOAT, UNCORRECTED
from streamstats.report import page

torch = pytest.importorskip("torch", reason="`make models` tests with it")

from streamstats.models.torch import HeldOut, Iterative, correct, measuring  # noqa: E402
from streamstats.models.torch.judging import OTHER_BIAS, UNHEARD, UNLIKE  # noqa: E402

nn: Any = torch.nn


class Network(nn.Module):  # type: ignore[misc]
    """A convolution with a norm, a layer that runs twice, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shared, self.fc = nn.Linear(6, 6, bias=False), nn.Linear(6, 4)
        with torch.no_grad():
            self.bn.weight.copy_(torch.rand(6) + 0.5)
            self.bn.bias.copy_(torch.randn(6))
            self.bn.running_mean.copy_(torch.randn(6) * 0.3)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.fc(self.shared(torch.relu(self.shared(y))))


@pytest.fixture
def network() -> Any:
    torch.manual_seed(3)
    return Network().eval().requires_grad_(False)


def batches(seed: int, count: int = 64) -> list[Any]:
    drawn = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + 0.5
    return list(drawn.split(24))


def folded_and_rounded(network: Any, bits: int = 3) -> Any:
    """A copy with its norm folded away and its weights on a few levels."""
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(network.conv, network.bn)
    found = copy.deepcopy(network)
    found.conv, found.bn = fused.requires_grad_(False), nn.Identity()
    for layer in (found.conv, found.shared, found.fc):
        layer.weight.copy_(torch.from_numpy(ss.fake_quantize(layer.weight.numpy(), bits)))
    return found


def out(network: Any, folder: Path, *, spoiled: bool = False, statistics: tuple[str, ...] = ()) -> Path:
    """What measuring leaves; if `spoiled`, `shared` has means that are far off."""
    with measuring(network, statistics=statistics, layers=["conv", "fc"] if spoiled else None) as meter:
        for batch in batches(1):
            network(batch)
    if spoiled:
        meter.append("shared", np.full((64, 6), -30.0, np.float32), kernel=ss.Kernel())
    meter.save(folder / "out")
    return folder / "out"


def layer_outputs(network: Any, seed: int = 2) -> dict[str, Any]:
    """Layer → its outputs over the batches of this `seed`, float64[values, channels], by hooks of the test's own."""
    found: dict[str, list[Any]] = {"conv": [], "shared": [], "fc": []}
    modules = {"conv": network.bn, "shared": network.shared, "fc": network.fc}
    hooks = [
        module.register_forward_hook(lambda _m, _g, y, n=name: found[n].append(y.double()))
        for name, module in modules.items()
    ]
    outputs = torch.cat([network(batch) for batch in batches(seed)])
    for hook in hooks:
        hook.remove()
    rows = {name: torch.cat([y.movedim(1, -1).reshape(-1, y.shape[1]) for y in ys]) for name, ys in found.items()}
    return {name: each.numpy() for name, each in (rows | {"network": outputs.double()}).items()}


def test_layers_and_outputs_are_judged_as_torch_computes_them(network: Any, tmp_path: Path) -> None:
    quantized = folded_and_rounded(network)
    wanted, before = layer_outputs(network), layer_outputs(quantized)
    kept = copy.deepcopy(quantized.state_dict())
    labels = [torch.from_numpy(wanted["network"].argmax(1))[at : at + 24] for at in range(0, 64, 24)]
    found = correct(
        network,
        quantized,
        out(network, tmp_path),
        HeldOut(
            list(zip(batches(2), labels, strict=True)), lambda model, batch: model(batch[0]), lambda batch: batch[1]
        ),
    )
    assert {each.layer: each.outcome for each in found.layers} == dict.fromkeys(("conv", "shared", "fc"), "corrected")
    after, judgement = layer_outputs(quantized), found.judgement
    for model, mine in ((UNCORRECTED, before), (CORRECTED, after)):
        for layer in ("conv", "shared", "fc"):
            error = mine[layer] - wanted[layer]
            quality = judgement.layers[layer][model]
            np.testing.assert_allclose(quality.shift, error.mean(0), atol=1e-6)
            np.testing.assert_allclose(quality.noise, np.square(error).mean(), rtol=1e-5)
        error = mine["network"] - wanted["network"]
        sqnr = 10 * np.log10(np.square(wanted["network"]).mean() / np.square(error).mean())
        assert judgement.effects[model].sqnr == pytest.approx(sqnr, abs=1e-4)
        assert judgement.accuracy[model] == np.mean(mine["network"].argmax(1) == wanted["network"].argmax(1))
    assert judgement.accuracy[FLOAT] == 1
    assert judgement.gains[CORRECTED].decibels > 1, "the correction must matter"
    same = {name for name, value in quantized.state_dict().items() if name in kept and torch.equal(value, kept[name])}
    assert {*quantized.state_dict()} - same == {"conv.bias", "shared.bias", "fc.bias"}, "judging changes nothing else"


def test_a_correction_that_does_harm_is_left_out(network: Any, tmp_path: Path) -> None:
    correctors, quantized = out(network, tmp_path, spoiled=True), folded_and_rounded(network)
    before = quantized.fc.bias.clone()
    found = correct(network, quantized, correctors, HeldOut(batches(2)), do_no_harm=True)
    outcomes = {each.layer: (each.outcome, each.reason) for each in found.layers}
    assert outcomes["shared"] == ("left out", HARMFUL)
    assert outcomes["fc"] == ("corrected", "")
    assert quantized.shared.bias is None
    assert not torch.equal(quantized.fc.bias, before)
    assert not found.judgement.worse(CORRECTED)


def test_a_worse_model_is_refused_on_request_and_is_not_changed(network: Any, tmp_path: Path) -> None:
    correctors, quantized = out(network, tmp_path, spoiled=True), folded_and_rounded(network)
    before = {name: value.clone() for name, value in quantized.state_dict().items()}
    with pytest.raises(HarmError, match=r"worse than the quantised one: -.* was not changed; correct layer by layer"):
        correct(network, quantized, correctors, HeldOut(batches(2)), fail_if_worse=True)
    assert quantized.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in quantized.state_dict().items())
    found = correct(network, quantized, correctors, HeldOut(batches(2)))
    assert found.judgement.worse(CORRECTED)


def test_batches_that_change_or_end_are_refused(network: Any, tmp_path: Path) -> None:
    correctors, quantized = out(network, tmp_path), folded_and_rounded(network)
    data = torch.utils.data.TensorDataset(torch.cat(batches(2)))
    shuffled = torch.utils.data.DataLoader(data, batch_size=24, shuffle=True)
    with pytest.raises(UsageError, match=r"the held-out batch 0 differs from that of the first pass"):
        correct(network, quantized, correctors, HeldOut(shuffled))
    with pytest.raises(UsageError, match=r"are a list_iterator, which ends after one pass; give a list"):
        correct(network, quantized, correctors, HeldOut(iter(batches(2))))
    with pytest.raises(UsageError, match="there are no held-out batches"):
        correct(network, quantized, correctors, HeldOut([]))
    with pytest.raises(MismatchError, match=r"the labels are float32\[24\]"):
        correct(network, quantized, correctors, HeldOut(batches(2), labels=lambda batch: torch.ones(len(batch))))
    with pytest.raises(UsageError, match="the float model is in training mode"):
        correct(copy.deepcopy(network).train(), quantized, correctors, HeldOut(batches(2)))
    found = correct(network, quantized, correctors, HeldOut(torch.utils.data.DataLoader(data, batch_size=24)))
    assert any(each.corrected for each in found.layers)


def test_layers_that_cannot_be_judged_say_why_and_are_corrected(network: Any, tmp_path: Path) -> None:
    quantized = folded_and_rounded(network)
    quantized.fc.bias += 1
    found = correct(network, quantized, out(network, tmp_path), HeldOut(batches(2)))
    assert found.judgement.unjudged == {"fc": OTHER_BIAS}
    assert {each.layer for each in found.layers if each.corrected} == {"conv", "shared", "fc"}


def shifts(network: Any, quantized: Any, seed: int) -> dict[str, float]:
    """Layer → the largest shift of its mean outputs over the batches of this `seed`."""
    wanted, mine = layer_outputs(network, seed), layer_outputs(quantized, seed)
    return {name: float(np.abs((mine[name] - wanted[name]).mean(0)).max()) for name in wanted}


def test_layer_by_layer_every_layer_has_the_mean_outputs_of_the_float_model(network: Any, tmp_path: Path) -> None:
    correctors, quantized = out(network, tmp_path, statistics=("taps",)), folded_and_rounded(network)
    once = copy.deepcopy(quantized)
    correct(network, once, correctors)
    assert max(shifts(network, once, seed=1).values()) > 1e-3, "in one pass, inputs are those of the float model"
    found = correct(network, quantized, correctors, HeldOut(batches(2)), iterative=Iterative(batches(1)))
    after = shifts(network, quantized, seed=1)
    del after["shared"]  # its second input depends on its own correction
    assert max(after.values()) < 2e-6
    assert [*found.judgement.outputs] == [UNCORRECTED, "one pass", CORRECTED]
    assert found.provenance()["iterative"] == "full"


def test_the_form_change_takes_the_inputs_of_the_corrected_model(network: Any, tmp_path: Path) -> None:
    correctors, quantized = out(network, tmp_path, statistics=("taps",)), folded_and_rounded(network)
    found = correct(network, quantized, correctors, iterative=Iterative(batches(1), form="change"))
    terms = {each.layer: each.term for each in found.layers}
    seen: list[Any] = []
    hook = quantized.fc.register_forward_pre_hook(lambda _m, x: seen.append(x[0].double()))
    for batch in batches(1):
        quantized(batch)
    hook.remove()
    change = (network.fc.weight.double() - quantized.fc.weight.double()).numpy()
    np.testing.assert_allclose(terms["fc"], change @ torch.cat(seen).mean(0).numpy(), atol=1e-7)


def test_batches_that_were_not_recorded_are_refused(network: Any, tmp_path: Path) -> None:
    correctors, quantized = out(network, tmp_path), folded_and_rounded(network)
    with pytest.raises(UsageError, match="they give 5120 values per channel of layer conv, but 4096 were counted"):
        correct(network, quantized, correctors, iterative=Iterative(batches(1, 80)))
    with pytest.raises(UsageError, match=r"the recorded batches are a list_iterator, which ends after one pass"):
        correct(network, quantized, correctors, iterative=Iterative(iter(batches(1))))
    with pytest.raises(UsageError, match="the held-out batches are the recorded ones"):
        correct(network, quantized, correctors, HeldOut(given := batches(1)), iterative=Iterative(given))
    with pytest.raises(UsageError, match="the form is 'half'; expected one of full, change"):
        Iterative(batches(1), form="half")
    with pytest.raises(UsageError, match="judge on samples that were not recorded; give them, `held_out`"):
        correct(network, quantized, correctors, do_no_harm=True)
    assert quantized.shared.bias is None


@pytest.mark.parametrize(("repeated", "said"), [(0, []), (1, ["warning: 1 of 4 held-out batches are among the"])])
def test_held_out_batches_that_were_recorded_are_warned_of(
    network: Any, repeated: int, said: list[str], tmp_path: Path
) -> None:
    correctors, quantized = out(network, tmp_path), folded_and_rounded(network)
    held_out = [*batches(2), *batches(1)[:1]] if repeated else batches(2)
    told = Told()
    correct(network, quantized, correctors, HeldOut(held_out), iterative=Iterative(batches(1)), progress=told)
    assert [each.partition(" recorded ones")[0] for each in told.messages if "held-out batches are" in each] == said


class Expert(nn.Module):  # type: ignore[misc]
    """A layer that sees the positions that another one chooses, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert = nn.Linear(4, 4), nn.Linear(4, 4)
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Any, attention_mask: Any = None) -> Any:  # noqa: ARG002
        y = self.gate(x)
        chosen = y[..., 0] > 0
        y = y.masked_scatter(chosen[..., None], self.expert(y[chosen]))
        return {"y": y, "attended": self.attn(y, y, y, need_weights=False)[0]}


def test_masks_routed_positions_and_attention(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = Expert().eval().requires_grad_(False)
    given = [{"x": torch.randn(64, 5, 4), "attention_mask": torch.ones(64, 5, dtype=torch.int64)} for _ in range(3)]
    for batch in given:
        batch["attention_mask"][:, 3:] = 0
    chosen = ["gate", "expert", "attn/in_proj"]
    with measuring(network, layers=chosen, positions_as_rows=True, mask=None) as meter:
        for batch in given:
            network(**batch)
    meter.save(tmp_path / "out")
    quantized = copy.deepcopy(network)
    for weight in (quantized.gate.weight, quantized.expert.weight, quantized.attn.in_proj_weight):
        weight.copy_(torch.from_numpy(ss.fake_quantize(weight.numpy(), 3)))
    errors = [(quantized.gate(each["x"]) - network.gate(each["x"]))[:, :3].double() for each in given]
    found = correct(network, quantized, tmp_path / "out", HeldOut(given)).judgement
    assert found.unjudged == {"attn/in_proj": UNHEARD, "expert": UNLIKE}
    np.testing.assert_allclose(
        found.layers["gate"][UNCORRECTED].shift, torch.cat(errors).mean((0, 1)).numpy(), atol=1e-6
    )
    assert found.effects[CORRECTED].names == ("y", "attended")


def test_the_report_shows_the_judgement(network: Any, tmp_path: Path) -> None:
    correctors, quantized = out(network, tmp_path, spoiled=True), folded_and_rounded(network)
    found = correct(network, quantized, correctors, HeldOut(batches(2)))
    report = page.document(correctors, found)
    assert report["correction"]["conv"]["outcome"] == "corrected"
    assert report["about"]["model"] == "Network"
    html = page.page(report)
    assert "(`iterative`), leave out what does harm (`do_no_harm`)" in html
    assert "that of torch models is not estimated" in html
    assert "--" not in " ".join(report["advice"].values())


@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_exported_models_are_judged_in_their_graphs(network: Any, tmp_path: Path) -> None:
    flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    quantizers = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = quantizers.X86InductorQuantizer()
    quantizer.set_global(quantizers.get_default_x86_inductor_quantization_config())
    samples = torch.cat(batches(2))[:24]
    prepared = flow.prepare_pt2e(torch.export.export(network, (samples,)).module(), quantizer)
    prepared(samples)
    quantized = flow.convert_pt2e(prepared)
    nodes, before = len(quantized.graph.nodes), quantized(samples)
    how = Iterative(batches(1)[:2])
    with measuring(network, statistics=["taps"]) as meter:
        for batch in how.batches:
            network(batch)
    meter.save(tmp_path / "out")
    found = correct(network, quantized, tmp_path / "out", HeldOut([samples]), iterative=how)
    wanted, mine = (torch.cat([each(batch) for batch in how.batches]).double() for each in (network, quantized))
    np.testing.assert_allclose(mine.mean(0).numpy(), wanted.mean(0).numpy(), atol=2e-6)
    assert {each.layer: each.outcome for each in found.layers} == dict.fromkeys(("conv", "shared", "fc"), "corrected")
    assert len(quantized.graph.nodes) >= nodes
    assert not [node for node in quantized.graph.nodes if str(node.target).startswith("heard_")]
    after = quantized(samples)
    assert not torch.equal(before, after), "what is corrected must change the model"
    for name, outputs in ((UNCORRECTED, before), (CORRECTED, after)):
        error = (outputs - network(samples)).double()
        np.testing.assert_allclose(found.judgement.outputs[name].shift, error.mean(0).numpy(), atol=1e-6)
    shifts = found.judgement.layers["conv"]
    assert shifts[CORRECTED].size < 0.5 * shifts[UNCORRECTED].size
    quantized.graph.lint()
