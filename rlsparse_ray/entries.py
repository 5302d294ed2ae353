"""What a corpus file may say: settings, pairs, trajectories and rules, as checked models.

No file is read here: `rlsparse_ray.corpus` does that and says on which line an error is.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from rlsparse_ray.compare.criteria import parse_criterion
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.hub_address import parse_address
from rlsparse_ray.weights.spec import FLOAT_DTYPES

_UNITS = {"": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def _bytes(value: Any) -> Any:
    """A size such as 1GiB, 512MB or 1000 in bytes."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no size: write bytes, or a unit such as 512MB or 1GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _criterion(text: str) -> str:
    parse_criterion(text)
    return text


def _fraction(value: float) -> float:
    if value > 1:
        raise ValueError(f"a sparsity is between 0 and 1: write {value / 100:g}, not {value:g}")
    return value


def _float_dtype(value: str) -> str:
    if value not in FLOAT_DTYPES:
        raise ValueError(f"{value!r} is no float dtype: write one of {', '.join(FLOAT_DTYPES)}")
    return value


def _hub_address(value: str) -> str:
    try:
        parse_address(value)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    return value


def _denied(value: str) -> str:
    if "://" in value or value.count("/") > 1:
        raise ValueError(f"{value!r}: write org, org/repo or a pattern such as *-GGUF")
    return value


def _labels(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {str(key): _label(str(key), item) for key, item in value.items()}


def _label(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float | date):
        return str(value)
    raise ValueError(f"label {key!r} must be one text, number or truth value")


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
    )


_Text = Annotated[str, Field(min_length=1)]

Relation = Literal["finetune", "adapter", "quantized", "merge"]
"""The relations of the hub's model tree."""


class Settings(_Model):
    """What is compared, and how the work is cut."""

    criteria: tuple[Annotated[str, AfterValidator(_criterion)], ...] = ("exact", "abs:1e-5")
    """Criteria for which masks are kept; counts cover more. About a bit a parameter each."""
    slice_bytes: Annotated[int, BeforeValidator(_bytes), Field(gt=0)] = 256 * 2**20
    """Bytes of the base in a slice: smaller slices spread and resume better."""
    compare_dtype: Annotated[str, AfterValidator(_float_dtype)] | None = None
    """Dtype in which floats are compared; none: the narrower of the two, tensor by tensor."""

    @model_validator(mode="after")
    def _criteria_differ(self) -> Self:
        if not self.criteria:
            raise ValueError("no criteria: name one, e.g. exact, or leave the key out")
        parsed = [parse_criterion(text) for text in self.criteria]
        for place, text in enumerate(self.criteria):
            if parsed[place] in parsed[:place]:
                raise ValueError(f"criterion {text!r} is there twice: remove one")
        return self


class _Run(_Model):
    """What is known of a training run, and so of every pair from it."""

    family: str | None = None
    """Model family, by which statistics are grouped."""
    algorithm: str | None = None
    """Training algorithm: SFT, DPO, GRPO, PPO, ..."""
    stage: str | None = None
    """Training stage: SFT, RL, ..."""
    dataset: str | None = None
    """What it was trained on."""
    seed: int | None = None
    """Seed of the run."""
    on_policy: bool | None = None
    """Whether the samples came from the policy itself."""
    kl: float | None = None
    """Coefficient of the KL penalty; 0 for none."""
    learning_rate: float | None = None
    """Peak learning rate."""
    source: str | None = None
    """Where the facts about the run come from."""
    reported_sparsity: Annotated[float, AfterValidator(_fraction), Field(ge=0)] | None = None
    """Sparsity that a paper reports, between 0 and 1, to check ours against.

    Of a trajectory: of its last checkpoint against its first.
    """
    labels: Annotated[dict[str, str], BeforeValidator(_labels)] = {}
    """Anything else; it reaches SQL as a map of texts."""


class PairEntry(_Run):
    """A base model, a model tuned from it, and what is known of the run."""

    name: _Text
    """How tables and queries call the pair; unique in the corpus."""
    base: _Text
    """Folder of the model before; relative to the corpus file."""
    tuned: _Text
    """Folder of the model after; relative to the corpus file."""
    steps: int | None = None
    """Optimizer steps."""


class TrajectoryPair(PairEntry):
    """Two checkpoints of a trajectory as a pair. Corpus files cannot say these directly."""

    trajectory: str
    """Name of the trajectory."""
    step_from: int
    """Optimizer step of the base."""
    step_to: int
    """Optimizer step of the tuned model."""


class CheckpointEntry(_Model):
    """One model of a trajectory."""

    model: _Text
    """Folder of the model; relative to the corpus file."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Optimizer step at which it was written; 0 for the first one unless given."""


def _in_order(checkpoints: tuple[CheckpointEntry, ...]) -> tuple[CheckpointEntry, ...]:
    if len(checkpoints) < 2:
        raise ValueError("a trajectory has at least 2 checkpoints: its start and one more")
    start, *later = checkpoints
    ordered = [start if start.step is not None else start.model_copy(update={"step": 0})]
    for entry in later:
        step, before = entry.step, ordered[-1].step or 0
        if step is None:
            raise ValueError(f"{entry.model} has no step: write {{model: ..., step: NUMBER}}")
        if step <= before:
            raise ValueError(
                f"{entry.model} has step {step}, but the one before it {before}: "
                "write checkpoints in the order of their steps, each step once"
            )
        ordered.append(entry)
    return tuple(ordered)


