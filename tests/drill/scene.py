"""Models in a bucket, the store that an undisturbed run gives, and which bytes a run asked for.

The bucket's server is behind a proxy that records every request: what a run read is counted there
and not by the software that is tested.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlsparse_ray.plan import Plan, Slice
from rlsparse_ray.store import Store
from rlsparse_ray.weights import TensorSpec
from tests.builders import extract_directly, tuned_from, weights, write_corpus, write_model
from tests.servers.proxy import Request, Rule
from tests.servers.s3 import S3Server

BASES, TUNED, TENSORS = 2, 2, 16
SHAPE = (150, 250)
SLOW = Rule(match=r"^GET /drill/.*run-", times=None, delay=0.25)
"""So slow is the server with tuned models that a fault finds a run in its middle."""

Bytes = dict[str, NDArray[np.int64]]
"""How often each byte of each file was sent."""


@dataclass(frozen=True)
class Scene:
    """What every fault finds. `sampled` are bytes that are also read to check the lineage."""

    s3: S3Server
    folder: Path
    corpus: Path
    plan: Plan
    undisturbed: Path
    sampled: Bytes

    def finished(self, store: Path) -> list[Slice]:
        """The slices that are done for each of their pairs."""
        found = Store.open(store)
        staged = set(found.files.list("staging"))
        # staging first: a pair that is committed in between is seen as committed
        committed = found.committed()
        return [
            piece
            for piece in self.plan.slices
            if all(
                i in committed or f"staging/{i}/{piece.key(i)}.arrow" in staged
                for i in piece.pair_ids
            )
        ]

    def begun(self, sent: Bytes) -> list[Slice]:
        """The slices of which some bytes were sent."""
        return [piece for piece in self.plan.slices if self.most(piece, sent) > 0]

    def most(self, piece: Slice, sent: Bytes) -> int:
        """How often the byte of a slice was sent that was sent most often, samples apart."""
        return max(int(part.max(initial=0)) for part in self._parts(piece, sent))

    def nbytes(self, pieces: Sequence[Slice], sent: Bytes, beyond: int = 0) -> int:
        """Bytes of slices that were sent more than `beyond` times, once for every such time."""
        parts = [part for piece in pieces for part in self._parts(piece, sent)]
        return sum(int(np.maximum(part - beyond, 0).sum()) for part in parts)

    def _parts(self, piece: Slice, sent: Bytes) -> Iterator[NDArray[np.int64]]:
        for spec in specs_of(piece):
            where = slice(spec.offset, spec.offset + spec.nbytes)
            seen = sent.get(spec.file.path)
            if seen is not None:
                yield seen[where][self.sampled[spec.file.path][where] == 0]


def specs_of(piece: Slice) -> set[TensorSpec]:
    """The tensors that a slice reads, each once."""
    sides = {row.tuned for tensor in piece.tensors for _, row in tensor.pairs if row.tuned}
    return sides | {tensor.base for tensor in piece.tensors}


def sent_bytes(plan: Plan, log: Sequence[Request]) -> Bytes:
    """How often the server sent each byte of the models, their headers apart."""
    sizes = {s.file.path: s.file.size for piece in plan.slices for s in specs_of(piece)}
    sent = {path: np.zeros(size, np.int64) for path, size in sizes.items()}
    for request in log:
        asked = re.fullmatch(r"bytes=(\d+)-\d+", request.range or "")
        path = "s3:/" + request.path.partition("?")[0]
        # a header is read from byte 0 on, and no tensor is
        if request.method == "GET" and path in sent and asked and asked[1] != "0":
            start = int(asked[1])
            sent[path][start : start + request.sent] += 1
    return sent


def make_scene(s3: S3Server, folder: Path) -> Scene:
    """Two bases with two tuned models each, every one in 16 slices."""
    s3.create_bucket("drill")
    pairs = []
    for number in range(BASES):
        base = {f"layers.{n}.mlp.weight": weights(100 * number + n, SHAPE) for n in range(TENSORS)}
        write_model(folder / "models" / f"base{number}", base)
        for seed in range(TUNED):
            name = f"run-{number}-{seed}"
            write_model(folder / "models" / name, tuned_from(base, 100 * seed))
            place = "s3://drill"
            pairs.append(
                {"name": name, "base": f"{place}/base{number}", "tuned": f"{place}/{name}"}
            )
    s3.upload(folder / "models", "drill", "")
    corpus = write_corpus(folder / "corpus.yaml", pairs, slice_bytes=2 * SHAPE[0] * SHAPE[1])
    s3.proxy.forget()
    plan = extract_directly(corpus, folder / "undisturbed")
    once = sent_bytes(plan, s3.proxy.log)
    sampled = {path: (seen > 1).astype(np.int64) for path, seen in once.items()}
    scene = Scene(s3, folder, corpus, plan, folder / "undisturbed", sampled)
    counts = Counter(scene.most(piece, once) for piece in plan.slices)
    assert counts == {1: BASES * TENSORS}, f"an undisturbed run reads a byte twice: {counts}"
    return scene
