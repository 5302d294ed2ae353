"""Pairs that nobody listed: the rules of a corpus file, asked of the hub's model tree.

    discover:
      - base: hf://Qwen/Qwen2.5-7B
        tags: [grpo, ppo, rloo]
        min_downloads: 100
        deny: [someone, "*-GGUF"]

Rules take effect wherever a corpus is planned, so a refresh takes up what is new on the hub. To
freeze what they find, paste what `rlsparse discover` prints under `pairs:` and remove the rules.
The same file and the same state of the hub give the same pairs, rule by rule and sorted by name.
Nobody checked what the cards say: facts about the runs stay empty, and guesses are labels
`guessed_...`. A base that is not the right one shows when the pair is compared.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rlsparse_ray.discovery.candidates import grounds, refusal
from rlsparse_ray.discovery.guesses import SOURCE, guess_labels
from rlsparse_ray.entries import Corpus, DiscoverRule, PairEntry
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.hub_address import HubAddress, parse_address

if TYPE_CHECKING:
    from rlsparse_ray.weights.hub_tree import Descendant


@dataclass(frozen=True, slots=True)
class Found:
    """A pair that a rule adds."""

    entry: PairEntry
    why: str
    """In words, on one line."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A model of the tree that a rule does not add."""

    base: str
    repository: str
    reason: str
    """With the key of the rule that decides it in brackets, if one does."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What the rules of a corpus find on the hub now."""

    found: tuple[Found, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    """`discover BASE` -> why the hub could not be asked; the rule adds nothing this time."""

    @property
    def pairs(self) -> tuple[PairEntry, ...]:
        """What is added."""
        return tuple(found.entry for found in self.found)

    @property
    def reasons(self) -> dict[str, int]:
        """How many models were left out for each reason, the most frequent first."""
        counts = Counter(model.reason for model in self.left_out)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def expand(corpus: Corpus) -> tuple[Corpus, dict[str, str]]:
    """The corpus with what its rules find in place of the rules, and the rules that failed.

    The hub is asked only if there are rules.
    """
    discovery = discover(corpus)
    pairs = (*corpus.pairs, *discovery.pairs)
    return corpus.model_copy(update={"pairs": pairs, "discover": ()}), discovery.failed


def discover(corpus: Corpus) -> Discovery:
    """Ask the hub what the rules of a corpus would add to it; a request a page of models.

    A rule whose base is not on the hub, or that the hub does not answer, fails alone.
    """
    tree, taken = _Tree(), _Taken(corpus.entries())
    found: list[Found] = []
    left_out: list[LeftOut] = []
    failed: dict[str, str] = {}
    for rule in corpus.discover:
        try:
            models = tree.models(rule)
        except CheckpointError as error:
            failed[f"discover {rule.base}"] = str(error)
            continue
        reasons = _reasons(rule, models, taken)
        for model in models:
            if model.repository in reasons:
                reason = reasons[model.repository]
                left_out.append(LeftOut(rule.base, model.repository, reason))
            else:
                found.append(Found(_entry(rule, model), grounds(rule, model)))
                taken.add(found[-1].entry)
    return Discovery(tuple(found), tuple(left_out), failed)


class _Tree:
    """Asks for each list of the model tree once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[Descendant]] = {}

    def models(self, rule: DiscoverRule) -> list["Descendant"]:
        """All models in the relations of a rule, each once, sorted by name."""
        base = parse_address(rule.base)
        found = {m.repository: m for kind in rule.relations for m in self._list(base, kind)}
        if not found:
            _check_name(rule.base)
        return [found[name] for name in sorted(found)]

    def _list(self, base: HubAddress, relation: str) -> list["Descendant"]:
        # huggingface_hub takes 0.3 s to import: only who asks the hub waits for it
        from rlsparse_ray.weights.hub_tree import descendants  # noqa: PLC0415

        key = (base.repository, relation)
        if key not in self._known:
            self._known[key] = descendants(base, relation)
        return self._known[key]


def _check_name(base: str) -> None:
    """A misspelled base has no descendants, and nobody would notice."""
    from rlsparse_ray.weights.hub import open_hub  # noqa: PLC0415

    asked, found = parse_address(base), parse_address(open_hub(base).source)
    if found.repository != asked.repository:
        raise CheckpointError(
            f"{base}: the hub calls it {found.repository}, and no card names {asked.repository}: "
            f"write hf://{found.repository}"
        )


class _Taken:
    """The pairs and the names that are there already."""

    def __init__(self, entries: Iterable[PairEntry]) -> None:
        self._pairs: set[tuple[str, str]] = set()
        self._names: set[str] = set()
        for entry in entries:
            self.add(entry)

    def add(self, entry: PairEntry) -> None:
        self._names.add(entry.name)
        self._pairs.add(_models(entry))

    def reason(self, entry: PairEntry) -> str | None:
        """Why an entry cannot be added, if it cannot."""
        if _models(entry) in self._pairs:
            return "already in the corpus"
        return "its name is another pair's in the corpus" if entry.name in self._names else None


def _models(entry: PairEntry) -> tuple[str, str]:
    """What two pairs share that differ in revisions alone."""
    return _unpinned(entry.base), _unpinned(entry.tuned)


def _unpinned(source: str) -> str:
    try:
        address = parse_address(source)
    except CheckpointError:
        return source
    return str(HubAddress(address.repository.lower(), None, address.path))


def _reasons(rule: DiscoverRule, models: Sequence["Descendant"], taken: _Taken) -> dict[str, str]:
    """Why models are left out, by their repositories; the others are taken."""
    reasons = {model.repository: reason for model in models if (reason := refusal(rule, model))}
    matching = sorted((m for m in models if m.repository not in reasons), key=_age)
    for place, model in enumerate(matching):
        # what the corpus has already takes its place too: else pasted pairs would let others in
        reason = taken.reason(_entry(rule, model))
        if reason is None and place >= rule.max_models:
            reason = f"newer than the first {rule.max_models} (max_models)"
        if reason is not None:
            reasons[model.repository] = reason
    return reasons


def _age(model: "Descendant") -> tuple[datetime, str]:
    return model.created or datetime.max.replace(tzinfo=UTC), model.repository


def _entry(rule: DiscoverRule, model: "Descendant") -> PairEntry:
    labels = guess_labels(model, parse_address(rule.base).repository)
    if rule.family is not None:
        del labels["guessed_family"]
    return PairEntry(
        # of this model alone, so that pair_id stays whatever else is found
        name=model.repository,
        base=rule.base,
        tuned=f"hf://{model.repository}",
        family=rule.family,
        source=SOURCE,
        labels=labels,
    )
