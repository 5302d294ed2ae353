"""Matches the tensors of two checkpoints by canonical name; nothing is dropped in silence.

Every tensor of either side gets a row with a status. Two models with tied embeddings are compared
in the embedding, once; an `lm_head` that is stored beside it is `tied`. Where one side alone has a
head of its own, its row compares that with the embedding of the other: the head that it uses.
Where no config tells, a model without any head ties it, and so does one with an `lm_head` that has
the very bytes of the embedding in its file, or whose other side ties it.
Quantised tensors stand for their values, and fused ones for their parts where the other side has
the parts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.fused import split_fused
from rlsparse_ray.naming import canonical_names, describe
from rlsparse_ray.weights.derived import derive
from rlsparse_ray.weights.spec import DTYPES, FLOAT_DTYPES, Checkpoint, TensorSpec
from rlsparse_ray.weights.tying import HEAD, embedding_of, is_tied


@dataclass(frozen=True, slots=True)
class Aligned:
    """One row of the alignment: a tensor, and what will be compared of it."""

    tensor: str
    """Canonical name."""
    base: TensorSpec | None
    tuned: TensorSpec | None
    status: str
    """compared, partial_rows, shape_mismatch, base_only, tuned_only or tied."""
    shape: tuple[int, ...] | None
    """The compared shape; None if not compared."""
    compare_dtype: str | None
    layer: int | None
    module: str
    kind: str

    @property
    def compared(self) -> bool:
        """Whether values of both sides are compared."""
        return self.shape is not None

    @property
    def numel(self) -> int:
        """Parameters compared; 0 if not compared."""
        return 0 if self.shape is None else prod(self.shape)

    @property
    def tensor_key(self) -> str:
        """Name and compared shape (else the stored ones): what masks are joined on."""
        if self.shape is not None:
            return f"{self.tensor} {_text(self.shape)}"
        stored = [_text(side.shape) for side in (self.base, self.tuned) if side is not None]
        return f"{self.tensor} {'|'.join(dict.fromkeys(stored))}"


def align(
    base: Checkpoint, tuned: Checkpoint, compare_dtype: str | None = None
) -> tuple[Aligned, ...]:
    """Match two checkpoints.

    Args:
        base: the model before.
        tuned: the model after.
        compare_dtype: dtype in which floats are compared; None: the narrower of the two, for
            each tensor.

    Returns:
        Rows in the order of the base's bytes, then what only the tuned model has, by name.

    Raises:
        CheckpointError: the dtypes of a tensor cannot be compared, or nothing is in common.
    """
    if compare_dtype is not None and compare_dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"compare_dtype {compare_dtype!r} is not a float dtype: "
            f"write one of {', '.join(FLOAT_DTYPES)}"
        )
    before, after = _Side(base), _Side(tuned)
    before.settle(after)
    after.settle(before)
    before.use_real_head(after)
    after.use_real_head(before)
    tied = {HEAD} if all(s.tied for s in (before, after) if HEAD in s.tensors) else set()
    before.tensors, after.tensors = split_fused(before.tensors, after.tensors)
    names = dict.fromkeys([*before.tensors, *sorted(after.tensors)])
    rows = [_row(name, before, after, compare_dtype, name in tied) for name in names]
    _check_common(rows, before, after)
    order = {tensor.name: place for place, tensor in enumerate(base.tensors)}
    rows.sort(key=lambda row: _place(row.base, order))
    return tuple(rows)


def _place(base: TensorSpec | None, order: Mapping[str, int]) -> tuple[int, int]:
    return (order[base.stored_name], base.offset) if base else (len(order), 0)


class _Side:
    """One checkpoint under canonical names, in its own order."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        tensors = derive(checkpoint).tensors
        names = canonical_names(tensor.name for tensor in tensors)
        self.source = checkpoint.source
        self.tensors = {names[tensor.name]: tensor for tensor in tensors}
        self.embedding = embedding_of(self.tensors)
        self.told = is_tied(self.tensors, checkpoint.tied_embeddings)
        self.tied = bool(self.told)

    def settle(self, other: "_Side") -> None:
        """Take the other side's word where this one does not tell: tuning changes no architecture.

        The head of Gemma, 0.92 of 9.2 G parameters, would be counted twice else.
        """
        if self.told is None:
            self.tied = other.told is True

    def use_real_head(self, other: "_Side") -> None:
        """Let the embedding stand for the head where only this side ties them."""
        if self.tied and not other.tied and self.embedding and HEAD in other.tensors:
            self.tensors[HEAD] = self.tensors[self.embedding]


def _row(name: str, before: _Side, after: _Side, compare_dtype: str | None, tied: bool) -> Aligned:
    base, tuned = before.tensors.get(name), after.tensors.get(name)
    place = describe(name)
    status, shape = _status(base, tuned, place.kind, tied)
    dtype = None
    if base is not None and tuned is not None and shape is not None:
        dtype = _common_dtype(name, base.dtype, tuned.dtype, compare_dtype)
    return Aligned(name, base, tuned, status, shape, dtype, place.layer, place.module, place.kind)


def _status(
    base: TensorSpec | None, tuned: TensorSpec | None, kind: str, tied: bool
) -> tuple[str, tuple[int, ...] | None]:
    if tied:
        return "tied", None
    if tuned is None:
        return "base_only", None
    if base is None:
        return "tuned_only", None
    if base.shape == tuned.shape:
        return "compared", base.shape
    if kind in ("embedding", "head") and _same_but_rows(base.shape, tuned.shape):
        return "partial_rows", (min(base.shape[0], tuned.shape[0]), *base.shape[1:])
    return "shape_mismatch", None


def _same_but_rows(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) >= 1 and a[1:] == b[1:]


def _common_dtype(name: str, base: str, tuned: str, compare_dtype: str | None) -> str:
    for dtype in (base, tuned):
        if dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {name}: dtype {dtype} cannot be compared (base {base}, tuned {tuned}): "
                "convert it to bf16"
            )
    if base in FLOAT_DTYPES and tuned in FLOAT_DTYPES:
        return compare_dtype or max(base, tuned, key=FLOAT_DTYPES.index)
    if base == tuned:
        return base
    raise CheckpointError(
        f"tensor {name}: {base} in the base, {tuned} in the tuned model: integers are compared "
        "only in one dtype: convert one side, or leave the tensor out of both"
    )


def _check_common(rows: Iterable[Aligned], before: _Side, after: _Side) -> None:
    if not any(row.compared for row in rows):
        raise CheckpointError(
            f"nothing in common: {before.source} has {_examples(before)}; "
            f"{after.source} has {_examples(after)}: check that one was tuned from the other"
        )


def _examples(side: _Side) -> str:
    shown = [f"{name} {_text(tensor.shape)}" for name, tensor in list(side.tensors.items())[:3]]
    return ", ".join(shown) + (", ..." if len(side.tensors) > 3 else "")


def _text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
