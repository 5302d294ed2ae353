"""What was discovered as text: YAML to paste under `pairs:`, or JSON."""

import json
from dataclasses import asdict
from typing import Any

import yaml

from rlsparse_ray.discovery.rules import Discovery, Found
from rlsparse_ray.entries import PairEntry


def as_yaml(discovery: Discovery) -> str:
    """Items of the list `pairs:`, each after a comment that says why it is there. ASCII."""
    return "".join(map(_item, discovery.found))


def as_json(discovery: Discovery) -> str:
    """Pairs with why they are there, models that were left out, and rules that failed."""
    answer = {
        "pairs": [_plain(found.entry) | {"why": found.why} for found in discovery.found],
        "left_out": [asdict(model) for model in discovery.left_out],
        "failed": discovery.failed,
    }
    return json.dumps(answer, indent=2)


def _item(found: Found) -> str:
    comment = found.why.encode("ascii", "backslashreplace").decode()
    # no width: a folded line is harder to edit
    lines = yaml.safe_dump([_plain(found.entry)], sort_keys=False, width=2**31).splitlines()
    return "".join(f"  {line}\n" for line in (f"# {comment}", *lines))


def _plain(entry: PairEntry) -> dict[str, Any]:
    said = entry.model_dump(exclude_defaults=True)
    return {"name": entry.name, "base": entry.base, "tuned": entry.tuned} | said
