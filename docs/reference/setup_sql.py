"""What the comments of queries/setup.sql say about views and macros."""

import re
from dataclasses import dataclass

from rlsparse_ray.sql import queries_dir

_CREATE = re.compile(
    r'^CREATE OR REPLACE TEMP (?:TABLE|VIEW|MACRO) "?(?P<name>\w+)"?(?P<arguments>\([^)]*\))?', re.M
)
_COMMENT = re.compile(r"(?:^--.*\n)+", re.M)
_COLUMN = re.compile(r"^ {4}(?P<name>\w+),? +-- (?P<doc>.+)$", re.M)


@dataclass(frozen=True, slots=True)
class Definition:
    """A view, table or macro: how it is called, the comment before it, and its columns'."""

    call: str
    comment: str
    formula: str
    """What stands after AS, on one line; of a macro that gives a value."""
    columns: dict[str, str]


def definitions() -> dict[str, Definition]:
    """Every view, table and macro, by its name."""
    text = (queries_dir() / "setup.sql").read_text()
    found, places = {}, list(_CREATE.finditer(text))
    for place, create in enumerate(places):
        before = text[places[place - 1].end() if place else 0 : create.start()]
        end = places[place + 1].start() if place + 1 < len(places) else len(text)
        body = text[create.end() : end]
        found[create["name"]] = Definition(
            create["name"] + (create["arguments"] or ""),
            _last_comment(before),
            " ".join(body.partition(";")[0].removeprefix(" AS").split()),
            {m["name"]: m["doc"] for m in _COLUMN.finditer(body)},
        )
    return found


def _last_comment(text: str) -> str:
    """The last block of comment lines, as paragraphs; none where that opens a section."""
    blocks = _COMMENT.findall(text)
    if not blocks or "-----" in blocks[-1]:
        return ""
    return "\n".join(line.removeprefix("--").removeprefix(" ") for line in blocks[-1].splitlines())
