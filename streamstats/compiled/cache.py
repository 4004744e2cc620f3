"""A cache of native code on disk: a process that finds its compiled functions there never loads the compiler.

Loading numba, and then its own cache, takes most of a second in every process; loading an object file takes
milliseconds. A function's file lies in `$XDG_CACHE_HOME/streamstats` (default `~/.cache/streamstats`), under a name
that changes with its source, the compiler and the processor. The file is written whole, so many processes may start at
once, and used only if its SHA-256 is right. If it cannot be written, every process compiles anew. As with numba's own
cache, anyone who can write to that folder can run code as its owner.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

log = logging.getLogger("streamstats.compiled")
POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64
ENTRY = "entry"
DIGEST_BYTES = 32
ALLOWED = {"memset", "memcpy", "memmove"}
"""The symbols that compiled code may need from outside: every process has them."""

_LOADING = threading.Lock()
_LOADED: dict[tuple[str, tuple[str, ...]], Callable[..., None]] = {}
_ENGINES: list[Any] = []  # never freed: a function lives only as long as the engine that holds its code


def load(
    name: str, arguments: Sequence[Any], define: Callable[[], Callable[..., None]], modules: Sequence[str]
) -> Callable[..., None]:
    """The function called `name`, with `arguments` (each POINTER or SIZE); a call releases the GIL.

    If no usable file holds it, `define` returns the function to compile, which may neither allocate nor raise.
    `modules` are the modules of its source. Raises `RuntimeError` for a function that needs Python.
    """
    key = name, tuple(modules)
    with _LOADING:
        if key not in _LOADED:
            file = f"{name}-{_fingerprint(key[1])}.o"
            code = _read(file)
            if code is None:
                log.info("compiling native code: a few seconds, once on this machine; or before, by streamstats warm")
                with _usual_numba():
                    code = _compile(name, arguments, define())
                _keep(file, code)
            _LOADED[key] = ctypes.CFUNCTYPE(None, *arguments)(_entry(code))
        return _LOADED[key]


def address(function: Callable[..., None]) -> int:
    """The address of a loaded function, for other compiled code to call."""
    found: int | None = ctypes.cast(function, POINTER).value  # type: ignore[arg-type]
    assert found is not None
    return found


def _entry(code: bytes) -> int:
    content = llvm.ObjectFileRef.from_data(code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())  # the engine now owns the latter
    engine.add_object_file(content)
    engine.finalize_object()
    _ENGINES.append(engine)
    return int(engine.get_function_address(ENTRY))


def _target_machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )


# Files


@cache
def _fingerprint(modules: tuple[str, ...]) -> str:
    """A digest of everything that the code depends on: source, processor and compiler."""
    contents = [_source(module) for module in (*modules, __name__)]
    processor = [llvm.get_default_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    compiler = [f"{package} {version(package)}" for package in ("numba", "llvmlite", "numpy")]
    parts = [*contents, *map(str.encode, (*processor, *compiler))]
    return sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()[:16]


def _source(module: str) -> bytes:
    """The source of `module`, read without importing it."""
    found = find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"the source of {module} cannot be found; install streamstats with its source files")
    return Path(found.origin).read_bytes()


def _folder() -> Path:
    """The folder of the cache. Raises `RuntimeError` if the user has no home folder."""
    said = Path(os.environ.get("XDG_CACHE_HOME", ""))  # code is loaded from it, so a relative path is ignored
    return (said if said.is_absolute() else Path.home() / ".cache") / "streamstats"


def writable_folder() -> Path:
    """The folder of the cache, made if it is missing. Raises `OSError`, `RuntimeError` if nothing can be kept there."""
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    probe.touch()
    probe.unlink()
    return folder


def kept(folder: Path) -> set[str]:
    """The files in `folder` that hold compiled functions."""
    return {path.name for path in folder.glob("*.o")}


def _read(file: str) -> bytes | None:
    """The code cached as `file`, or None if there is no usable file."""
    try:
        path = _folder() / file
        if os.name == "posix" and path.stat().st_uid != os.getuid():
            return None  # another user wrote the code
        content = path.read_bytes()
    except (OSError, RuntimeError):
        return None
    code = content[DIGEST_BYTES:]
    return code if sha256(code).digest() == content[:DIGEST_BYTES] else None


def _keep(file: str, code: bytes) -> None:
    """Cache `code` as `file` for the next process; if it cannot be written, that process compiles again."""
    with suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f".{uuid.uuid4().hex}.tmp"
        try:
            temporary.write_bytes(sha256(code).digest() + code)
            temporary.replace(folder / file)
        finally:
            temporary.unlink(missing_ok=True)


# Compiling


@contextmanager
def _usual_numba() -> Iterator[None]:
    """Inside, numba compiles as it does by default, whatever NUMBA_DISABLE_JIT and other variables ask of it."""
    import numba

    config: Any = numba.config
    usual = {"DISABLE_JIT": 0, "BOUNDSCHECK": 0, "DEBUGINFO_DEFAULT": 0, "OPT": type(config.OPT)(3)}
    asked = {name: getattr(config, name) for name in usual}
    try:
        for name, value in usual.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in asked.items():
            setattr(config, name, value)


def _compile(name: str, arguments: Sequence[Any], function: Callable[..., None]) -> bytes:
    """The object file of `function`. Raises `RuntimeError` if it needs Python."""
    import numba
    from numba import types

    signature = types.void(*(types.voidptr if argument is POINTER else types.int64 for argument in arguments))
    compiled = numba.cfunc(signature, error_model="numpy")(function)  # dividing by zero does not raise
    module = llvm.parse_assembly(compiled.inspect_llvm())
    for each in module.functions:
        if each.name == compiled.native_name:
            each.name = ENTRY
        elif not each.is_declaration:
            each.linkage = "internal"
    # optimise again, now that everything except ENTRY may be inlined and dropped: the code that reports exceptions
    # disappears, because there are none
    builder = llvm.create_pass_builder(_target_machine(), llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    outside = [each.name for each in module.functions if each.is_declaration and not each.name.startswith("llvm.")]
    if not ALLOWED.issuperset(outside):
        raise RuntimeError(f"the compiled {name} needs {', '.join(outside)}; expected a function that needs no Python")
    return bytes(_target_machine().emit_object(module))
