"""docs/commands.md: every verb and option, from the command line itself."""

import click
import typer
from typer.cli import get_docs_for_click

from rlsparse_ray.cli import app

_HEAD = """\
# Commands

Made by `docs/generate.py` from the command line: change `rlsparse_ray/cli/`, not this page.
`rlsparse VERB --help` says the same.

"""


def page() -> str:
    """The whole page."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=click.Context(command), name="rlsparse")
    # the title of the page is the one heading of its level; a usage is no command to run
    text = text.replace("# `rlsparse`\n\n", "", 1).replace("```console\n$ ", "```text\n")
    return _HEAD + text.rstrip() + "\n"
