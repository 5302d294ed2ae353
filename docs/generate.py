"""Write the pages that the software itself knows best, so that they cannot fall behind it.

    .venv/bin/python docs/generate.py            # write what has changed
    .venv/bin/python docs/generate.py --check    # name what would change; exit code 1 if anything

docs/tables.md comes from the Arrow schemas and the comments of queries/setup.sql, docs/queries.md
from the headers of the query files, docs/commands.md from the command line, and the tables of keys
in docs/corpus.md from the models that check a corpus file.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

from reference import commands, corpus_keys, queries, tables  # noqa: E402 (after the path is set)

_KEYS = re.compile(
    r"(?<=<!-- keys: )(?P<model>\w+)(?P<end> -->\n).*?(?=<!-- end of keys -->)", re.S
)


def corpus_page() -> str:
    """docs/corpus.md with its tables of keys made anew; the words around them are by hand."""
    text = (DOCS / "corpus.md").read_text()
    return _KEYS.sub(lambda m: f"{m['model']}{m['end']}{corpus_keys.table(m['model'])}", text)


PAGES: dict[str, Callable[[], str]] = {
    "tables.md": tables.page,
    "queries.md": queries.page,
    "commands.md": commands.page,
    "corpus.md": corpus_page,
}


def outdated() -> dict[Path, str]:
    """What the pages should say, of those that say something else."""
    made = {DOCS / name: page() for name, page in PAGES.items()}
    return {
        path: text for path, text in made.items() if not path.exists() or path.read_text() != text
    }


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check only name those that are out of date."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    pages = outdated()
    for path, text in pages.items():
        print(path.relative_to(DOCS.parent))
        if not arguments:
            path.write_text(text)
    return 1 if arguments and pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
