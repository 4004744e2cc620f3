"""The commands of those who run a service: tokens, the audit log, and removing what is not kept."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from ..errors import UsageError
from ..storage.files import write_secret
from .service_commands import client_of, parsed
from .tables import print_json, print_table, say

if TYPE_CHECKING:
    from ..service.client import Client


def token(options: Namespace) -> None:
    """`streamstats token new|list|rotate|revoke [NAME]`."""
    if (options.name is None) != (options.action == "list"):
        raise UsageError(f"token {options.action}: {'leave out' if options.name else 'give'} the name of a token")
    if options.output is not None and Path(options.output).exists():  # before a secret is made that could not be kept
        raise UsageError(f"{options.output} exists; name a new file")
    with client_of(options) as client:
        if options.action == "list":
            _list_tokens(client, options)
        elif options.action == "revoke":
            client.revoke_token(options.name)
            say(f"revoked {options.name}")
        else:
            _give(_secret(client, options), options)


def _secret(client: Client, options: Namespace) -> str:
    if options.action == "new":
        return client.new_token(options.name, options.role)
    return client.rotate_token(options.name, overlap=options.overlap)


def _give(secret: str, options: Namespace) -> None:
    """Write a secret to the file that is asked for, or print it."""
    if options.output is not None:
        write_secret(Path(options.output), f"{secret}\n")
        say(f"wrote {options.output}; its owner uses it with: --token-file {options.output}")
    elif options.json:
        print_json({"name": options.name, "token": secret})
    else:
        print(secret)
        say("this is shown once; the service stores no secret")


def _list_tokens(client: Client, options: Namespace) -> None:
    found = client.tokens()
    if options.json:
        print_json({"tokens": [each.model_dump() for each in found]})
        return
    rows = [[each.name, each.role, _time(each.made), each.maker, _time(each.until)] for each in found]
    print_table(["token", "role", "made", "by", "valid until"], rows, left=5)


def audit(options: Namespace) -> None:
    """`streamstats audit`."""
    with client_of(options) as client:
        found = client.audit(who=options.who, limit=options.limit).entries
    if options.json:
        print_json({"entries": [each.model_dump() for each in found]})
        return
    rows = [[_time(each.at), each.who, each.method, each.path, str(each.status), each.made or ""] for each in found]
    print_table(["at", "who", "did", "to", "status", "made"], rows, left=6)


def prune(options: Namespace) -> None:
    """`streamstats prune`."""
    keep = None if options.keep is None else parsed("keep", options.keep)
    with client_of(options) as client:
        found = client.prune(keep, dry_run=options.dry_run)
    if options.json:
        print_json({"dry_run": options.dry_run, "removed": [each.model_dump() for each in found]})
        return
    rows = [[each.kind, each.name, _time(each.at), each.why, decimal(each.bytes)] for each in found]
    print_table(["kind", "name", "last used", "beyond", "bytes"], rows, left=4)
    total = decimal(sum(each.bytes for each in found))
    say(f"{'would remove' if options.dry_run else 'removed'} {len(found):,}, {total}")


def _time(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")[:19]
