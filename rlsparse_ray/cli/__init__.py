"""The command line: parse, call, print. Every verb is a plain Python call too."""

import atexit
import os
import sys
import threading
import traceback
from contextlib import suppress
from typing import NoReturn

from rich.markup import escape

from rlsparse_ray import console

from rlsparse_ray.cli import (  # isort: skip - help lists the verbs in the order of the imports
    extraction,
    questions,
    reporting,
    geometry,
    refreshing,
    upkeep,
    patching,
    reproducing,
)
from rlsparse_ray.cli.app import app
from rlsparse_ray.errors import RlsparseError

__all__ = [
    "app",
    "extraction",
    "geometry",
    "main",
    "patching",
    "questions",
    "refreshing",
    "reporting",
    "reproducing",
    "run",
    "upkeep",
]


FAULT = 4
"""Exit code of what nobody foresaw: 1 says that the work was done and found something wrong."""


def main() -> None:
    """Entry point: our own errors are printed without a traceback and end with exit code 2.

    All others end with FAULT and a traceback.
    """
    try:
        app()
    except RlsparseError as error:
        console.err.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        console.err.print("interrupted; what is finished is kept: run again to go on")
        sys.exit(130)
    except Exception:  # noqa: BLE001 (what nobody foresaw)
        traceback.print_exc()
        sys.exit(FAULT)


def run() -> NoReturn:
    """The command itself: `main` in a process of its own, which ends when its work is done.

    Native threads of the libraries outlive their work; twice in some thousand runs one of them
    crashed while C++ took a finished process apart, so that a run that went well ended with 139.
    What Python has to do at the end is done; the rest the system does.
    """
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):  # as in `rlsparse query NAME | head`
            stream.flush()
    os._exit(code)
