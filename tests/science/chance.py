"""Synthetic pairs whose overlap has one known reason, through the real extraction.

Every model has three 1024 x 1024 bf16 tensors, 3.1 M weights; every run starts from one base and
rounds base + update to bf16. A weight of binary exponent e has a ULP of 2^(e - 7), so an update
changes it if it is larger than 2^(e - 8): the probability of that is known in closed form.

`tests/science/test_chance.py` holds the baselines against it, and `docs/make_chance_figure.py`
draws them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from rlsparse_ray import sql
from tests.builders import BF16, Model, extract_directly, write_corpus, write_model

SHAPE = (1024, 1024)
NAMES = tuple(f"model.layers.{i}.mlp.up_proj.weight" for i in range(3))
DENSITIES = {"Gaussian": (0.15, 0.25), "Laplace": (0.10, 0.30), "Student-t": (0.08, 0.20)}
"""Of the first and the second run with updates of a law."""
PLANTED = 0.3
"""Share of the weights to which both runs of `planted` make the same update."""

Draw = Callable[[Any], Any]
WEIGHTS: dict[str, Draw] = {
    "Gaussian": lambda rng: rng.normal(0, 0.02, SHAPE),
    "Laplace": lambda rng: rng.laplace(0, 0.014, SHAPE),
    "mixed-scale": lambda rng: rng.normal(0, 0.01, SHAPE) * np.exp(rng.normal(0, 0.7, SHAPE)),
}
UPDATES: dict[str, Any] = {
    "Gaussian": stats.norm,
    "Laplace": stats.laplace,
    "Student-t": stats.t(df=3),
}


@dataclass(frozen=True)
class Base:
    """The base model of a weight law."""

    tensors: Model

    @classmethod
    def of(cls, law: str) -> "Base":
        """Weights of a law, always the same."""
        rng = np.random.default_rng([7, *law.encode()])
        return cls({name: np.asarray(WEIGHTS[law](rng), BF16) for name in NAMES})

    @cached_property
    def exponents(self) -> tuple[Any, Any]:
        """Binary exponents of the weights and how many weights have each."""
        every = np.concatenate([t.ravel() for t in self.tensors.values()]).astype(np.float32)
        return np.unique(np.frexp(every)[1] - 1, return_counts=True)

    def visible(self, law: str, scale: float) -> tuple[Any, Any]:
        """Weights of each exponent, and the probability that an update of a law changes one."""
        exponents, numel = self.exponents
        return numel, 2 * UPDATES[law].sf(2.0 ** (exponents - 8) / scale)

    def scale(self, law: str, density: float) -> float:
        """The scale at which updates of a law change that share of the weights."""

        def excess(log_scale: float) -> float:
            numel, p = self.visible(law, np.exp(log_scale))
            return float((numel * p).sum() / numel.sum() - density)

        return float(np.exp(optimize.brentq(excess, np.log(1e-8), np.log(1.0))))

    def tuned(self, updates: Iterator[Any]) -> Model:
        """Base plus one update a tensor, rounded to bf16."""
        pairs = zip(self.tensors.items(), updates, strict=True)
        return {n: np.asarray(t.astype(np.float32) + u, BF16) for (n, t), u in pairs}


def _draw(law: str, rng: Any) -> Any:
    draws = {"Gaussian": rng.standard_normal, "Laplace": rng.laplace, "Student-t": rng.standard_t}
    values = draws[law](3, SHAPE) if law == "Student-t" else draws[law](size=SHAPE)
    return values.astype(np.float32)


def independent(base: Base, law: str) -> tuple[Model, Model]:
    """Two runs that share nothing but the base."""

    def run(seed: int, density: float) -> Model:
        rng, scale = np.random.default_rng([seed, *law.encode()]), base.scale(law, density)
        return base.tuned(scale * _draw(law, rng) for _ in NAMES)

    return run(1, DENSITIES[law][0]), run(2, DENSITIES[law][1])


def planted(base: Base, law: str = "Gaussian") -> tuple[Model, Model]:
    """Both runs make the same update to 30 % of the weights, drawn without a look at them."""
    rng, scale = np.random.default_rng(3), base.scale(law, DENSITIES[law][0])
    first = [scale * _draw(law, rng) for _ in NAMES]
    second = [np.where(rng.random(SHAPE) < PLANTED, u, scale * _draw(law, rng)) for u in first]
    return base.tuned(iter(first)), base.tuned(iter(second))


def planted_truth(base: Base, law: str = "Gaussian") -> tuple[float, float]:
    """Lift and excess of `planted` over what rounding explains, from the law alone.

    A weight of exponent e changes with p_e in either run and in both with
    PLANTED p_e + (1 - PLANTED) p_e^2, where independence would have it p_e^2.
    """
    numel, p = base.visible(law, base.scale(law, DENSITIES[law][0]))
    excess = PLANTED * (numel * p * (1 - p)).sum()
    return 1 + excess / (numel * p * p).sum(), excess


@cache
def _profile(seed: int) -> Any:
    """How busy each row (or column) is: lognormal, cut off at 4, then scaled to mean 1."""
    busy = np.minimum(np.exp(np.random.default_rng(seed).normal(0, 0.8, SHAPE[0])), 4.0)
    return (busy / busy.mean()).astype(np.float32)


def _busy(tensor: int) -> Any:
    return _profile(10 + tensor)[:, None] * _profile(20 + tensor)


def busy(base: Base) -> tuple[Model, Model]:
    """The same busy rows and columns in both runs, and nothing else: each weight is updated with
    the probability row x column, by 3 % of itself, which no rounding hides."""

    def run(seed: int) -> Model:
        rng = np.random.default_rng(seed)
        hit = (rng.random(SHAPE) < 0.06 * _busy(i) for i in range(len(NAMES)))
        factors = zip(base.tensors.items(), hit, strict=True)
        return {
            n: np.asarray(np.where(h, 1.03, 1.0) * t.astype(np.float32), BF16)
            for (n, t), h in factors
        }

    return run(4), run(5)


def busy_and_rounded(base: Base, law: str = "Gaussian") -> tuple[Model, Model]:
    """Independent updates that are larger in busy rows and columns, rounded: both reasons."""

    def run(seed: int) -> Model:
        rng, scale = np.random.default_rng(seed), base.scale(law, DENSITIES[law][0])
        return base.tuned(scale * _busy(i) * _draw(law, rng) for i in range(len(NAMES)))

    return run(8), run(9)


def store_of(folder: Path, base: Base, settings: dict[str, tuple[Model, Model]]) -> Path:
    """Extract the two runs of every setting; the pairs are `SETTING 1` and `SETTING 2`."""
    write_model(folder / "base", base.tensors)
    pairs = []
    for setting, runs in settings.items():
        for number, run in enumerate(runs, start=1):
            write_model(folder / f"{setting} {number}", run)
            name = f"{setting} {number}"
            pairs.append({"name": name, "base": "base", "tuned": name})
    corpus = write_corpus(folder / "corpus.yaml", pairs, criteria=["exact"])
    extract_directly(corpus, folder / "store")
    return folder / "store"


Row = dict[str, Any]


def measure(store: Path, setting: str) -> dict[str, Row]:
    """The total of `overlap_baselines` for a setting, a baseline each."""
    con = sql.connect(store, threads=1)
    given = {"a": f"{setting} 1", "b": f"{setting} 2"}
    rows = sql.run_query(con, "overlap_baselines", given).to_pylist()
    con.close()
    return {row["baseline"]: row for row in rows}


def measure_all(folder: Path) -> dict[str, dict[str, Row]]:
    """Every setting, e.g. `Laplace weights, Student-t updates` or `planted`."""
    found = {}
    for law in WEIGHTS:
        base = Base.of(law)
        settings = {f"{law} weights, {u} updates": independent(base, u) for u in UPDATES}
        if law == "Gaussian":
            settings["planted"] = planted(base)
            settings["busy"] = busy(base)
            settings["busy and rounded"] = busy_and_rounded(base)
        store = store_of(folder / law, base, settings)
        found |= {setting: measure(store, setting) for setting in settings}
    return found
