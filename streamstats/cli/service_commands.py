"""The commands of the service: `serve` runs one; the others ask one through `Client` and print its answer.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.filesize import decimal

from ..errors import DONE, FAILURE, INCOMPLETE, UsageError, counted, listed, require
from ..progress import OF_ALL_LAYERS, Stage
from .commands import check_follow
from .progress import Shown
from .tables import print_json, print_table, say, when

if TYPE_CHECKING:
    from ..service.client import Client
    from ..service.messages import IngestView, JobSummary, StoreView

Answer = TypeVar("Answer")
STATUS_OF = {"done": DONE, "incomplete": INCOMPLETE, "failed": FAILURE, "cancelled": FAILURE}
"""The exit status that follows from the state of a job that has ended; of a failed one, unless the service knows it."""
DESCRIBED = {
    "quantization": '{"scale": …, "scale_is": "step", "zero_point": …}',
    "geometry": '{"kernel": […], "strides": […], "pads": […]}',
    "keep": '{"jobs": {"age": "90d"}}',
}
"""Options that are JSON, each with an example of its value."""


def serve(options: Namespace) -> None:
    """`streamstats serve CONFIG`."""
    for library in ("fastapi", "uvicorn", "prometheus_client"):
        require(library, "service")
    from ..service.serve import serve as serve_config
    from ..service.settings import load_service_config

    serve_config(load_service_config(options.config), say)


def backup(options: Namespace) -> None:
    """`streamstats backup CONFIG FOLDER`."""
    from ..service.backup import back_up
    from ..service.settings import load_service_config

    copied = back_up(load_service_config(options.config).data, Path(options.folder))
    if options.json:
        print_json({"folder": options.folder, **asdict(copied)})
    say(f"wrote {options.folder}: {copied}; to restore it, stop the service and put the folder in place of its `data`")


def submit(options: Namespace) -> int:
    """`streamstats submit CONFIG`."""
    request = _request(options)
    with client_of(options) as client:
        job = client.submit(_uploaded(client, request, options.config), key=options.key)
        done = f"job {job.id} was submitted before, with this key" if job.repeated else f"submitted job {job.id}"
        say(done if options.watch else f"{done}; follow it with: streamstats watch {job.id}")
        if options.watch:
            return _watched(client, job.id, options)
    if options.json:
        print_json(job.model_dump())
    else:
        print(job.id)
    return DONE


def _request(options: Namespace) -> dict[str, Any]:
    """The job that the configuration and the options describe. Raises `UsageError`."""
    from ..config import load_document

    document = load_document(options.config, options.set)
    _check_kind(document, options.config)
    check_follow(options)
    if options.follow and document.get("kind") == "onnx":
        raise UsageError("--follow is for jobs that read a store, not for those of the kind `onnx`; leave it out")
    ignored = [name for name in ("output", "cluster") if document.pop(name, None) is not None]
    if ignored:
        say(f"{options.config}: ignoring {' and '.join(ignored)}, which the service chooses")
    follow = {"follow": {"rows": options.until_rows, "idle": options.idle}} if options.follow else {}
    whose = {"submitter": options.submitter, "priority": options.priority}
    return {"kind": "run", **document, **follow, **whose, **_about(options)}


def _check_kind(document: Mapping[str, Any], config: str) -> None:
    """Raise `UsageError` for a job that names a model, or other files, but not its kind."""
    from ..service.messages import UPLOADS

    named = [name for name in UPLOADS if name in document]
    if named and "kind" not in document:
        raise UsageError(f"{config}: it has `{named[0]}`, a key of jobs of the kind `onnx`; add `kind: onnx`")


def _uploaded(client: Client, request: Mapping[str, Any], config: str) -> dict[str, Any]:
    """`request`; one of the kind `onnx` with its files uploaded, and their ids in place of their paths."""
    from ..service.messages import UPLOADS

    named = [name for name in UPLOADS if request.get(name) is not None] if request["kind"] == "onnx" else []
    for name in named:
        if not isinstance(request[name], str):
            raise UsageError(f"{config}: `{name}` is {request[name]!r}; expected the path of a file, as text")
    return {**request, **{name: client.upload(request[name]).id for name in named}}


def _about(options: Namespace) -> dict[str, Any]:
    """What the options call the job, over what its configuration may."""
    found = {"name": options.name, "tags": options.tag, "note": options.note, "notify": options.notify}
    return {key: value for key, value in found.items() if value}


def jobs(options: Namespace) -> None:
    """`streamstats jobs [JOB]`."""
    with client_of(options) as client:
        if options.job is None:
            found: Sequence[JobSummary] = client.jobs(
                state=options.state or (),
                submitter=options.submitter,
                source=options.source,
                tag=options.tag or (),
                text=options.text,
                limit=options.limit,
            ).jobs
        else:
            found = [client.job(options.job)]
    if options.json:
        documents = [job.model_dump() for job in found]
        print_json({"jobs": documents} if options.job is None else documents[0])
        return
    rows = [
        [job.id, job.name, job.state, job.submitter, job.source or job.kind, _rows(job), job.message] for job in found
    ]
    print_table(
        ["job", "name", "state", "submitter", "source", OF_ALL_LAYERS, "message"], rows, left=5, ends_in_text=True
    )


def _rows(job: JobSummary) -> str:
    return f"{job.rows:,} of {job.total_rows:,}" if job.rows < job.total_rows else f"{job.rows:,}"


def watch(options: Namespace) -> int:
    """`streamstats watch JOB`."""
    with client_of(options) as client:
        return _watched(client, options.job, options)


def _watched(client: Client, name: str, options: Namespace) -> int:
    """Show a job until it ends; the exit status that says how it ended."""
    with Shown(quiet=options.quiet) as shown:
        followed, waits_for = _Followed(shown), ""
        for kind, content in client.events(name):
            if kind == "message":
                shown.say(content["text"])
            elif kind == "job" and content["state"] == "queued" and content["waits_for"] != waits_for:
                waits_for = content["waits_for"]
                shown.say(f"place {content['place']} in the queue: {waits_for}" if content["place"] else waits_for)
            elif kind == "job" and content["state"] == "running" and content["total_bytes"]:
                followed.advance_to(content)
            elif kind == "job" and content["state"] in STATUS_OF:
                followed.end(content)
    job = client.job(name)
    if options.json:
        print_json(job.model_dump())
    else:
        row = [job.id, job.state, f"{job.rows:,}", decimal(job.bytes)]
        print_table(["job", "state", OF_ALL_LAYERS, "read"], [row], left=2)
    if job.results is not None:
        say(f"fetch its results with: streamstats fetch {job.id} -o OUT")
    return job.exit_status or STATUS_OF.get(job.state, FAILURE)  # or the service ended while the job did not


class _Followed:
    """The progress of a job of the service on the terminal, a new stage for each plan."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._total = (0, 0)
        self._rows = self._bytes = 0

    def advance_to(self, job: Mapping[str, Any]) -> None:
        """Show the rows and bytes that `job` has read."""
        total = job["total_rows"], job["total_bytes"]
        if total != self._total:
            is_first = self._shown.meter is None
            self._total, self._rows, self._bytes = total, 0, 0
            self._shown.begin(Stage("", *total, unit=OF_ALL_LAYERS))
            if is_first and self._shown.meter is not None:  # the job may have run for long before it was watched
                self._shown.meter.started -= job["seconds"]
        self._shown.advance(job["rows"] - self._rows, job["bytes"] - self._bytes)
        self._rows, self._bytes = job["rows"], job["bytes"]

    def end(self, job: Mapping[str, Any]) -> None:
        """Show what `job`, which has ended, has read, before its last message; nothing if it was not seen running."""
        if self._shown.meter is not None:
            self.advance_to(job)
            self._shown.end(failed=STATUS_OF[job["state"]] == FAILURE)


