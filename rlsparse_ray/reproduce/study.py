"""The runs that a scale asks for, each once, and which of them are compared with which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlsparse_ray.errors import ScaleError
from rlsparse_ray.experiments.defaults import default_run
from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.reproduce.scale import Comparison, Scale, Selection, Subnetworks


@dataclass(frozen=True, slots=True)
class Variant:
    """A run that differs from a main run in one field."""

    varies: str
    value: bool | int | float | str
    usual: bool | int | float | str
    """The field's value in the main run."""
    name: str
    reference: str
    """The main run."""


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that a scale asks for."""

    scale: Scale
    full: tuple[Run, ...]
    """The main runs, then the variants; all weights are trained."""
    masked: tuple[Run, ...]
    """They train the subnetwork of one of the main runs, or a control of it."""
    variants: tuple[Variant, ...]

    @property
    def main(self) -> tuple[Run, ...]:
        """The runs that differ from the usual in nothing."""
        other = {variant.name for variant in self.variants}
        return tuple(run for run in self.full if run.name not in other)

    def seconds(self, run: Run) -> float:
        """What a run is expected to take."""
        return self.scale.settings(run.base, run.algorithm).seconds


def about(seconds: float) -> str:
    """An estimated time.

    >>> about(23.4), about(1231)
    ('about 23 seconds', 'about 21 minutes')
    """
    if seconds < 90:
        return f"about {seconds:.0f} seconds"
    return f"about {seconds / 60:.0f} minutes"


def make_study(scale: Scale) -> Study:
    """List the runs of a scale.

    Raises:
        ScaleError: a comparison changes nothing, or two of them are the same.
    """
    main = {_key(run): run for run in _main(scale)}
    variants = [pair for wanted in scale.comparisons for pair in _compared(wanted, main)]
    masked = [run for wanted in scale.subnetworks for run in _masked(wanted, main)]
    study = Study(
        scale,
        (*main.values(), *(run for run, _ in variants)),
        tuple(masked),
        tuple(variant for _, variant in variants),
    )
    names = Counter(run.name for run in (*study.full, *study.masked))
    if twice := [name for name, count in names.items() if count > 1]:
        raise ScaleError(f"asked for twice: {', '.join(twice)}: remove one of the two")
    return study


def _main(scale: Scale) -> Iterator[Run]:
    families = {base.name: base.family for base in scale.bases}
    for main in scale.main:
        for algorithm in main.algorithms:
            for dataset in main.datasets:
                for seed in main.seeds:
                    run = _usual(scale, main.base, algorithm, dataset, seed)
                    yield replace(run, family=families[main.base])


def _usual(scale: Scale, base: str, algorithm: str, dataset: str, seed: int) -> Run:
    name = f"{base}-{algorithm.lower()}-{dataset}-seed{seed}"
    run = default_run(name, base, algorithm, seed, dataset)
    run = replace(run, **scale.settings(base, algorithm).fields())
    return replace(run, save_every=_save_every(scale, run))


def _save_every(scale: Scale, run: Run) -> int:
    counts = [w.checkpoints for w in scale.dynamics if _key(run) in set(_keys(w))]
    if not counts:
        return 0
    every, rest = divmod(run.steps, counts[0])
    if rest:
        raise ScaleError(
            f"{run.name}: {run.steps} steps cannot be cut into {counts[0]} checkpoints evenly: "
            f"change `checkpoints:` or the steps of {run.algorithm}"
        )
    return every


def _compared(wanted: Comparison, main: dict[Any, Run]) -> Iterator[tuple[Run, Variant]]:
    for key in _keys(wanted):
        usual = main[key]
        for value in wanted.values:
            before = asdict(usual)[wanted.varies]
            if value == before:
                raise ScaleError(
                    f"comparisons of {wanted.varies}: {value} is the usual value of "
                    f"{usual.algorithm}, so there is nothing to compare"
                )
            # checkpoints are of the main run only
            changed = wanted.also.fields() | {wanted.varies: value, "save_every": 0}
            run = replace(usual, **changed)
            run = replace(run, name=f"{usual.name}-{wanted.varies}-{value}".replace("_", "-"))
            yield run, Variant(wanted.varies, value, before, run.name, usual.name)


def _masked(wanted: Subnetworks, main: dict[Any, Run]) -> Iterator[Run]:
    for key in _keys(wanted):
        full = main[key]
        for mask in wanted.masks:
            name = f"{full.name}-{mask}"
            yield replace(full, name=name, mask=mask, mask_of=full.name, save_every=0)


def _keys(wanted: Selection) -> Iterator[tuple[str, str, str, int]]:
    for algorithm in wanted.algorithms:
        for seed in wanted.seeds:
            yield wanted.base, algorithm, wanted.dataset, seed


def _key(run: Run) -> tuple[str, str, str, int]:
    return run.base, run.algorithm, run.dataset, run.seed
