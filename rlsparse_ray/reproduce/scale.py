"""A scale file: which bases, runs and comparisons a reproduction is made of.

What every key means stands here; how the file is found and read, in `scale_file`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Algorithm = Literal["SFT", "DPO", "SimPO", "ORPO", "KTO", "GRPO", "PPO", "PRIME"]
Varied = Literal[
    "kl", "clipping", "updates_per_sample", "data", "learning_rate", "optimizer", "precision"
]
"""Fields of `experiments.runs.Run` of which a comparison may change one."""
Mask = Literal["subnetwork", "random", "complement"]
Seed = Annotated[int, Field(ge=0)]
_Some = Field(min_length=1)


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Scratch(_Model):
    """Sizes of a Llama that is pretrained on the arithmetic task from random weights."""

    hidden: int
    intermediate: int
    layers: int
    tied: bool = False
    seed: Seed = 1
    steps: int = 1200
    batch: int = 256
    learning_rate: float = 2e-3


class Base(_Model):
    """A base model: one that ships with the package, SmolLM2-135M, or one made from nothing."""

    name: str
    """That of a shipped base, smollm2-135m-instruct, or what the new one shall be called."""
    family: str
    """Model family, as the corpus file says it."""
    scratch: Scratch | None = None
    """Makes the base from nothing."""


class Settings(_Model):
    """What a scale says of an algorithm otherwise than the defaults of `experiments`."""

    steps: Annotated[int, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    batch: Annotated[int, Field(gt=0)] | None = None
    generations: Annotated[int, Field(gt=1)] | None = None
    kl: Annotated[float, Field(ge=0)] | None = None
    seconds: Annotated[float, Field(gt=0)] = 10.0
    """What a run took on one core, or one GPU: only the estimate of a plan depends on it."""

    def fields(self) -> dict[str, Any]:
        """The fields of a run that are said, with their values."""
        return self.model_dump(exclude_none=True, exclude={"seconds"})


class Main(_Model):
    """Runs that most claims are tested on: every combination of these."""

    base: str
    algorithms: Annotated[dict[Algorithm, Settings], _Some]
    """With what is different from the defaults: `GRPO: {}` for nothing."""
    datasets: Annotated[tuple[str, ...], _Some]
    seeds: Annotated[tuple[Seed, ...], _Some]


class Selection(_Model):
    """Some of the main runs."""

    base: str
    dataset: str
    algorithms: Annotated[tuple[Algorithm, ...], _Some]
    seeds: Annotated[tuple[Seed, ...], _Some]


class Comparison(Selection):
    """Main runs again with one field changed; each is compared with its main run."""

    varies: Varied
    values: Annotated[tuple[bool | int | float | str, ...], _Some]
    """What the field is set to; the main run has the usual value."""
    also: Settings = Settings()
    """What must change with it for the run to learn at all: SGD wants another learning rate."""


class Dynamics(Selection):
    """Main runs that keep checkpoints on the way."""

    checkpoints: Annotated[int, Field(ge=2)]
    """How many, evenly spaced; the last one is the tuned model."""


class Subnetworks(Selection):
    """Main runs again that train some of the weights only."""

    masks: Annotated[tuple[Mask, ...], _Some]
    """The main run's own exact changes, as many others by chance, or all others."""


class Scale(_Model):
    """A whole scale file."""

    version: Literal[1]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where runs train, unless --device says otherwise."""
    gpu_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a GPU that a run takes."""
    memory_gib: Annotated[float, Field(gt=0)] = 1.0
    """Memory that a run may take."""
    margin: Annotated[float, Field(gt=0)] = 0.01
    """A run has learned if its mean reward rose by more than this."""
    bases: Annotated[tuple[Base, ...], _Some]
    main: Annotated[tuple[Main, ...], _Some]
    """One for each base."""
    comparisons: tuple[Comparison, ...] = ()
    dynamics: tuple[Dynamics, ...] = ()
    subnetworks: tuple[Subnetworks, ...] = ()

    @model_validator(mode="after")
    def _selections_are_main_runs(self) -> Self:
        known = [base.name for base in self.bases]
        if sorted(known) != sorted(main.base for main in self.main):
            raise ValueError(f"main: give each of the bases ({', '.join(known)}) once")
        for key in ("comparisons", "dynamics", "subnetworks"):
            for number, chosen in enumerate(getattr(self, key)):
                self._check(f"{key}.{number}", chosen)
        return self

    def _check(self, place: str, chosen: Selection) -> None:
        """A run of a selection is compared with its main run, so there must be one."""
        of_base = {main.base: main for main in self.main}
        if chosen.base not in of_base:
            raise ValueError(f"{place}.base: {chosen.base} is not among {', '.join(of_base)}")
        main = of_base[chosen.base]
        wanted: tuple[tuple[str, Collection[Any], Collection[Any]], ...] = (
            ("dataset", (chosen.dataset,), main.datasets),
            ("algorithms", chosen.algorithms, main.algorithms),
            ("seeds", chosen.seeds, main.seeds),
        )
        for key, some, there in wanted:
            if missing := [str(one) for one in some if one not in there]:
                raise ValueError(
                    f"{place}.{key}: {', '.join(missing)} not among the main runs of "
                    f"{main.base}: known are {', '.join(map(str, there))}"
                )

    def settings(self, base: str, algorithm: str) -> Settings:
        """What is said of the main runs of a base and an algorithm."""
        return next(
            settings
            for main in self.main
            for name, settings in main.algorithms.items()
            if (main.base, name) == (base, algorithm)
        )
