"""The house: who may import whom, who writes files. The sources are parsed; nothing is imported."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "streamstats"

ORDER = (
    "errors",
    "interrupts",
    "progress",
    "address",
    "floats",
    "quantization",
    "layouts",
    "coverage",
    "compiled",
    "statistics",
    "storage",
    "correction",
    "calibration",
    "outputs",
    "jobs",
    "ranges",
    "spectra",
    "exports",
    "overrides",
    "config",
    "models",
    "report",
    "service",
    "demo",
    "doctor",
    "cli",
)
"""A module imports from those before it, or from its own package."""
FACES = ("", "__main__")
FROM_THE_FACE = ("__version__",)
CALIBRATION_LEVELS = ("calibration.encoding", "calibration.sources", "calibration", "calibration.reading")
"""Inside calibration, a module imports from its own folder, and from those before it; the third is what is in none."""
STATISTICS_LEVELS = (
    ("exact", "kernels", "pieces", "count_kernels", "masks", "wide", "triangles", "product_kernels"),
    ("doubles",),
    ("moved",),
    ("loops", "sample_kernels", "moment_kernels", "class_kernels", "product_loops", "unfolding"),
    ("running", "products"),
    ("samples", "riders"),
    ("moments", "counts", "classes"),
    ("values",),
    ("statistic",),
    ("sums", "gram_pieces"),
    ("mean", "extrema", "squares"),
)
STATISTICS_TOP = ("kinds", "statistics")
"""Inside statistics, a module imports from the levels before its own: those here, other kinds, the top."""

IMPORTERS = {
    "dask": ("jobs.dask_workers", "jobs.local_processes"),
    "distributed": ("jobs",),
    "jinja2": ("report",),
    "matplotlib": ("report",),
    "plotext": ("report",),
    "gguf": ("exports",),
    "google_crc32c": ("calibration.encoding",),
    "llvmlite": ("compiled",),
    "ml_dtypes": ("floats",),
    "numba": ("compiled", "statistics", "calibration.encoding", "calibration.sources.gathering"),
    "numcodecs": ("calibration.encoding",),
    "onnx": ("models.onnx", "demo.train"),  # which exports the small network that is shipped
    "obstore": ("calibration.sources",),
    "onnxruntime": ("models.onnx",),
    "shtab": ("cli.completion_command",),
    "sklearn": ("demo",),
    "torch": ("demo.train", "models.torch", "compiled.accelerator"),
    "fastapi": ("service",),
    "httpx": ("service",),
    "prometheus_client": ("service",),
    "starlette": ("service",),
    "uvicorn": ("service",),
    "pyarrow": ("exports",),
    "pydantic": ("config", "service"),
    "yaml": ("config",),
    "safetensors": ("storage",),
    "zarr": ("calibration",),
}
"""The only modules, or packages, that import a library."""
NOWHERE = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
IN_STATISTICS = (
    *("__future__", "abc", "collections", "dataclasses", "fractions", "functools", "itertools", "math", "typing"),
    *("numba", "numpy"),
)
"""All that statistics imports: nothing that reads, writes or runs something."""
WITH_A_CORRECTOR = ("numpy", "safetensors")
"""All that loading and applying a corrector needs, beside Python."""

WRITERS = ("storage", "compiled")
"""Result files, and what is compiled."""
NOT_THE_CORE = ("cli",)
IMPORTING_CALLS = ("import_module", "__import__", "require", "_require")
READING_FLAGS = {"flags", "READING", "LOOKING", "os.O_DIRECTORY"}
"""Of `calibration.sources.links`: constants and a parameter that are made of flags for reading."""
WRITING_CALLS = frozenset(
    ("write_text", "write_bytes", "touch", "mkdir", "makedirs", "unlink", "rename", "rmtree", "tofile", "fdopen")
)


class Module(NamedTuple):
    """A source file: its dotted name below the package ("" is the package) and its syntax tree."""

    name: str
    package: str
    tree: ast.Module

    @property
    def place(self) -> str:
        return self.name.split(".")[0]

    @property
    def calls(self) -> list[ast.Call]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]


@cache
def modules() -> dict[str, Module]:
    files = {path.relative_to(PACKAGE): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    return {module.name: module for module in (parsed(path, files[path]) for path in sorted(files))}


def parsed(path: Path, text: str) -> Module:
    *package, stem = path.with_suffix("").parts
    name = package if stem == "__init__" else [*package, stem]
    return Module(".".join(name), ".".join(package), ast.parse(text))


def imports(module: Module) -> Iterator[str]:
    """Every name that `module` imports, wherever it stands, from the package's root as `streamstats…`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.package.split(".") if module.package else []
            base = ["streamstats", *above[: len(above) - node.level + 1]] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in IMPORTING_CALLS:
            yield from (str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant))


def called(node: ast.Call) -> str:
    function = node.func
    return str(getattr(function, "attr", getattr(function, "id", "")))


