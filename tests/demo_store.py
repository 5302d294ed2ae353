"""A small store with the names that `rlsparse demo` uses, for pages and notebooks that ask it."""

from pathlib import Path
from typing import Any

import yaml

from rlsparse_ray.compare.spectra import SpectraOptions
from rlsparse_ray.population.spectra import commit_spectra, spectra_unit
from rlsparse_ray.population.spectra_plan import plan_spectra
from tests.builders import (
    Model,
    extract_directly,
    overlap_directly,
    small_model,
    sparsely_changed,
    tuned_from,
    weights,
    write_model,
)

RUNS = {
    "tiny-a-grpo-seed0": ("tiny-a", "GRPO", "addition", 0),
    "tiny-a-grpo-seed1": ("tiny-a", "GRPO", "addition", 1),
    "tiny-a-grpo-sub-seed0": ("tiny-a", "GRPO", "subtraction", 0),
    "tiny-a-sft-seed0": ("tiny-a", "SFT", "addition", 0),
    "tiny-a-dpo-seed0": ("tiny-a", "DPO", "addition", 0),
    "tiny-b-grpo-seed0": ("tiny-b", "GRPO", "addition", 0),
}
STEPS = (12, 24)


def make_demo(folder: Path) -> Path:
    """Models, corpus.yaml and store under `folder`/rlsparse-demo, which is returned."""
    demo = folder / "rlsparse-demo"
    models = demo / "models"
    bases = {name: small_model(seed) for name, seed in (("tiny-a", 0), ("tiny-b", 50))}
    for name, base in bases.items():
        write_model(models / name, base)
    for number, (name, (base, *_)) in enumerate(RUNS.items()):
        write_model(models / name, _tuned(bases[base], name, 100 * (number + 1)))
    halfway = _halfway(bases["tiny-a"], _tuned(bases["tiny-a"], "tiny-a-grpo-seed0", 100))
    write_model(models / "tiny-a-grpo-seed0" / f"checkpoint-{STEPS[0]:06d}", halfway)
    (demo / "corpus.yaml").write_text(yaml.safe_dump(_corpus()))
    store = demo / "store"
    extract_directly(demo / "corpus.yaml", store)
    overlap_directly(store)
    _measure_spectra(store)
    return demo


def _tuned(base: Model, name: str, seed: int) -> Model:
    tuned = tuned_from(base, seed)
    if "sft" in name:
        # more of everything, and a head that the base does not have
        tuned = {n: sparsely_changed(array, seed + 7, 0.4) for n, array in tuned.items()}
        tuned["v_head.weight"] = weights(seed, (1, 97))
    return tuned


def _halfway(base: Model, tuned: Model) -> Model:
    """Every other row as it will be in the end."""
    half = {name: array.copy() for name, array in base.items()}
    for name, array in half.items():
        array[::2] = tuned[name][::2]
    return half


def _corpus() -> dict[str, Any]:
    pairs = [
        {
            "name": name,
            "base": f"./models/{base}",
            "tuned": f"./models/{name}",
            "family": "tiny-llama",
            "algorithm": algorithm,
            "dataset": dataset,
            "seed": seed,
            "steps": STEPS[-1],
            "learning_rate": 1e-5,
            "labels": {"reward_before": "0.412", "reward_after": "0.537"},
        }
        for name, (base, algorithm, dataset, seed) in RUNS.items()
    ]
    checkpoints = [
        {"model": "./models/tiny-a", "step": 0},
        {"model": f"./models/tiny-a-grpo-seed0/checkpoint-{STEPS[0]:06d}", "step": STEPS[0]},
        {"model": "./models/tiny-a-grpo-seed0", "step": STEPS[1]},
    ]
    trajectory = {"name": "tiny-a-grpo-seed0", "algorithm": "GRPO", "checkpoints": checkpoints}
    return {"version": 1, "pairs": pairs, "trajectories": [trajectory]}


def _measure_spectra(store: Path) -> None:
    plan = plan_spectra(str(store), SpectraOptions(k=8), pairs="tiny-a-grpo-seed0")
    for unit in plan.units:
        spectra_unit(unit, str(store))
    commit_spectra(plan, str(store))
