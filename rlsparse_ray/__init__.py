"""Which weights did RL change, in every public model pair, and is that more than chance?

Every verb of the command line is a call here:

    plan = rlsparse_ray.make_plan(rlsparse_ray.load_corpus("corpus.yaml"))
    rlsparse_ray.extract(plan, "store")
    with rlsparse_ray.connect("store") as con:
        rlsparse_ray.run_query(con, "sparsity_by_pair")
        rlsparse_ray.run_sql(con, "FROM overlap_total('grpo-seed0', 'grpo-seed1')")
    rlsparse_ray.verify("store")
    rlsparse_ray.make_patch("base", "tuned", "patch.safetensors")
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rlsparse_ray.cluster import extract
    from rlsparse_ray.corpus import load_corpus
    from rlsparse_ray.handle import open_store
    from rlsparse_ray.patches import apply_patch, make_patch, verify_patch
    from rlsparse_ray.plan import make_plan
    from rlsparse_ray.sql import connect, run_query, run_sql
    from rlsparse_ray.upkeep.checks import verify

__all__ = [
    "apply_patch",
    "connect",
    "extract",
    "load_corpus",
    "make_patch",
    "make_plan",
    "open_store",
    "run_query",
    "run_sql",
    "verify",
    "verify_patch",
]

_HOMES = {
    "apply_patch": "patches",
    "connect": "sql",
    "consensus": "population.consensus",
    "extract": "cluster",
    "load_corpus": "corpus",
    "make_patch": "patches",
    "make_plan": "plan",
    "open_store": "handle",
    "overlaps": "cluster",
    "plan_overlaps": "population.overlap_plan",
    "run_query": "sql",
    "run_sql": "sql",
    "verify": "upkeep.checks",
    "verify_patch": "patches",
}


def __getattr__(name: str) -> Any:
    # on first use: Ray and DuckDB take a second to import, and reading a corpus needs neither
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
