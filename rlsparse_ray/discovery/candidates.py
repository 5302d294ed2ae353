"""Whether a rule of a corpus file takes a model of the hub, and why, or why not."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rlsparse_ray.discovery.guesses import clean, copy_kind, has_words
from rlsparse_ray.entries import DiscoverRule
from rlsparse_ray.weights.hub_address import parse_address

if TYPE_CHECKING:
    from rlsparse_ray.weights.hub_tree import Descendant


def refusal(rule: DiscoverRule, model: "Descendant") -> str | None:
    """Why a rule leaves a model out, and in brackets the key that decides it; None: it does not."""
    return next((reason for judge in _JUDGES if (reason := judge(rule, model))), None)


def grounds(rule: DiscoverRule, model: "Descendant") -> str:
    """Why a rule takes a model, on one line."""
    base = parse_address(rule.base).repository
    relations = [kind for kind in rule.relations if f"base_model:{kind}:{base}" in model.tags]
    others = sorted(model.bases - {base})
    created = [f"created {model.created.date()}"] if model.created else []
    parts = [
        *_matches(rule, model),
        f"{' and '.join(relations)} of {base} by its card",
        *([f"which also names {', '.join(others)}"] if others else []),
        f"{model.downloads:,} downloads",
        f"{model.likes:,} likes",
        *created,
    ]
    return clean(", ".join(parts))


def _matches(rule: DiscoverRule, model: "Descendant") -> list[str]:
    """Where the tags of a rule are found in a model."""
    have = {tag.casefold() for tag in model.tags}
    tagged = [f"tag {tag}" for tag in rule.tags if tag.casefold() in have]
    return tagged + [
        f"{tag} in its name" for tag in rule.tags if rule.by_name and _named(model, tag)
    ]


def _named(model: "Descendant", tag: str) -> bool:
    return has_words(model.repository.rpartition("/")[2], tag)


def _denied(rule: DiscoverRule, model: "Descendant") -> str | None:
    name = model.repository.lower()
    for entry in map(str.lower, rule.deny):
        owner = "/" not in entry and not set(entry) & set("*?[")
        if fnmatchcase(name, f"{entry}/*" if owner else entry):
            return "denied (deny)"
    return None


def _closed(rule: DiscoverRule, model: "Descendant") -> str | None:
    if model.private:
        return "private"
    return "gated (gated)" if model.gated and not rule.gated else None


def _doubtful(rule: DiscoverRule, model: "Descendant") -> str | None:
    """Where what the card says of its bases makes no pair."""
    if model.repository in model.bases:
        return "its card names itself as a base"
    if len(model.bases) > 1 and not rule.several_bases:
        return "its card names several bases (several_bases)"
    kind = copy_kind(model)
    return (
        f"seems to be {_KINDS[kind]} (relations)" if kind and kind not in rule.relations else None
    )


_KINDS = {"quantized": "quantized", "adapter": "an adapter", "merge": "a merge"}


def _untagged(rule: DiscoverRule, model: "Descendant") -> str | None:
    if not rule.tags or _matches(rule, model):
        return None
    if any(_named(model, tag) for tag in rule.tags):
        return "a tag of the rule in its name alone (by_name)"
    return "no tag of the rule (tags)"


def _unpopular(rule: DiscoverRule, model: "Descendant") -> str | None:
    if model.downloads < rule.min_downloads:
        return f"fewer than {rule.min_downloads:,} downloads (min_downloads)"
    if model.likes < rule.min_likes:
        return f"fewer than {rule.min_likes:,} likes (min_likes)"
    return None


def _old(rule: DiscoverRule, model: "Descendant") -> str | None:
    if _is_before(model.created, rule.created_since):
        return f"created before {rule.created_since} (created_since)"
    if _is_before(model.updated, rule.updated_since):
        return f"not updated since {rule.updated_since} (updated_since)"
    return None


def _is_before(when: datetime | None, day: date | None) -> bool:
    return day is not None and (when is None or when.astimezone(UTC).date() < day)


_JUDGES: tuple[Callable[[DiscoverRule, "Descendant"], str | None], ...] = (
    _denied,
    _closed,
    _doubtful,
    _untagged,
    _unpopular,
    _old,
)
"""In the order in which their reasons are given."""
