"""`streamstats completion`: a script for a shell, made from the parser, that completes without starting Python."""

from __future__ import annotations

import argparse
from argparse import Namespace

import shtab

from .parser import make_parser
from .tables import print_json

FILES = ("CONFIG", "FILE", "FILE.html", "FIXED", "MODEL.onnx", "QUANTIZED.onnx")
FOLDERS = ("FOLDER", "OUT", "OUT1", "OUT2", "STORE")
"""The metavars of arguments that are paths. Stores may be files, too, but few are."""
COMPLETIONS = dict.fromkeys(FILES, shtab.FILE) | dict.fromkeys(FOLDERS, shtab.DIRECTORY)


def completion(options: Namespace) -> None:
    """`streamstats completion SHELL`."""
    parser = make_parser()
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in COMPLETIONS:
                action.complete = COMPLETIONS[action.metavar]
    script = shtab.complete(parser, options.shell)
    if options.json:
        print_json({"shell": options.shell, "script": script})
    else:
        print(script)
