"""Every write is survivable: whatever system call fails, or is the last one, the old file is there or the new one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streamstats.jobs.status import status

FAULTS = '''
import builtins, errno, json, os, sys
from pathlib import Path
import numpy as np
from streamstats.jobs.run import reduce
from streamstats.storage import files
from streamstats.calibration.selection import select_layers
from streamstats.config import JobConfig
from streamstats.errors import OutputError
from streamstats.outputs.results import read_states, write_states

CALLS = ("open", "write", "fsync", "replace", "unlink", "close", "mkdir", "stat")
folder, mode = Path(sys.argv[1]), sys.argv[2]


class Faults:
    """Counts the system calls of saving; the `at`-th fails, or is where the process is killed, half of it done."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def reached(self):
        self.calls += 1
        return self.calls == self.at

    def happen(self):
        if mode == "kill":
            os._exit(9)
        raise OSError({"full": errno.ENOSPC, "broken": errno.EIO}[mode], "it was made to fail")

    def around(self, name, real):
        def call(*arguments, **options):
            if self.reached():
                if name == "replace" and mode == "kill" and self.at % 2:
                    real(*arguments, **options)  # killed after it
                self.happen()
            return real(*arguments, **options)
        return call

    def install(self):
        proxy = type("os", (), dict(vars(os)))
        for name in ("open", "fsync", "replace", "unlink", "close"):
            setattr(proxy, name, staticmethod(self.around(name, getattr(os, name))))
        files.os = proxy
        os.mkdir = self.around("mkdir", os.mkdir)
        faults = self

        class File:
            def __init__(self, path, how):
                if faults.reached():
                    faults.happen()
                self.file = builtins.open(path, how)
            def __enter__(self):
                return self
            def __exit__(self, *_):
                self.file.close()
            def write(self, content):
                if faults.reached():
                    self.file.write(content[: len(content) // 2])
                    self.file.flush()
                    faults.happen()
                return self.file.write(content)
            def flush(self):
                self.file.flush()
            def fileno(self):
                return self.file.fileno()

        files.open = File


store = folder / "s.zarr"
old = reduce(store, layers=())
layers = select_layers(store).layers
path = folder / "out/state/deep/conv.safetensors"
outcomes = []
new = {name: value for name, value in old.items()}
first = {name: type(value).empty(layer) for name, value, layer in zip(old, old.values(), layers)}
contents = []
for states in (first, new):
    write_states(folder / "reference", states.values())
    contents.append((folder / "reference/state/deep/conv.safetensors").read_bytes())
for at in range(1, 200):
    for fresh in (True, False):
        if path.exists():
            path.unlink()
        if fresh and (folder / "out").exists():
            files.remove_folder(folder / "out")
        if not fresh:
            write_states(folder / "out", first.values())
        child = os.fork()
        if child == 0:
            faults = Faults(at)
            faults.install()
            try:
                write_states(folder / "out", new.values())
            except OutputError as error:
                os._exit(1 if "deep" in str(error) or "out" in str(error) else 8)
            except BaseException:
                os._exit(7)
            os._exit(0 if faults.calls < at else 6)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        there = path.read_bytes() if path.exists() else None
        which = {None: "nothing", contents[0]: "old", contents[1]: "new"}.get(there, "torn")
        leftovers = len([*(folder / "out").rglob(".*.streamstats-tmp")]) if (folder / "out").exists() else 0
        readable = None if there is None else [*read_states(folder / "out", ["deep/conv"])] == ["deep/conv"]
        outcomes.append([at, fresh, status, which, leftovers, readable])
    if outcomes[-1][2] == outcomes[-2][2] == 0:
        break
print(json.dumps(outcomes))
'''


@pytest.mark.parametrize("mode", ["kill", "full", "broken"])
def test_after_every_system_call_of_saving_the_old_or_the_new_state_is_there_whole(tmp_path: Path, mode: str) -> None:
    from stores import build_store, samples

    build_store(tmp_path / "s.zarr", {"deep/conv": samples(6, 3)})
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(tmp_path), mode], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    expected = 9 if mode == "kill" else 1
    assert len(outcomes) > 20
    for at, fresh, ended, which, leftovers, readable in outcomes[:-2]:
        assert ended in (expected, 0), f"call {at}: {ended}"
        assert which in (("nothing", "new") if fresh else ("old", "new")), f"call {at}: {which}"
        assert readable is None or readable
        if mode != "kill":
            assert leftovers <= 1
    assert [each[2:4] for each in outcomes[-2:]] == [[0, "new"], [0, "new"]]
    assert {each[3] for each in outcomes if not each[1]} == {"old", "new"}


def test_a_full_disk_ends_the_run_with_a_message_and_status_1_and_the_state_before_is_whole(tmp_path: Path) -> None:
    from stores import build_store, samples

    build_store(tmp_path / "s.zarr", {"conv": samples(600, 8, 16)})
    code = """
import errno, os, sys
from streamstats.jobs import plan
from streamstats.outputs import saving
from streamstats.storage import files
saving.SAVE_SECONDS = saving.SAVING_SHARE = 0
plan.SMALLEST_TASK_BYTES = plan.TASK_BYTES = 20_000
real, calls = files.write_whole, []
def full(path, content):
    calls.append(path)
    if len(calls) > 4:
        raise OSError(errno.ENOSPC, "No space left on device")
    real(path, content)
files.write_whole = full
from streamstats.cli import main
sys.exit(main(["run", sys.argv[1]]))
"""
    (tmp_path / "job.yaml").write_text(f"source: {tmp_path / 's.zarr'}\noutput: {tmp_path / 'out'}\n")
    command = [sys.executable, "-c", code, str(tmp_path / "job.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "No space left on device; make room or choose another place" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert 0 < status(tmp_path / "out").layers[0].counted < 600
