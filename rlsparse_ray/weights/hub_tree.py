"""The hub's model tree: which repositories say in their cards that they come from another.

Asked page by page rather than through `HfApi.list_models`, which waits for ever where the hub
does not answer, begins at the first page again after a fault, and fails on the whole listing when
one card has `tags: 5`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

from huggingface_hub import get_session, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.hub_address import HubAddress
from rlsparse_ray.weights.hub_errors import ask_hub
from rlsparse_ray.weights.hub_settings import endpoint, is_offline

_TIMEOUT = 60.0
"""Seconds for a page of at most 1,000 models."""

_EXPAND = (
    *("createdAt", "downloadsAllTime", "gated", "lastModified"),
    *("library_name", "likes", "private", "tags"),
)
"""What is asked of each model. The hub makes tags of what the card says of bases, data sets and
license, so the card itself, a hundred times as long with its results, stays there."""

_RELATION = re.compile(r"(finetune|adapter|quantized|merge):")


@dataclass(frozen=True, slots=True)
class Descendant:
    """What the hub says of one repository."""

    repository: str
    tags: tuple[str, ...]
    """Of the card, and those that the hub adds: base_model:..., dataset:..., license:..."""
    library: str
    """Empty if the hub does not know it."""
    downloads: int
    """Of all time."""
    likes: int
    created: datetime | None
    updated: datetime | None
    gated: bool
    private: bool

    def tagged(self, key: str) -> tuple[str, ...]:
        """The values of the tags `key:value`, sorted."""
        prefix = f"{key}:"
        return tuple(sorted({t.removeprefix(prefix) for t in self.tags if t.startswith(prefix)}))

    @property
    def bases(self) -> frozenset[str]:
        """The repositories that its card names as bases, in any relation."""
        named = self.tagged("base_model")
        return frozenset(_RELATION.sub("", name, count=1) for name in named)


def descendants(base: HubAddress, relation: str) -> list[Descendant]:
    """The repositories whose cards name a base, sorted by name; one request a page.

    Args:
        base: its repository alone counts, spelled as the cards do.
        relation: finetune, adapter, quantized or merge, as their cards say or the hub infers.

    Raises:
        CheckpointError: the hub refuses, or does not answer in time; the message says what to do.
    """
    if is_offline():
        raise CheckpointError(
            f"{base}: HF_HUB_OFFLINE forbids asking the hub what was made of it: unset it, or list "
            "the pairs under `pairs:`"
        )
    wanted = [("filter", f"base_model:{relation}:{base.repository}")]
    query = urlencode([*wanted, *(("expand", name) for name in _EXPAND)])
    found: dict[str, Descendant] = {}
    while query:
        page, query = _page(query, base)
        # a listing that changes between two pages may give a model twice
        found |= {model.repository: model for model in page}
    return [found[name] for name in sorted(found)]


def _page(query: str, base: HubAddress) -> tuple[list[Descendant], str]:
    """The models of a page, and the query of the next one; empty after the last."""

    def ask() -> tuple[Any, str]:
        answer = get_session().get(
            f"{endpoint()}/api/models?{query}",
            headers=build_hf_headers(library_name="rlsparse-ray"),
            timeout=_TIMEOUT,
        )
        hf_raise_for_status(answer)
        return answer.json(), answer.links.get("next", {}).get("url", "")

    try:
        items, following = ask_hub(ask, base)
        models = [_descendant(item) for item in items]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{base}: {endpoint()} gives no list of models: is it a hub? Check HF_ENDPOINT"
        ) from error
    # the query alone: mirrors of the hub give addresses of the hub itself
    return models, urlsplit(following).query


def _descendant(item: Mapping[str, Any]) -> Descendant:
    return Descendant(
        repository=str(item["id"]),
        tags=tuple(tag for tag in item.get("tags") or () if isinstance(tag, str)),
        library=str(item.get("library_name") or ""),
        downloads=int(item.get("downloadsAllTime") or 0),
        likes=int(item.get("likes") or 0),
        created=_time(item.get("createdAt")),
        updated=_time(item.get("lastModified")),
        gated=bool(item.get("gated")),
        private=bool(item.get("private")),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
