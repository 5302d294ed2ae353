"""Plain texts as Markdown."""

import re
from collections.abc import Iterable, Sequence

# `_` between letters is no emphasis, and names of columns stay readable in the source
_SPECIAL = re.compile(r"[\\*<>\[\]|`]|(?<!\w)_|_(?!\w)")


def escaped(text: str) -> str:
    """A text in which nothing means emphasis, HTML, a link or the end of a cell.

    What stands between backquotes stays code.
    """
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(
        part.replace("|", r"\|") if n % 2 else _SPECIAL.sub(r"\\\g<0>", part)
        for n, part in enumerate(parts)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
