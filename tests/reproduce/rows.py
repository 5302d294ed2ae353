"""Rows as the queries of a store would give them, for claims of which the verdict is known."""

from dataclasses import replace
from typing import Any

from rlsparse_ray.experiments.defaults import default_run
from rlsparse_ray.reproduce.evidence import Evidence
from rlsparse_ray.reproduce.scale import Scale
from rlsparse_ray.reproduce.study import Study, Variant

SCALE = Scale.model_validate(
    {
        "version": 1,
        "bases": [{"name": "tiny-a", "family": "tiny"}],
        "main": [{"base": "tiny-a", "algorithms": {"SFT": {}}, "datasets": ["d"], "seeds": [0]}],
    }
)


def result(name: str, algorithm: str, sparsity: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "algorithm": algorithm,
        "study": "main",
        "base_source": "tiny-a",
        "dataset": "addition",
        "precision": "fp32-master",
        "learning_rate": 1e-5,
        "reward_before": 0.4,
        "reward_after": 0.6,
        "learned": True,
        "sparsity": sparsity,
        "density": 1 - sparsity,
        "sparsity_1e5": sparsity,
        "sparsity_1e4": sparsity,
        "sparsity_norms": 1.0,
    } | more


def evidence(*results: dict[str, Any], **rest: Any) -> Evidence:
    study = rest.pop("study", Study(SCALE, (), (), ()))
    return Evidence(study, run_results=results, **rest)


def beside(
    varies: str,
    *runs: tuple[str, Any, float, float],
    base: str = "tiny-a",
    updates: int = 1,
    unmoved: tuple[str, ...] = (),
    **more: Any,
) -> Evidence:
    """Main runs and variants: (algorithm, value, sparsity of the main run, of the variant).

    Args:
        base: of the variants, as are `updates` per sample; `unmoved` names those that never acted.
        more: what a variant's row has otherwise than its main run's.
    """
    results, variants, trained = [], [], []
    for n, (algorithm, value, usual, changed) in enumerate(runs):
        results.append(result(f"main-{n}", algorithm, usual))
        results.append(result(f"variant-{n}", algorithm, changed, study="variant", **more))
        variants.append(Variant(varies, value, "usual", f"variant-{n}", f"main-{n}"))
        run = default_run(f"variant-{n}", base, algorithm, 0, "addition")
        trained.append(replace(run, updates_per_sample=updates))
    study = Study(SCALE, tuple(trained), (), tuple(variants))
    return evidence(*results, study=study, unmoved=frozenset(unmoved))


def overlap(one: str, other: str, magnitude: float, differs: str = "seed") -> dict[str, Any]:
    row = {"name_a": one, "name_b": other, "differs": differs, "o1": 0.8, "o2": 0.8}
    for baseline in ("uniform", "tensor", "margins", "magnitude"):
        row |= {f"lift_{baseline}": 2.0, f"excess_share_{baseline}": 0.7}
    return row | {"lift_magnitude": 1 + magnitude, "excess_share_magnitude": magnitude}


def masked(full: str, mask: str, gain: float, equal: float = 0.95, **more: Any) -> dict[str, Any]:
    return {
        "name": f"{full}-{mask}",
        "name_full": full,
        "mask": mask,
        "algorithm": "GRPO",
        "reward_before": 0.4,
        "reward_after": 0.4 + 0.2 * gain,
        "reward_after_full": 0.6,
        "gain_share": gain,
        "equal_share_exact": equal,
        "equal_share_1e5": equal,
        "equal_share_1e4": min(1.0, equal + 0.06),
        "leaked": None if mask == "random" else 0,
    } | more


def curve(name: str, *sparsity: float) -> list[dict[str, Any]]:
    return [
        {
            "trajectory": name,
            "step": 10 * (n + 1),
            "sparsity_from_start": value,
            "sparsity_consecutive": 0.9,
            "never_touched_share": value - 0.02,
            "touched_and_back_share": 0.02,
            "kept_share": 1 - value,
        }
        for n, value in enumerate(sparsity)
    ]


def ends(name: str, back: float, outside: float) -> dict[str, Any]:
    return {
        "trajectory": name,
        "never_touched_share": 0.7,
        "touched_and_back_share": back,
        "kept_share": 0.3 - back,
        "ever_touched_outside_final_share": outside,
    }