def inner_imports(module: Module, known: dict[str, Module]) -> Iterator[str]:
    """The modules of the package that `module` imports; "" with a name after it for what the face gives."""
    for name in imports(module):
        top, _, inner = name.partition(".")
        if top != "streamstats":
            continue
        while inner and inner not in known:
            inner, _, _ = inner.rpartition(".")
        yield inner or f":{name.rpartition('.')[2]}"


def outer_imports(module: Module) -> set[str]:
    return {name.split(".")[0] for name in imports(module)} - {"streamstats"}


def problems(module: Module, known: dict[str, Module]) -> Iterator[str]:
    if module.place not in ORDER:
        yield "is not in the table of this test; give it a place in the order"
        return
    yield from imports_against_the_order(module, known)
    for library in sorted(outer_imports(module)):
        owners = IMPORTERS.get(library, (module.name,))
        if library in NOWHERE or not any(f"{module.name}.".startswith(f"{owner}.") for owner in owners):
            yield f"imports {library}"
        if module.place == "statistics" and library not in IN_STATISTICS:
            yield f"imports {library}"
    if module.place not in (*WRITERS, *NOT_THE_CORE):
        yield from writing_calls(module)
    if module.place == "statistics":
        yield from ("opens a file" for node in module.calls if called(node) == "open")


def imports_against_the_order(module: Module, known: dict[str, Module]) -> Iterator[str]:
    for name in inner_imports(module, known):
        place = name.split(".")[0]
        if name.startswith(":"):
            if name[1:] not in FROM_THE_FACE:
                yield f"imports {name[1:]} from the package's face"
        elif place not in ORDER or ORDER.index(place) > ORDER.index(module.place):
            yield f"imports {name}, which comes after it"
        elif place == module.place == "statistics" and not level(name) < level(module.name):
            yield f"imports {name}, which does not come before it"
        elif place == module.place == "calibration" and not folder_level(name) <= folder_level(module.name):
            yield f"imports {name}, whose folder comes after it"


def folder_level(name: str) -> int:
    folder = ".".join(name.split(".")[:2])
    return CALIBRATION_LEVELS.index(folder if folder in CALIBRATION_LEVELS else "calibration")


def level(name: str) -> int:
    inner = name.partition(".")[2]
    kinds = len(STATISTICS_LEVELS)
    if inner in STATISTICS_TOP:
        return kinds + 1
    return next((place for place, names in enumerate(STATISTICS_LEVELS) if inner in names), kinds)


def writing_calls(module: Module) -> Iterator[str]:
    from_storage = {name.rpartition(".")[2] for name in imports(module) if name.startswith("streamstats.storage.")}
    for node in module.calls:
        name, function = called(node), ast.unparse(node.func)
        if (name in WRITING_CALLS and function not in from_storage) or (name == "open" and not reads(node)):
            yield f"writes a file: {ast.unparse(node)}"


def reads(node: ast.Call) -> bool:
    """Whether the call of an `open` is plainly for reading."""
    if ast.unparse(node.func) == "os.open":
        if set(ast.unparse(node.args[1]).split(" | ")) <= READING_FLAGS:
            return True
        flags = {flag for each in node.args[1:] for flag in ast.unparse(each).split(" | ")}
        return {"os.O_RDONLY"} <= flags <= {"os.O_RDONLY", "os.O_NONBLOCK"}
    first = 1 if isinstance(node.func, ast.Name) else 0
    modes = [*node.args[first : first + 1], *(word.value for word in node.keywords if word.arg == "mode")]
    return all(isinstance(mode, ast.Constant) and not set(str(mode.value)) & set("wax+") for mode in modes)


def reached(start: str, known: dict[str, Module]) -> set[str]:
    """The modules of the package that importing `start` loads, itself among them."""
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [inner for inner in inner_imports(known[name], known) if not inner.startswith(":")]
    return seen


def test_every_module_imports_only_what_comes_before_it_and_libraries_stay_in_their_places() -> None:
    known = modules()
    found = {name: list(problems(module, known)) for name, module in known.items() if name not in FACES}
    assert {name: texts for name, texts in found.items() if texts} == {}


def test_every_place_in_the_order_exists() -> None:
    assert {module.place for module in modules().values()} - set(FACES) == set(ORDER)


def test_the_page_on_the_architecture_names_every_folder_of_the_package() -> None:
    page = (PACKAGE.parent / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parent for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    built = {folder for folder in folders if folder.is_relative_to(PACKAGE / "service" / "manual")}
    names = {folder.relative_to(PACKAGE.parent).as_posix() for folder in folders - {PACKAGE} - built}
    assert {name for name in names if f"| `{name}` |" not in page} == set()
    assert set(re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE)) == names


