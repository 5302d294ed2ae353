"""How far an extraction is, as its store shows it: from any machine that sees the store.

A run leaves one small file at its start, staging/extraction.json, with the slices and bytes of
every pair; finished slices and committed pairs are files already. Looking costs three requests,
and one more for every thousand files that are listed.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rlsparse_ray.plan import Plan
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store

ANNOUNCED = "staging/extraction.json"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is. Bytes are estimated: slices of a pair count alike."""

    pairs: int
    committed: int
    slices: int
    """Counted once for every pair in them."""
    done: int
    nbytes: int
    nbytes_done: int


def announce(store: Store, plan: Plan) -> None:
    """Tell those who look what a run is going to do; of two runs at once the later one is seen."""
    slices: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for piece in plan.slices:
        pair_ids = piece.pair_ids
        slices.update(pair_ids)
        nbytes.update(dict.fromkeys(pair_ids, piece.nbytes // len(pair_ids)))
    facts = {i: {"slices": count, "nbytes": nbytes[i]} for i, count in slices.items()}
    store.files.write(ANNOUNCED, json.dumps(facts).encode())


def retire(store: Store) -> None:
    """The run is over."""
    store.files.remove(ANNOUNCED)


def standing(store: Store) -> Standing | None:
    """How far the run is that was announced last; None if it is over.

    Raises:
        StoreError: the store cannot be read.
    """
    with store_errors(store.root):
        raw = store.files.read(ANNOUNCED)
        if raw is None:
            return None
        pairs = json.loads(raw)
        # staging first: a pair that is committed in between counts with what was staged of it
        staged = Counter(
            path.split("/")[1] for path in store.files.list("staging") if path.endswith(".arrow")
        )
        committed = store.committed() & pairs.keys()
    done = {
        i: facts["slices"] if i in committed else min(staged[i], facts["slices"])
        for i, facts in pairs.items()
    }
    return Standing(
        pairs=len(pairs),
        committed=len(committed),
        slices=sum(facts["slices"] for facts in pairs.values()),
        done=sum(done.values()),
        nbytes=sum(facts["nbytes"] for facts in pairs.values()),
        nbytes_done=sum(f["nbytes"] * done[i] // f["slices"] for i, f in pairs.items()),
    )


def follow(store: Store, advance: Callable[[int], None], seconds: float = 5.0) -> None:
    """Call `advance` with the bytes that are new, every few seconds until the run is over.

    Raises:
        StoreError: the store cannot be read.
    """
    known = 0
    while (found := standing(store)) is not None:
        advance(found.nbytes_done - known)
        known = found.nbytes_done
        time.sleep(seconds)