class Trajectory(_Run):
    """The checkpoints of one run in order, and what is known of the run."""

    name: _Text
    """How tables and queries call the trajectory; unique in the corpus."""
    checkpoints: Annotated[tuple[CheckpointEntry, ...], AfterValidator(_in_order)]
    """The models in the order of their steps; the first one is the start."""
    spans: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """Which checkpoints to compare besides each with the first: those so many places apart."""

    @model_validator(mode="after")
    def _spans_fit(self) -> Self:
        if len(set(self.spans)) < len(self.spans):
            raise ValueError(f"spans {list(self.spans)} has one twice: remove one")
        widest, known = max(self.spans, default=1), len(self.checkpoints)
        if widest >= known:
            raise ValueError(f"span {widest} takes {widest + 1} checkpoints, but there are {known}")
        return self

    def steps(self) -> tuple[int, ...]:
        """The step of each checkpoint."""
        return tuple(checkpoint.step or 0 for checkpoint in self.checkpoints)

    def pairs(self) -> Iterator[TrajectoryPair]:
        """The first checkpoint with every other, then those `spans` places apart; none twice."""
        last = len(self.checkpoints) - 1
        spanned = ((k, k + s) for s in sorted(self.spans) for k in range(last + 1 - s))
        for first, second in dict.fromkeys([*((0, k) for k in range(1, last + 1)), *spanned]):
            yield self._pair(first, second, whole=(first, second) == (0, last))

    def _pair(self, first: int, second: int, whole: bool) -> TrajectoryPair:
        steps = self.steps()
        known = {name: getattr(self, name) for name in _Run.model_fields}
        if not whole:
            known["reported_sparsity"] = None
        return TrajectoryPair(
            **known,
            name=f"{self.name}@{steps[first]}-{steps[second]}",
            base=self.checkpoints[first].model,
            tuned=self.checkpoints[second].model,
            steps=steps[second] - steps[first],
            trajectory=self.name,
            step_from=steps[first],
            step_to=steps[second],
        )


class DiscoverRule(_Model):
    """Which models of the hub become pairs: those whose cards name a base, with some tags."""

    base: Annotated[_Text, AfterValidator(_hub_address)]
    """The base of all these pairs, hf://org/repo, as the cards write it; revisions are kept."""
    tags: tuple[_Text, ...] = ()
    """A model has one of these tags (dpo, grpo, ..., dataset:org/name, license:mit); none: any."""
    by_name: bool = False
    """Whether a tag may also be a word of the repository's name."""
    relations: tuple[Relation, ...] = Field(default=("finetune",), min_length=1)
    """How the hub's model tree relates a model to the base."""
    several_bases: bool = False
    """Whether to take models whose cards name other bases too: which one is right, none says."""
    gated: bool = False
    """Whether to take models whose terms must be accepted; your token needs access to each."""
    min_downloads: Annotated[int, Field(ge=0)] = 0
    """Downloads of all time: a number that only grows, so a model that is in stays in."""
    min_likes: Annotated[int, Field(ge=0)] = 0
    """Likes."""
    created_since: date | None = None
    """First day on which the repository may have been created, in UTC."""
    updated_since: date | None = None
    """First day on which it may have been changed for the last time, in UTC."""
    max_models: Annotated[int, Field(ge=1)] = 100
    """Most pairs of the rule. The oldest repositories go first: newer ones never replace them."""
    deny: tuple[Annotated[_Text, AfterValidator(_denied)], ...] = ()
    """What to leave out: org, org/repo or a pattern over org/repo such as *-GGUF; case is no
    matter."""
    family: str | None = None
    """Model family of these pairs, as a fact; else it is guessed from the name of the base."""


class Corpus(_Model):
    """A list of pairs and trajectories, and of rules that find more pairs."""

    version: Literal[1]
    """Version of this file format."""
    settings: Settings = Settings()
    """What is compared, and how the work is cut."""
    pairs: tuple[PairEntry, ...] = ()
    """The pairs."""
    trajectories: tuple[Trajectory, ...] = ()
    """Runs with their checkpoints, which expand into pairs."""
    discover: tuple[DiscoverRule, ...] = ()
    """Rules by which the hub is asked for more pairs, each time that the corpus is planned."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if not self.pairs and not self.trajectories and not self.discover:
            raise ValueError("no pairs and no trajectories: there is nothing to compare")
        for what, names in (
            ("trajectory", [trajectory.name for trajectory in self.trajectories]),
            ("pair", [entry.name for entry in self.entries()]),
        ):
            twice = next((name for name, times in Counter(names).items() if times > 1), None)
            if twice is not None:
                raise ValueError(f"{what} name {twice!r} is used twice: give each {what} its own")
        return self

    def entries(self) -> tuple[PairEntry, ...]:
        """The pairs, then what the trajectories expand into; no rule is asked here."""
        expanded = (pair for trajectory in self.trajectories for pair in trajectory.pairs())
        return (*self.pairs, *expanded)
