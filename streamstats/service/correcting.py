"""Corrections of weights that a client sends, in a process of their own: `python -m streamstats.service.correcting`.

To find out what explains the difference between weights takes the processor for seconds, or minutes, during which the
service must do everything else. The process gets what to do as JSON on stdin, and has so many seconds for it. It writes
a line of JSON to stdout: the outcomes, followed by the terms as safetensors, or what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CORRUPT, DONE, USAGE, DataError, StreamstatsError, UsageError
from ..models.tensors import tensor_terms, terms_bytes
from .headers import read_tensors

ERRORS = {USAGE: UsageError, CORRUPT: DataError}
"""By the exit status that they have."""

log = logging.getLogger("streamstats.service")


@dataclass(frozen=True)
class Correcting:
    """Correct the weights in the safetensors `body` by the `results` of a job, in so many `seconds`."""

    body: str
    results: str
    layouts: Sequence[str]
    seconds: int

    async def done(self) -> tuple[bytes, list[dict[str, Any]]]:
        """(safetensors with the term for each bias, the outcome for each layer). Raises `StreamstatsError`."""
        command = [sys.executable, "-m", __name__]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        try:
            found, said = await process.communicate(json.dumps(asdict(self)).encode())
        finally:
            if process.returncode is None:
                process.kill()
        line, _, terms = found.partition(b"\n")
        status = process.returncode
        if status == DONE:
            return terms, json.loads(line)
        if status == -signal.SIGALRM:
            raise UsageError(
                f"the correction takes more than {self.seconds} s, the limit of this service; send fewer layers at a "
                "time, or use `streamstats correct`"
            )
        if line:
            raise ERRORS.get(status or 0, StreamstatsError)(json.loads(line))
        log.error("correction failed", extra={"status": status, "said": said.decode("utf-8", "replace")})
        raise StreamstatsError("the correction failed unexpectedly; the service's log has the details")

    def do(self) -> tuple[bytes, list[dict[str, Any]]]:
        """As `done`, here and now."""
        read_tensors(Path(self.body))  # for an error that speaks of the body
        try:
            terms, outcomes = tensor_terms(self.body, self.body, self.results, layouts=self.layouts)
        except UsageError as error:
            raise UsageError(str(error).replace(self.body, "the body").replace("--layout", "layout")) from error
        return terms_bytes(terms), [each.document() for each in outcomes]


def main() -> int:
    """Do what stdin says; the exit status is that of the command line."""
    asked = Correcting(**json.load(sys.stdin))
    signal.alarm(asked.seconds)
    try:
        terms, outcomes = asked.do()
    except StreamstatsError as error:
        print(json.dumps(str(error)))
        return error.exit_status
    sys.stdout.buffer.write(json.dumps(outcomes).encode() + b"\n" + terms)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
