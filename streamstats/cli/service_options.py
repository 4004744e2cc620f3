"""What `serve` takes, and the commands that ask a service."""

from __future__ import annotations

import argparse
from typing import Any

from . import descriptions
from .shared_options import add_config, add_service, command, local

WITH_SERVICE = "service_commands"
FOR_ADMINS = "admin_commands"


def add_commands(commands: Any) -> None:
    """Add `serve`, and the commands that ask a service."""
    _add_serve(command(commands, "serve", descriptions.SERVE, WITH_SERVICE))
    _add_backup(command(commands, "backup", descriptions.BACKUP, WITH_SERVICE))
    _add_submit(command(commands, "submit", descriptions.SUBMIT, WITH_SERVICE))
    _add_jobs(command(commands, "jobs", descriptions.JOBS, WITH_SERVICE))
    _add_watch(command(commands, "watch", descriptions.WATCH, WITH_SERVICE))
    _add_cancel(command(commands, "cancel", descriptions.CANCEL, WITH_SERVICE))
    _add_fetch(command(commands, "fetch", descriptions.FETCH, WITH_SERVICE))
    _add_send(command(commands, "send", descriptions.SEND, WITH_SERVICE))
    _add_withdraw(command(commands, "withdraw", descriptions.WITHDRAW, WITH_SERVICE))
    _add_stores(command(commands, "stores", descriptions.STORES, WITH_SERVICE))
    _add_delete(command(commands, "delete", descriptions.DELETE, WITH_SERVICE))
    _add_token(command(commands, "token", descriptions.TOKEN, FOR_ADMINS))
    _add_audit(command(commands, "audit", descriptions.AUDIT, FOR_ADMINS))
    _add_prune(command(commands, "prune", descriptions.PRUNE, FOR_ADMINS))


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/service.yaml")


def _add_backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the configuration of the service")
    parser.add_argument("folder", type=local, metavar="FOLDER", help="a new folder, best on another disk")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "the YAML file of a job")
    parser.add_argument("--watch", action="store_true", help="show the progress until the job ends")
    parser.add_argument("--follow", action="store_true", help="keep counting rows as they are appended, until …")
    parser.add_argument("--until-rows", metavar="N", type=int, help="… every layer has N rows")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="… no rows are appended for this long")
    parser.add_argument("--submitter", metavar="NAME", help="for admins: whose job it is; default: your token's")
    parser.add_argument(
        "--priority",
        metavar="N",
        type=int,
        default=0,
        help="jobs of the same submitter run in order of priority, highest first",
    )
    parser.add_argument("--key", help="submitting again with the same key gives the same job, not a new one")
    parser.add_argument("--name", help="what to call the job")
    parser.add_argument("--tag", action="append", help="a word to find the job by; repeatable")
    parser.add_argument("--note", metavar="TEXT", help="a note about the job")
    parser.add_argument("--notify", metavar="HOOK", action="append", help="a hook of the service to tell of the end")
    add_service(parser)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", nargs="?", help="show this job")
    parser.add_argument("--state", action="append", help="only jobs in this state: queued, running, done, …")
    parser.add_argument("--submitter", metavar="NAME", help="only jobs of this submitter")
    parser.add_argument("--source", metavar="STORE", help="only jobs that read this source")
    parser.add_argument("--tag", action="append", help="only jobs with this tag; repeated: with all of them")
    parser.add_argument("--text", help="only jobs in whose name, note, source, … this text occurs")
    parser.add_argument("--limit", metavar="N", type=int, default=20, help="show the newest N jobs")
    add_service(parser)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the job's identifier, as submit printed it")
    add_service(parser)


def _add_cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the job's identifier, as submit printed it")
    add_service(parser)


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the job's identifier, as submit printed it")
    parser.add_argument(
        "-o", "--output", type=local, metavar="OUT", required=True, help="a folder that is new or empty"
    )
    add_service(parser)


def _add_send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="NAME", help="a store of the service; created if it does not exist")
    parser.add_argument("layer", metavar="LAYER", help="the layer's name")
    parser.add_argument("files", metavar="FILE", nargs="+", help=".npy, or safetensors with one tensor")
    parser.add_argument("--channel-axis", metavar="N", type=int, default=-1, help="the axis of the channels")
    parser.add_argument(
        "--quantization", metavar="JSON", help='of integer codes: \'{"scale": 0.1, "scale_is": "step"}\''
    )
    parser.add_argument(
        "--geometry",
        metavar="JSON",
        help='the layer\'s kernel, for `taps`: \'{"kernel": [3, 3], "pads": [1, 1, 1, 1]}\'',
    )
    parser.add_argument("--key", help="with a single file: its key; default: the SHA-256 of its content")
    add_service(parser)


def _add_withdraw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="NAME", help="a store of the service")
    parser.add_argument("layer", metavar="LAYER", help="the layer's name")
    parser.add_argument("files", metavar="FILE", nargs="*", help="files that were sent without --key")
    parser.add_argument("--key", help="the key that the activations were sent with")
    parser.add_argument("--forget", action="store_true", help="have jobs that have ended subtract them, too")
    add_service(parser)


def _add_stores(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="NAME", nargs="?", help="show the layers of this store")
    add_service(parser)


def _add_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", metavar="JOB", nargs="*", help="a job's identifier, as submit printed it")
    parser.add_argument("--store", metavar="NAME", help="instead of jobs: a store of the service")
    parser.add_argument("--layer", metavar="LAYER", help="only this layer of the store")
    add_service(parser)


def _add_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["new", "list", "rotate", "revoke"], help="what to do")
    parser.add_argument("name", metavar="NAME", nargs="?", help="whose token")
    parser.add_argument("--role", choices=["read", "submit", "admin"], help="of a new token; default: submit")
    parser.add_argument(
        "-o",
        "--output",
        type=local,
        metavar="FILE",
        help="write the secret to a file that only you can read: a new one or, with rotate, one with an older secret",
    )
    parser.add_argument(
        "--overlap", metavar="SECONDS", type=float, help="with rotate: how long the old secret stays valid; default: 0"
    )
    add_service(parser)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--who", metavar="NAME", help="only what this token did")
    parser.add_argument("--limit", metavar="N", type=int, default=100, help="show the newest N entries")
    add_service(parser)


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="remove nothing; only tell what would be removed")
    parser.add_argument(
        "--keep", metavar="JSON", help='in place of the service\'s `retention`: \'{"jobs": {"age": "90d"}}\''
    )
    add_service(parser)
