"""What a configuration takes from the environment and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stores import build_store, samples

from streamstats.cli import main
from streamstats.config import load_config
from streamstats.errors import UsageError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_variables_are_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RUN": "17", "THREADS": "3", "GLOB": "block*"}.items():
        monkeypatch.setenv(name, value)
    text = """
source: "data/run-${RUN}.zarr"
output: "$${RUN} costs ${RUN}"
layers: [{match: "${GLOB}"}]
cluster: {threads: "${THREADS}"}
"""
    config = load_config(written(tmp_path, text))
    assert (config.source, config.output) == ("data/run-17.zarr", "${RUN} costs 17")
    assert config.layers is not None
    assert config.layers[0].match == "block*"
    assert config.cluster.threads == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "source: ${NOWHERE}\noutput: o",
            "job.yaml: `source` needs the environment variable NOWHERE, which is not set",
        ),
        ("source: s\noutput: o\nlayers: [{match: '${NO}'}]", r"job.yaml: `layers\[0\].match` needs the environment"),
        ("source: '${}'\noutput: o", r"`source` has \$\{\}; expected the name of an environment variable"),
        ("source: '${A:-b}'\noutput: o", r"`source` has \$\{A:-b\}; expected the name"),
    ],
)
def test_variables_that_are_not_set_are_named_with_their_key(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        load_config(written(tmp_path, text))


def test_a_key_that_is_replaced_needs_no_variable(tmp_path: Path) -> None:
    path = written(tmp_path, "source: ${NOWHERE}\noutput: out\ncluster: {threads: '${NO}'}")
    config = load_config(path, ["source=s.zarr", "cluster.threads=2"])
    assert (config.source, config.cluster.threads) == ("s.zarr", 2)
    with pytest.raises(UsageError, match=r"`cluster\.threads` needs the environment variable NO"):
        load_config(path, ["source=s.zarr"])


def test_rows_without_an_end_need_no_quotes_and_rows_without_a_number_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "source: s.zarr\noutput: out")
    assert load_config(path, ["rows=950:"]).wanted_rows == (950, None)
    assert load_config(path, ["rows='950:'"]).wanted_rows == (950, None)
    assert load_config(path, ["rows=null"]).wanted_rows is None
    with pytest.raises(UsageError, match="`rows` is ':'; expected START:STOP, as in 0:1000"):
        load_config(path, ["rows=:"])
    monkeypatch.setenv("FROM", "950:")
    assert load_config(written(tmp_path, "source: s.zarr\noutput: out\nrows: ${FROM}")).wanted_rows == (950, None)


@pytest.mark.parametrize("nothing", ["", "  "])
def test_no_value_is_not_taken_for_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing: str) -> None:
    path = written(tmp_path, "source: s.zarr\noutput: out\nrows: ${FROM}")
    with pytest.raises(UsageError, match=r"--set gives `rows` no value; expected KEY=VALUE, such as .*, or rows=null"):
        load_config(path, [f"rows={nothing}"])
    monkeypatch.setenv("FROM", nothing)
    with pytest.raises(UsageError, match="`rows` needs the environment variable FROM, which is empty; set it or"):
        load_config(path)


def test_a_key_that_is_set_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "source: s.zarr\noutput: out")
    with pytest.raises(UsageError, match="--set gives `memory` more than once; it takes one value"):
        load_config(path, ["memory=1GiB", "rows=0:5", "memory=2GiB"])


def test_settings_replace_keys_at_any_depth(tmp_path: Path) -> None:
    path = written(tmp_path, "source: s.zarr\noutput: out\ncluster: {threads: 1}\nmemory: 1GiB")
    settings = ["cluster.threads=4", "memory=2GiB", "statistics=[spread, squares]", "output=other=out"]
    config = load_config(path, settings)
    assert (config.cluster.threads, config.output) == (4, "other=out")
    assert config.job().memory == 2**31
    assert [*config.statistics] == ["spread", "squares"]
    for wrong, expected in {
        "memory": "--set is 'memory'; expected KEY=VALUE",
        ".x=1": "expected KEY=VALUE",
        "source.x=1": "`source` is 's.zarr' and holds no keys; set it as a whole: source=VALUE",
        "memory=[": "is not valid YAML",
        "nonsense=1": "unknown key `nonsense`",
    }.items():
        with pytest.raises(UsageError) as caught:
            load_config(path, [wrong])
        assert expected in str(caught.value)


def test_commands_take_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build_store(tmp_path / "s.zarr", {"a": samples(4, 3), "b": samples(4, 3)})
    path = written(tmp_path, f"source: nowhere\noutput: {tmp_path / 'out'}")
    options = ["--set", f"source={store}", "--set", "layers=[{match: b}]"]
    assert main(["run", str(path), *options, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["layers"]) == ["b"]
    assert main(["verify", str(path), *options]) == 0


def test_an_error_that_nobody_expected_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def odd(*_: object) -> None:
        raise LookupError("no such\nthing")

    monkeypatch.setattr("streamstats.config.load_config", odd)
    assert main(["run", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("streamstats: unexpected LookupError: no such; please report this as a bug")
    assert said.count("\n") == 1
    monkeypatch.setenv("STREAMSTATS_TRACEBACK", "1")
    with pytest.raises(LookupError):
        main(["run", str(tmp_path)])