def test_a_corrector_needs_numpy_and_safetensors_alone() -> None:
    known = modules()
    libraries = set().union(*(outer_imports(known[name]) for name in reached("correction", known)))
    assert libraries - sys.stdlib_module_names == set(WITH_A_CORRECTOR)


@pytest.mark.parametrize("start", ["models.onnx.graph", "models.onnx.layers"])
def test_the_layers_of_an_onnx_graph_are_found_without_zarr(start: str) -> None:
    known = modules()
    assert "zarr" not in set().union(*(outer_imports(known[name]) for name in reached(start, known)))


def test_torch_and_plain_tensors_need_no_onnx_code() -> None:
    known = modules()
    for start in ("models.torch", "models.tensors", "models.linear"):
        assert not {name for name in reached(start, known) if name.startswith("models.onnx")}


PLANTED = {
    "upwards": ("outputs/ledger.py", "from ..jobs.reduction import reduce_tasks"),
    "upwards, absolute": ("quantization.py", "import streamstats.storage.files"),
    "upwards, absolute from": ("quantization.py", "from streamstats import storage"),
    "upwards, in a function": ("outputs/ledger.py", "def late():\n    from .. import jobs"),
    "upwards, from a package": ("calibration/layer.py", "from ..jobs.plan import Part"),
    "upwards, by name": ("outputs/ledger.py", "import_module('streamstats.jobs.job')"),
    "through the face": ("outputs/ledger.py", "from .. import reduce"),
    "through the face, absolute": ("jobs/plan.py", "from streamstats import Recorder"),
    "the command line": ("jobs/job.py", "from ..cli.tables import number"),
    "encoding that asks for sources": ("calibration/encoding/chunks.py", "from ..sources.choose import source_of"),
    "sources that know layers": ("calibration/sources/local.py", "from ..layer import Layer"),
    "layers that read": ("calibration/layer.py", "from .reading.reader import open_reader"),
    "statistics, upwards inside": ("statistics/exact.py", "from .mean import ChannelMean"),
    "statistics, sideways inside": ("statistics/extrema.py", "from .mean import ChannelMean"),
    "statistics with zarr": ("statistics/mean.py", "import zarr"),
    "statistics with files": ("statistics/mean.py", "from pathlib import Path"),
    "statistics that read": ("statistics/mean.py", "open('x')"),
    "dask elsewhere": ("jobs/job.py", "import dask.array as da"),
    "distributed elsewhere": ("cli/commands.py", "from distributed import Client"),
    "matplotlib elsewhere": ("demo/show.py", "import matplotlib.pyplot"),
    "plotext elsewhere": ("cli/tables.py", "def plot():\n    import plotext"),
    "numba elsewhere": ("correction.py", "from numba import njit"),
    "onnx elsewhere": ("demo/show.py", "import onnx"),
    "onnxruntime elsewhere": ("demo/train.py", "import_module('onnxruntime')"),
    "jinja2 elsewhere": ("cli/model_commands.py", "import jinja2"),
    "sklearn elsewhere": ("models/onnx/graph.py", "import sklearn"),
    "zarr elsewhere": ("models/onnx/record.py", "import zarr"),
    "zarr elsewhere, from": ("jobs/reduction.py", "from zarr.errors import GroupNotFoundError"),
    "numcodecs elsewhere": ("jobs/plan.py", "import numcodecs"),
    "torch elsewhere": ("demo/show.py", "import torch"),
    "fastapi elsewhere": ("cli/service_commands.py", "from fastapi import FastAPI"),
    "httpx elsewhere": ("jobs/job.py", "import_module('httpx')"),
    "starlette elsewhere": ("report/page.py", "import starlette"),
    "pickle": ("outputs/ledger.py", "import pickle"),
    "pickle, from": ("storage/files.py", "from pickle import loads"),
    "ranges that read a configuration": ("ranges/finding.py", "from ..config import load_config"),
    "exports that ask models": ("exports/exporting.py", "from ..models.onnx.layers import survey"),
    "gguf elsewhere": ("cli/export_command.py", "import gguf"),
    "a file written": ("outputs/ledger.py", "open('x', 'w')"),
    "a file written, by keyword": ("jobs/job.py", "open('x', mode='ab')"),
    "a file written, in some mode": ("config.py", "Path('x').open(mode)"),
    "a path written": ("jobs/job.py", "Path('x').write_text('y')"),
    "a folder made": ("report/page.py", "Path('x').mkdir()"),
    "a module without a place": ("helpers.py", "import math"),
}


@pytest.mark.parametrize(("file", "line"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_found(file: str, line: str) -> None:
    path = PACKAGE / file
    planted = parsed(Path(file), (path.read_text(encoding="utf-8") if path.exists() else "") + f"\n{line}\n")
    assert list(problems(planted, {**modules(), planted.name: planted}))


def test_every_test_file_has_a_name_of_its_own() -> None:
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))  # pytest imports test files by their names alone
