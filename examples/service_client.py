"""The client of the service: send activations, count them, correct weights with the result.

Needs the extra `service`; `client` suffices for a service that runs elsewhere. `python service_client.py` starts a
service of its own in a temporary folder. `python service_client.py URL TOKEN` asks yours, such as the one that
`streamstats serve service.yaml` started.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import streamstats as ss


@contextmanager
def own_service(folder: Path) -> Iterator[tuple[str, str]]:
    """(address, token) of a service that ends with the block."""
    config = folder / "service.yaml"
    config.write_text(f"data: {folder}/service\nport: 0\n")
    command = [sys.executable, "-m", "streamstats", "serve", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\w.:]+", line)))
            yield address, (folder / "service" / "token").read_text().strip()
        finally:
            process.terminate()
            process.communicate()


def use(client: ss.Client, folder: Path) -> None:
    """Send, submit, wait, fetch, correct."""
    generator = np.random.default_rng(0)
    for number in range(4):  # a key for each batch: it counts once, however often it is sent
        batch = generator.normal(0.3, size=(64, 8)).astype(np.float32)
        client.ingest("examples", "fc", batch, key=f"batch-{number}")
    print(f"the store has {client.store('examples').layers['fc']} rows")

    job = client.submit({"kind": "run", "source": "store:examples", "statistics": ["spread"], "name": "example"})
    for kind, event in client.events(job):  # until it ends; `client.wait` does the same in silence
        if kind == "message":
            print(f"  {event['text']}")
    print(f"job {job.id}: {client.job(job).state}")
    client.fetch(job.id, folder / "out")  # the files that `streamstats run` leaves

    weights = generator.normal(size=(4, 8)).astype(np.float32)
    rounded = ss.fake_quantize(weights, bits=3)
    terms = client.corrections(job, {"fc": weights}, {"fc": rounded}, ["OI"])
    print("add to the bias of fc:", np.round(terms["fc"], 4))


def main() -> None:
    """Ask the service that was named, or one of our own."""
    folder = Path(tempfile.mkdtemp(prefix="streamstats-"))
    if len(sys.argv) == 3:
        with ss.Client(sys.argv[1], sys.argv[2]) as client:
            use(client, folder)
        return
    with own_service(folder) as (url, token), ss.Client(url, token) as client:
        use(client, folder)


if __name__ == "__main__":
    main()