def cancel(options: Namespace) -> None:
    """`streamstats cancel JOB`."""
    with client_of(options) as client:
        job = client.cancel(options.job)
    if options.json:
        print_json(job.model_dump())
    else:
        say(f"{job.id} {job.message}")


def fetch(options: Namespace) -> None:
    """`streamstats fetch JOB -o OUT`."""
    folder = Path(options.output)
    with client_of(options) as client:
        number = client.fetch(options.job, folder)
    if options.json:
        print_json({"job": options.job, "results": number, "folder": str(folder)})
    say(f"wrote {folder}; view it with: streamstats inspect {folder}")


def send(options: Namespace) -> None:
    """`streamstats send STORE LAYER FILE…`."""
    if options.key is not None and len(options.files) > 1:
        raise UsageError("--key is for a single file; leave it out, or send the files one by one")
    given = {name: getattr(options, name) for name in ("quantization", "geometry")}
    about = {name: parsed(name, text) for name, text in given.items() if text is not None}
    with client_of(options) as client:
        answers = _for_each(options.files, lambda name: _sent(client, options, name, about), "sent")
    if options.json:
        print_json({"sent": [{"file": name, **each.model_dump()} for name, each in answers]})
        return
    rows = [[name, f"{each.start}:{each.stop}", "sent before" if each.repeated else ""] for name, each in answers]
    print_table(["file", "rows", "note"], rows, ends_in_text=True)


