"""A mistyped word gets one line that names the word that may have been meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import zarr

from streamstats.cli import main
from streamstats.cli.parser import make_parser

CONFIG = "source: calibration.zarr\noutput: out\n"
MISTYPED = {
    "a command": ("rnu c.yaml", "", "there is no command rnu; see: streamstats --help; did you mean run?"),
    "an option": ("run c.yaml --restrat", "", "see: streamstats run --help; did you mean --restart?"),
    "an option before a required one": ("ranges out --metod mse", "", "did you mean --method?"),
    "an option with a value": ("run c.yaml --sett=memory=1GiB", "", "; did you mean --set?"),
    "a format": ("export out --format onxruntime -o f", "", "did you mean onnxruntime?"),
    "a method": ("ranges out --method pecentile", "", "did you mean percentile?"),
    "another word for a choice": ("token create ann", "", "of new, list, rotate, revoke; did you mean new?"),
    "another word for another choice": ("token delete ann", "", "; did you mean revoke?"),
    "an argument too many": ("status out more", "", "unexpected: more; see: streamstats status --help"),
    "a key": ("run c.yaml", "memry: 1GiB\n", "unknown key `memry`; expected one of source, "),
    "a key of --set": ("run c.yaml --set cluster.thread=2", "", "; did you mean threads?"),
    "a choice of a key": ("run c.yaml", "nonfinite: skipp\n", "; did you mean skip?"),
    "a statistic": ("run c.yaml", "statistics: [histgram]\n", "; did you mean histogram?"),
    "a layer": (
        "run c.yaml",
        "layers: [{match: block1/cnov}]\n",
        "has block1/conv; did you mean block1/conv?",
    ),
    "a layer of an output": ("inspect out block1/cnov", "", "it has block1/conv; did you mean block1/conv?"),
    "a layer of ranges": ("ranges out --method minmax --layers block1/cnov", "", "; did you mean block1/conv?"),
    "a layer of a comparison": ("compare out out --layers block1/cnov", "", "; did you mean block1/conv?"),
    "layers to forget": ("forget c.yaml --rows 0:1 --layers block1/cnov", "", "; did you mean block1/conv?"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a configuration and an output."""
    made = tmp_path_factory.mktemp("mistyped")
    array = zarr.open_group(made / "calibration.zarr", mode="w").create_array("block1/conv", shape=(4, 3), dtype="f4")
    array[...] = 1
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(made)
        Path("c.yaml").write_text(CONFIG)
        assert main(["run", "c.yaml", "--quiet"]) == 0
    return made


@pytest.mark.parametrize("case", MISTYPED)
def test_a_mistyped_word_gets_the_nearest_one(
    folder: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, more, expected = MISTYPED[case]
    monkeypatch.chdir(folder)
    Path("c.yaml").write_text(CONFIG + more)
    try:
        status: object = main(command.split())
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["xyzzy", "run --xyzzy"])
def test_a_word_that_is_near_to_none_gets_no_suggestion(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    error = capsys.readouterr().err.splitlines()[-1]
    assert "did you mean" not in error
    assert "--help" in error
    assert len(error) < 100


def test_a_layer_of_an_export_gets_the_nearest_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "names.yaml").write_text("block1/cnov: conv\n")
    names = str(folder / "names.yaml")
    assert main(["export", str(folder / "out"), "--format", "json", "-o", str(folder / "f"), "--names", names]) == 2
    assert "expected some of block1/conv; did you mean block1/conv?" in capsys.readouterr().err


def test_what_follows_two_dashes_and_values_with_spaces_are_no_options() -> None:
    assert make_parser().parse_args(["inspect", "--", "--out"]).output == "--out"
    assert make_parser().parse_args(["correct", "m", "-o", "o", "--score", "--a b"]).score == "--a b"
