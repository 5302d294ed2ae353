"""The command line: parse, call, print. Every verb is a plain Python call too."""

import sys

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
    "upkeep",
]


def main() -> None:
    """Entry point: our own errors are printed without a traceback and end with exit code 2."""
    try:
        app()
    except RlsparseError as error:
        console.err.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        console.err.print("interrupted; what is finished is kept: run again to go on")
        sys.exit(130)
