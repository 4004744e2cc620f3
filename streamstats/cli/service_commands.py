"""What each command of the service does: serve, or ask a service as `Client` does and print what comes back.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import getpass
import hashlib
import json
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from ..progress import Stage
from .progress import Shown
from .tables import print_json, print_table, say

if TYPE_CHECKING:
    from ..service.client import Client
    from ..service.messages import JobView

STATUSES = {"done": 0, "incomplete": 3}


def serve(options: Namespace) -> None:
    """`streamstats serve CONFIG`."""
    from ..errors import require

    for library in ("fastapi", "uvicorn", "prometheus_client"):
        require(library, "service")
    from ..service.serve import serve as serve_config
    from ..service.settings import load_service_config

    serve_config(load_service_config(options.config), say)


def submit(options: Namespace) -> int:
    """`streamstats submit CONFIG`."""
    from ..config import load_yaml
    from ..errors import UsageError

    document = load_yaml(Path(options.config))
    if not isinstance(document, dict):
        raise UsageError(f"{options.config}: found {type(document).__name__}, expected keys such as `source:`")
    if (options.until_rows is not None or options.idle is not None) and not options.follow:
        raise UsageError("--until-rows and --idle say when --follow ends; give it, too")
    left_out = [name for name in ("output", "cluster") if document.pop(name, None) is not None]
    if left_out:
        say(f"{' and '.join(left_out)} of {options.config}: left out, as that is the service's affair")
    follow = {"follow": {"rows": options.until_rows, "idle": options.idle}} if options.follow else {}
    whose = {"submitter": options.submitter or getpass.getuser(), "priority": options.priority}
    with _client(options) as client:
        job = client.submit({"kind": "run", **document, **follow, **whose}, key=options.key)
        say(f"submitted {job.id}; look at it with: streamstats watch {job.id}")
        if options.watch:
            return _watched(client, job.id, options.json)
    if options.json:
        print_json(job.model_dump())
    else:
        print(job.id)
    return 0


def jobs(options: Namespace) -> None:
    """`streamstats jobs [JOB]`."""
    with _client(options) as client:
        if options.job is None:
            found = client.jobs(state=options.state, limit=options.limit).jobs
        else:
            found = [client.job(options.job)]
    if options.json:
        documents = [job.model_dump() for job in found]
        print_json({"jobs": documents} if options.job is None else documents[0])
        return
    rows = [[job.id, job.state, job.submitter, job.source or job.kind, _rows(job), job.message] for job in found]
    print_table(["job", "state", "submitter", "source", "rows", "message"], rows, left=4)


def _rows(job: JobView) -> str:
    return f"{job.rows:,} of {job.total_rows:,}" if job.rows < job.total_rows else f"{job.rows:,}"


def watch(options: Namespace) -> int:
    """`streamstats watch JOB`."""
    with _client(options) as client:
        return _watched(client, options.job, options.json)


def _watched(client: Client, name: str, as_json: bool) -> int:
    """Show a job until it ends; the exit status that says how."""
    rows = size = 0
    total: tuple[int, int] = (0, 0)
    with ExitStack() as stack:
        progress: Shown | None = None
        for kind, content in client.events(name):
            if kind == "message":
                (progress.say if progress else say)(content["text"])
            elif kind == "job" and content["state"] == "running" and content["total_bytes"]:
                if (content["total_rows"], content["total_bytes"]) != total:
                    stack.close()
                    total, rows, size = (content["total_rows"], content["total_bytes"]), 0, 0
                    progress = stack.enter_context(Shown())
                    progress.begin(Stage("", *total))
                assert progress is not None
                progress.advance(content["rows"] - rows, content["bytes"] - size)
                rows, size = content["rows"], content["bytes"]
    job = client.job(name)
    if as_json:
        print_json(job.model_dump())
    else:
        print_table(
            ["job", "state", "rows", "read"], [[job.id, job.state, f"{job.rows:,}", decimal(job.bytes)]], left=2
        )
    if job.results is not None:
        say(f"its results: streamstats fetch {job.id} -o OUT")
    return STATUSES.get(job.state, 1)


def cancel(options: Namespace) -> None:
    """`streamstats cancel JOB`."""
    with _client(options) as client:
        job = client.cancel(options.job)
    if options.json:
        print_json(job.model_dump())
    else:
        say(f"{job.id} {job.message}")


def fetch(options: Namespace) -> None:
    """`streamstats fetch JOB -o OUT`."""
    folder = Path(options.output)
    with _client(options) as client:
        number = client.fetch(options.job, folder)
    if options.json:
        print_json({"job": options.job, "results": number, "folder": str(folder)})
    say(f"wrote {folder}; look at it with: streamstats inspect {folder}")


def send(options: Namespace) -> None:
    """`streamstats send STORE LAYER FILE…`."""
    from ..errors import UsageError

    if options.key is not None and len(options.files) > 1:
        raise UsageError("--key is for a single file; leave it out, or send the files one by one")
    quantization = None if options.quantization is None else _parsed(options.quantization)
    answers = []
    with _client(options) as client:
        for name in options.files:
            try:
                content = Path(name).read_bytes()
            except OSError as error:
                raise UsageError(f"cannot read {name}: {error.strerror or error}") from error
            answer = client.ingest(
                options.store,
                options.layer,
                content,
                key=options.key or hashlib.sha256(content).hexdigest(),
                channel_axis=options.channel_axis,
                quantization=quantization,
            )
            answers.append((name, answer))
    if options.json:
        print_json({"sent": [{"file": name, **each.model_dump()} for name, each in answers]})
        return
    rows = [[name, f"{each.start}:{each.stop}", "was there already" if each.repeated else ""] for name, each in answers]
    print_table(["file", "rows", "note"], rows)


def _parsed(text: str) -> dict[str, Any]:
    from ..errors import UsageError

    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--quantization is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError('--quantization is no object; expected \'{"scale": …, "scale_is": "step", "zero_point": …}\'')
    return found


def _client(options: Namespace) -> Client:
    from ..config import service_address
    from ..service.client import Client

    return Client(*service_address(options.url, options.token_file))
