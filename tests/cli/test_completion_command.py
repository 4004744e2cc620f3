"""The script of `streamstats completion`, run by a real shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from streamstats.cli import main

COMPLETE = """
source ./script
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
$(complete -p streamstats | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script for bash, and with files and folders to complete."""
    made = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as inside, (made / "script").open("w") as script:
        inside.setattr("sys.stdout", script)
        assert main(["completion", "bash"]) == 0
    for name in ("run.yaml", "rune.npy", "model.onnx"):
        (made / name).touch()
    for name in ("out", "outer"):
        (made / name).mkdir()
    return made


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ru",), {"run"}),
        (("re",), {"record", "report"}),
        (("run", "--re"), {"--restart", "--refine"}),
        (("run", "run"), {"run.yaml", "rune.npy"}),
        (("inspect", "ou"), {"out", "outer"}),
        (("inspect", "mo"), {""}),
        (("record", "mo"), {"model.onnx"}),
        (("record", "model.onnx", "--samples", "ru"), {"run.yaml", "rune.npy"}),
        (("correct", "model.onnx", "--correctors", "ou"), {"out", "outer"}),
        (("export", "out", "--format", "i"), {"imatrix"}),
        (("token", "ro"), {"rotate"}),
    ],
    ids=lambda given: " ".join(sorted(given) if isinstance(given, set) else given),
)
def test_bash_completes_commands_options_choices_and_paths(
    folder: Path, words: tuple[str, ...], expected: set[str]
) -> None:
    command = ["bash", "--norc", "-c", COMPLETE, "bash", "streamstats", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=30, check=True)
    assert set(done.stdout.splitlines()) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "restart" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, timeout=30, check=True)
