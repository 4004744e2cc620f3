"""Native code on disk: compiled once, read whole or not at all, shared by processes that start together."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from streamstats.compiled import cache as native
from streamstats.compiled.cache import POINTER, SIZE, load

MEASURE = """
import sys
import numpy as np
from streamstats.statistics.mean import ChannelMean
block = np.arange(6000, dtype=np.int64).reshape(10, 600) * 2**50
assert ChannelMean.measure(block).total.units() == [(c * 10 + 600 * 45) * 2**50 for c in range(600)]
print("numba" in sys.modules)
"""


def measuring_process(folder, **environment):
    """A process that takes rows of int64, with its cache below `folder`; it prints whether it had numba."""
    variables = {**os.environ, "XDG_CACHE_HOME": str(folder), **environment}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", MEASURE], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def had_numba(process):
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    return out == b"True\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the files go, empty; nothing is loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_LOADED", {})
    return tmp_path / "cache" / "streamstats"


def forget():
    """What was loaded, as a new process has."""
    native._LOADED.clear()
    native._fingerprint.cache_clear()


class Increment:
    """Defines a function that adds one to each of an array's numbers, and counts how often it is asked to."""

    def __init__(self):
        self.definitions = 0

    def __call__(self):
        import numba

        self.definitions += 1

        def increment(data, size):
            values = numba.carray(data, (size,), np.int64)
            for i in range(values.size):
                values[i] += 1

        return increment

    def loaded(self, modules=("streamstats.errors",)):
        """The function, which works."""
        function = load("increment", (POINTER, SIZE), self, modules)
        numbers = np.arange(5)
        function(numbers.ctypes.data, numbers.size)
        assert numbers.tolist() == [1, 2, 3, 4, 5]
        return function


def test_a_function_is_compiled_once_and_then_loaded_from_its_file(folder):
    increment = Increment()
    assert increment.loaded() is increment.loaded()
    for _ in range(3):
        forget()
        increment.loaded()
    assert increment.definitions == 1
    assert len([*folder.iterdir()]) == 1


def test_threads_that_ask_at_once_get_one_function():
    increment = Increment()
    with ThreadPoolExecutor(8) as threads:
        assert len({id(function) for function in threads.map(lambda _: increment.loaded(), range(8))}) == 1
    assert increment.definitions == 1


def test_a_process_that_finds_the_code_never_loads_the_compiler(tmp_path):
    assert had_numba(measuring_process(tmp_path))
    assert not had_numba(measuring_process(tmp_path))
    (kept,) = (tmp_path / "streamstats").iterdir()
    assert kept.name.startswith("rows-int64-")


@pytest.mark.soak
def test_processes_that_start_at_once_with_no_code_all_measure_and_leave_one_whole_file(tmp_path):
    processes = [measuring_process(tmp_path) for _ in range(8)]
    for process in processes:
        had_numba(process)
    (kept,) = (tmp_path / "streamstats").iterdir()
    content = kept.read_bytes()
    assert content[:32] == sha256(content[32:]).digest()
    assert not had_numba(measuring_process(tmp_path))


# Where no file can be kept


@pytest.mark.parametrize("where", ["/dev/null", "/proc/nowhere", "file"])
def test_where_no_folder_can_be_made_every_process_compiles(where, folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / where))
    increment = Increment()
    for definitions in (1, 2):
        forget()
        increment.loaded()
        assert increment.definitions == definitions
    assert not folder.exists()


def test_where_there_is_no_home_every_process_compiles(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    increment = Increment()
    for definitions in (1, 2):
        forget()
        increment.loaded()
        assert increment.definitions == definitions


def test_a_whole_process_measures_where_no_folder_can_be_made():
    assert had_numba(measuring_process("/dev/null"))


@pytest.mark.parametrize("unset", [None, ""])
def test_files_are_kept_below_the_home_by_default(unset, tmp_path, monkeypatch):
    if unset is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
    monkeypatch.setenv("HOME", str(tmp_path))
    Increment().loaded()
    assert len([*(tmp_path / ".cache" / "streamstats").iterdir()]) == 1


def test_the_folder_is_for_its_owner_alone(folder):
    before = os.umask(0)
    try:
        Increment().loaded()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700


# Files that cannot be used


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: content[:0],
        lambda content: content[:31],
        lambda content: content[:32],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: flipped(content, 0),
        lambda content: flipped(content, 32),
        lambda content: flipped(content, len(content) - 1),
    ],
    ids=["empty", "torn digest", "digest alone", "half", "but one", "longer", "digest flipped", "code flipped", "end"],
)
def test_a_file_that_is_not_whole_is_compiled_anew_and_replaced(damaged, folder):
    increment = Increment()
    increment.loaded()
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damaged(whole))
    for _ in range(2):
        forget()
        increment.loaded()
    assert increment.definitions == 2
    assert [*folder.iterdir()] == [kept]
    assert kept.read_bytes()[:32] == sha256(kept.read_bytes()[32:]).digest()


def test_a_file_that_cannot_be_read_or_replaced_leaves_nothing_behind(folder):
    increment = Increment()
    increment.loaded()
    (kept,) = folder.iterdir()
    kept.unlink()
    kept.mkdir()
    forget()
    increment.loaded()
    assert increment.definitions == 2
    assert [*folder.iterdir()] == [kept]


def test_the_name_changes_when_a_source_changes(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    increment, sources = Increment(), [tmp_path / "first_source.py", tmp_path / "second_source.py"]

    def load_with(first, second):
        for source, text in zip(sources, (first, second), strict=True):
            source.write_text(text)
        forget()
        increment.loaded([source.stem for source in sources])
        return increment.definitions

    assert load_with("raise SystemExit", "raise SystemExit") == 1  # read, never run
    assert load_with("raise SystemExit", "raise SystemExit") == 1
    assert load_with("a = 1", "raise SystemExit") == 2
    assert load_with("a = 1", "a = 2") == 3
    assert load_with("a = 2", "a = 1") == 4
    assert load_with("a = 2a", " = 1") == 5
    assert load_with("a = 1", "a = 2") == 5  # the old one is still there
    assert len([*folder.iterdir()]) == 5


def test_a_source_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"streamstats\.nowhere"):
        Increment().loaded(("streamstats.nowhere",))


# Functions that need Python


def allocates(_, size):
    np.zeros(size)[0] = size


def raises(_, size):
    if size < 0:
        raise ValueError


def prints(_, size):
    print(size)


@pytest.mark.parametrize("function", [allocates, raises, prints])
def test_a_function_that_needs_python_is_refused_with_what_it_needs(function, folder):
    expected = rf"the compiled {function.__name__} needs \w.*; expected a function that needs no Python"
    with pytest.raises(RuntimeError, match=expected):
        load(function.__name__, (POINTER, SIZE), lambda: function, ())
    assert not folder.exists()


def test_what_users_ask_of_numba_for_their_own_code_does_not_change_ours(tmp_path):
    asked = {"DISABLE_JIT": "1", "BOUNDSCHECK": "1", "DEBUGINFO": "1", "OPT": "0"}
    variables = {f"NUMBA_{name}": value for name, value in asked.items()}
    assert had_numba(measuring_process(tmp_path / "asked", **variables))
