"""The memory limit of a job's process. The operating system enforces it, whatever a model or a library does.

Linux counts what a process may write to (`RLIMIT_DATA`): its heap, its arrays, the stacks of its threads. On other
systems, only the plan of a reduction limits the memory. What the program itself takes, and what threads reserve, comes
on top.
"""

from __future__ import annotations

import os
import resource
import sys
import zipfile
from pathlib import Path

from ..errors import UsageError

NO_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "ailed to allocate memory", "Unable to allocate")
"""What libraries say when the operating system gives them no more memory."""
NO_THREAD = "can't start new thread"
"""The stack of a thread is memory, too."""
STACK_BYTES = 8 * 2**20
"""What a thread reserves for its stack, and hardly uses."""


def limit_memory(most: int) -> None:
    """Have the operating system refuse this process, and those that it starts, more than `most` further bytes."""
    if sys.platform != "linux":
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _taken() + most + 2 * (os.cpu_count() or 1) * STACK_BYTES  # threads of workers, and of a model
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))


def _taken() -> int:
    """The bytes that this process may write to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def is_no_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is that the operating system gave no more memory."""
    if error is None:
        return False
    text = f"{type(error).__name__}: {error}"
    found = isinstance(error, MemoryError) or any(words in text for words in (*NO_MEMORY, NO_THREAD))
    return found or is_no_memory(error.__cause__ or error.__context__)


def no_memory(most: int) -> str:
    """That a job needs more than `most` bytes, and what to do."""
    return f"the job needs more than its memory limit of {most:,} bytes; submit it again with a larger `memory`"


def check_archive(path: Path, most: int) -> None:
    """Raise `UsageError` if the arrays in the `.npz` at `path`, which are read whole, exceed `most` bytes."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(each.file_size for each in archive.infolist())
    if size > most:
        raise UsageError(
            f"{path.name} has arrays of {size:,} bytes, which are read whole; memory is {most:,} bytes; submit the job "
            "with a larger `memory`, or, for a model with one input, upload a .npy, which is read part by part"
        )
