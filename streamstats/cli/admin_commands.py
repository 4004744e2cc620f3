"""The commands of those who run a service: tokens, the audit log, and removing what is not kept."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from ..errors import UsageError
from ..storage.files import replace_secret
from .service_commands import client_of, parsed
from .tables import print_json, print_table, say, when

if TYPE_CHECKING:
    from ..service.client import Client

TAKEN_BY = {"role": ("new",), "overlap": ("rotate",), "output": ("new", "rotate")}
"""Options of `token`, and the actions that take each."""
ONE_SECRET = re.compile(rb"[!-~]{32,128}\s*")
"""The content of a file with a token and nothing else."""


def token(options: Namespace) -> None:
    """`streamstats token new|list|rotate|revoke [NAME]`."""
    if (options.name is None) != (options.action == "list"):
        raise UsageError(f"token {options.action}: {'leave out' if options.name else 'give'} the name of a token")
    for option, actions in TAKEN_BY.items():
        if getattr(options, option) is not None and options.action not in actions:
            raise UsageError(
                f"token {options.action} takes no --{option}, which is for {' and '.join(actions)}; leave it out"
            )
    if options.output is not None:
        _check_file(Path(options.output), options.action)
    with client_of(options) as client:
        if options.action == "list":
            _list_tokens(client, options)
        elif options.action == "revoke":
            client.revoke_token(options.name)
            say(f"revoked {options.name}")
        else:
            _give(_secret(client, options), options)


def _check_file(path: Path, action: str) -> None:
    """Raise `UsageError` for a file that cannot get a secret, before one is made that could not be kept.

    A rotation replaces a file with an older secret, and no other.
    """
    if not path.exists():
        return
    if action != "rotate":
        raise UsageError(f"{path} exists; name a new file")
    if not path.is_file() or not ONE_SECRET.fullmatch(path.read_bytes()):
        raise UsageError(f"{path} exists, and does not hold a token that could be replaced; name a new file")


def _secret(client: Client, options: Namespace) -> str:
    if options.action == "new":
        return client.new_token(options.name, options.role or "submit")
    return client.rotate_token(options.name, overlap=options.overlap or 0.0)


def _give(secret: str, options: Namespace) -> None:
    """Write a secret to the file that is asked for, or print it."""
    if options.output is not None:
        replace_secret(Path(options.output), f"{secret}\n")
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
    rows = [[each.name, each.role, when(each.made), each.maker, when(each.until)] for each in found]
    print_table(["token", "role", "made", "by", "valid until"], rows, left=5)


def audit(options: Namespace) -> None:
    """`streamstats audit`."""
    with client_of(options) as client:
        found = client.audit(who=options.who, limit=options.limit).entries
    if options.json:
        print_json({"entries": [each.model_dump() for each in found]})
        return
    rows = [[when(each.at), each.who, each.method, each.path, str(each.status), each.made or ""] for each in found]
    print_table(["at", "who", "did", "to", "status", "made"], rows, left=6)


def prune(options: Namespace) -> None:
    """`streamstats prune`."""
    keep = None if options.keep is None else parsed("keep", options.keep)
    with client_of(options) as client:
        found = client.prune(keep, dry_run=options.dry_run)
    if options.json:
        print_json({"dry_run": options.dry_run, "removed": [each.model_dump() for each in found]})
        return
    rows = [[each.kind, each.name, when(each.at), each.why, decimal(each.bytes)] for each in found]
    print_table(["kind", "name", "last used", "beyond", "bytes"], rows, left=4)
    total = decimal(sum(each.bytes for each in found))
    say(f"{'would remove' if options.dry_run else 'removed'} {len(found):,}, {total}")