def _for_each(names: Sequence[str], ask: Callable[[str], Answer], done: str) -> list[tuple[str, Answer]]:
    """What `ask` gives for each of `names`; if it raises, a message names those that were `done` before."""
    found: list[tuple[str, Answer]] = []
    try:
        for name in names:
            answer = ask(name)
            found.append((name, answer))
        return found
    finally:
        if found and len(found) < len(names):
            were = "was" if len(found) == 1 else "were"
            say(f"{len(found):,} of {counted(len(names), 'file')} {were} {done}: {listed(name for name, _ in found)}")


def _sent(client: Client, options: Namespace, name: str, about: Mapping[str, Any]) -> IngestView:
    """Append the file `name` to the layer that `about` describes. Raises `UsageError` if it cannot be read."""
    content = _content(name)
    key = options.key or hashlib.sha256(content).hexdigest()
    return client.ingest(
        options.store,
        options.layer,
        content,
        key=key,
        channel_axis=options.channel_axis,
        quantization=about.get("quantization"),
        geometry=about.get("geometry"),
    )


def withdraw(options: Namespace) -> None:
    """`streamstats withdraw STORE LAYER FILE…`."""
    if bool(options.files) == (options.key is not None):
        raise UsageError("name what was sent by its files or by --key")
    keys = {options.key: options.key} if options.key else {name: _key_of(name) for name in options.files}
    with client_of(options) as client:
        found = dict(
            _for_each(list(keys), lambda name: client.withdraw(options.store, options.layer, keys[name]), "withdrawn")
        )
        jobs = sorted({job for each in found.values() for job in each.jobs})
        for job in jobs:
            say(f"job {job} {_forgets(client, job) if options.forget else 'may have counted them; see --forget'}")
    if options.json:
        print_json({"withdrawn": [each.batch.model_dump() for each in found.values()], "jobs": jobs})
        return
    rows = [[name, f"{each.batch.start}:{each.batch.stop}"] for name, each in found.items()]
    print_table(["withdrawn", "rows"], rows)


def _forgets(client: Client, job: str) -> str:
    """Have a job forget; what becomes of that."""
    from ..service.client import RefusedError

    try:
        client.forget(job)
    except RefusedError as error:  # it is somebody else's
        return f"does not subtract them: {error}"
    return "subtracts them"


def stores(options: Namespace) -> None:
    """`streamstats stores [NAME]`."""
    with client_of(options) as client:
        names = client.stores() if options.store is None else [options.store]
        found = [client.store(name) for name in names]
    if options.json:
        documents = [store.model_dump() for store in found]
        print_json({"stores": documents} if options.store is None else documents[0])
        return
    if options.store is None:
        columns = ["store", "owner", "appended", "layers", OF_ALL_LAYERS]
        print_table(columns, [_store_cells(each) for each in found], left=3)
        return
    withdrawn = {layer: sum(stop - start for start, stop in rows) for layer, rows in found[0].withdrawn.items()}
    rows = [[layer, f"{count:,}", f"{withdrawn.get(layer, 0):,}"] for layer, count in found[0].layers.items()]
    print_table(["layer", "rows", "withdrawn"], rows)


def _store_cells(store: StoreView) -> list[str]:
    return [store.name, store.owner, when(store.appended), f"{len(store.layers):,}", f"{store.rows:,}"]


def delete(options: Namespace) -> None:
    """`streamstats delete JOB…`, or a store, or a layer of it."""
    if bool(options.jobs) == (options.store is not None):
        raise UsageError("name what to delete: either jobs, or a store with --store")
    if options.layer is not None and options.store is None:
        raise UsageError("--layer names a layer of a store; name the store with --store")
    with client_of(options) as client:
        for job in options.jobs:
            client.delete(job)
            say(f"deleted job {job}")
        if options.layer is not None:
            client.delete_layer(options.store, options.layer)
            say(f"deleted layer {options.layer} of store {options.store}")
        elif options.store is not None:
            client.delete_store(options.store)
            say(f"deleted store {options.store}")
    if options.json:
        print_json({"jobs": options.jobs, "store": options.store, "layer": options.layer})


def _key_of(name: str) -> str:
    """The key of a file that was sent without one. Raises `UsageError` if it cannot be read."""
    return hashlib.sha256(_content(name)).hexdigest()


def _content(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror or error}") from error


def parsed(name: str, text: str) -> dict[str, Any]:
    """The value of the option `name`, which is JSON. Raises `UsageError`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--{name} is not a JSON object; expected '{DESCRIBED[name]}'")
    return found


def client_of(options: Namespace) -> Client:
    """The client of the service that the options or the environment name. Raises `UsageError`."""
    from ..config import service_address
    from ..service.client import Client

    url, token = service_address(options.url, options.token_file)
    return Client(url, token, patience=options.patience, say=say)
