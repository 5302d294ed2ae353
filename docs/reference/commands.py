"""docs/commands.md: every verb and option, from the command line itself."""

import re
from typing import Any

import click
import typer
from typer.cli import get_docs_for_click

from reference.markdown import table
from rlsparse_ray.cli import app

_HEAD = """\
# Commands

Made by `docs/generate.py` from the command line: change `rlsparse_ray/cli/`, not this page.
`rlsparse VERB --help` says the same.

"""
_VARIABLES = {
    "`RLSPARSE_STORE`": "the store of every verb that is not given `--store`",
    "`RLSPARSE_QUIET`": "`1` is `--quiet`: no progress and no hints",
    "`RLSPARSE_PROGRESS_SECONDS`": (
        "seconds between two lines of progress where there is no terminal, as in the log of a job; "
        "30 unless set"
    ),
    "`RLSPARSE_RETRY_SECONDS`": (
        "seconds for which the hub or a bucket that fails for the moment is asked again; 120 "
        "unless set"
    ),
    "`RLSPARSE_LEASE_SECONDS`": (
        "seconds after which refresh, overlap or gc of another process counts as dead if it has "
        "not said that it lives; 60 unless set, and the same for all who write to one store"
    ),
    "`NO_COLOR`": "`1` takes out colours",
    "`RAY_ADDRESS`": "the Ray cluster of verbs that are not given `--address`",
    "`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`": (
        "the hub's own: see [places.md](places.md)"
    ),
    "`AWS_...`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_...`": (
        "the buckets' own: see [places.md](places.md)"
    ),
}


def page() -> str:
    """The whole page."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=click.Context(command), name="rlsparse")
    text = _with_whole_summaries(text, command)
    # the title of the page is the one heading of its level; a usage is no command to run
    text = text.replace("# `rlsparse`\n\n", "", 1).replace("```console\n$ ", "```text\n")
    variables = table(("variable", "what it says"), list(_VARIABLES.items()))
    return f"{_HEAD}{text.rstrip()}\n\n## Environment variables\n\n{variables}"


def _with_whole_summaries(text: str, group: Any) -> str:
    """The lists of verbs with all of their first lines, which typer cuts after a few words."""
    # typer brings a click of its own, so its groups are told by what they have
    for name, verb in getattr(group, "commands", {}).items():
        whole = " ".join((verb.help or "").partition("\n\n")[0].split())
        line = re.compile(rf"(?<=^\* `{name}`: ).*$", re.MULTILINE)
        text = _with_whole_summaries(line.sub(whole.replace("\\", r"\\"), text), verb)
    return text
