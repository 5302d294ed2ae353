"""A LoRA adapter as a checkpoint: its base's tensors, the targets with the update to be added.

What comes out is what peft's `merge_and_unload` writes after `PeftModel.from_pretrained`: adapter
weights in float32, one rounding to the base's dtype. Nothing is read here.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.naming import canonical_names
from rlsparse_ray.weights.spec import Checkpoint, TensorSpec
from rlsparse_ray.weights.tying import HEAD, embedding_of, has_head, is_tied

_MERGE = "merge it first (peft: merge_and_unload(), then save_pretrained())"
_WRAPPER = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_FLOATS = ("BF16", "F16", "F32")

_OTHER_MATHS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "target_parameters"),
    *("trainable_token_indices", "layer_replication", "alora_invocation_tokens", "arrow_config"),
    *("velora_config", "monteclora_config", "kasa_config"),
)
"""Settings of a LoRA config under which the update is not base + scaling * B @ A."""

_OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base's weights as well."""


def apply_adapter(adapter: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The base with the adapter in it: tensors that it does not touch are the base's own.

    Raises:
        CheckpointError: no plain LoRA adapter, or not one of this base.
    """
    config = _config(adapter)
    found = _Names(base)
    if found.tied and config.unties(found):
        base = _untied(base, found)
        found = _Names(base)
    tensors = base.by_name
    stored = adapter.by_name
    # peft writes the layer under a trained head or embedding too: the update goes on top of it
    for name, tensor in stored.items():
        if not name.endswith((_A, _B)):
            whole = found.whole(adapter, tensor)
            tensors[whole.name] = whole
    for name, tensor in stored.items():
        if name.endswith(_A):
            b = stored.get(name.removesuffix(_A) + _B)
            target = tensors[found.weight(adapter, name.removesuffix(_A)).name]
            tensors[target.name] = _target(adapter, config, target, tensor, b)
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.file.path, tensor.offset))
    return replace(applied(adapter, base), tensors=tuple(ordered))


def _untied(base: Checkpoint, found: "_Names") -> Checkpoint:
    """The base with a head of its own, which begins as the embedding."""
    embedding = found.embedding
    tensors = base.tensors
    if embedding is not None and not has_head(found.canonical):
        tensors = (*tensors, replace(embedding, name=HEAD))
    return replace(base, tensors=tensors, tied_embeddings=False)


def applied(adapter: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The base under the name and revision that it has with the adapter in it."""
    return replace(
        base,
        source=adapter.source,
        revision=f"{adapter.revision}+{base.revision}",
        subfolder=adapter.subfolder,
    )


@dataclass(frozen=True, slots=True)
class _Config:
    r: int
    alpha: float
    rslora: bool
    transposed: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    saved: tuple[str, ...]
    """Modules that were trained in full."""
    keeps_ties: bool

    def unties(self, found: "_Names") -> bool:
        """Whether peft cuts the tie: it copies a module that is trained in full."""
        saved = canonical_names(f"{module}.weight" for module in self.saved).values()
        ends = tuple(f".{name}" for name in saved)
        return not self.keeps_ties and any(f".{name}".endswith(ends) for name in found.tie)

    def scaling(self, path: str) -> tuple[int, float]:
        """Rank and factor of a module; patterns match the end of its path, as in peft."""
        r = _of_pattern(self.ranks, path, self.r)
        alpha = _of_pattern(self.alphas, path, self.alpha)
        return int(r), alpha / (math.sqrt(r) if self.rslora else r)


def _of_pattern(patterns: Mapping[str, float], path: str, otherwise: float) -> float:
    matching = (key for key in patterns if re.match(rf"(.*\.)?({key})$", path))
    key = next(matching, path)
    return patterns.get(key, otherwise)


def _config(adapter: Checkpoint) -> _Config:
    raw: dict[str, Any] = json.loads(adapter.adapter.config) if adapter.adapter else {}
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{adapter.source}: a {kind} adapter, not LoRA: {_MERGE}")
    odd = [key for key in _OTHER_MATHS if raw.get(key)]
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_OTHER_BASES):
        odd.append(f"init_lora_weights={start}")
    if odd:
        raise CheckpointError(
            f"{adapter.source}: adapter with {', '.join(odd)}, which is more than "
            f"base + scaling * B @ A: {_MERGE}"
        )
    try:
        return _Config(
            int(raw["r"]),
            float(raw["lora_alpha"]),
            bool(raw.get("use_rslora")),
            bool(raw.get("fan_in_fan_out")),
            raw.get("rank_pattern") or {},
            raw.get("alpha_pattern") or {},
            tuple(raw.get("modules_to_save") or ()),
            bool(raw.get("ensure_weight_tying")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{adapter.source}: adapter_config.json lacks r or lora_alpha ({error!r}): "
            "download it again"
        ) from error


class _Names:
    """Finds the base's tensors by the paths of peft's modules."""

    def __init__(self, base: Checkpoint) -> None:
        self.base = base
        self.stored = base.by_name
        names = canonical_names(self.stored)
        self.canonical = {names[name]: tensor for name, tensor in self.stored.items()}
        embedding = embedding_of(self.canonical)
        self.embedding = self.canonical[embedding] if embedding else None
        self.tied = is_tied(self.canonical, base.tied_embeddings) is True
        self.tie = (HEAD, embedding) if embedding and self.tied else ()

    def weight(self, adapter: Checkpoint, path: str) -> TensorSpec:
        """The weight of a module that has a LoRA update."""
        name = f"{_path(path)}.weight"
        found = self.find(name)
        if found is None:
            raise CheckpointError(
                f"{adapter.source}: updates {name}, which the base {self.base.source} lacks: "
                "name the base that the adapter was trained on"
            )
        return found

    def whole(self, adapter: Checkpoint, tensor: TensorSpec) -> TensorSpec:
        """A tensor that the adapter has in full, under the base's name for it."""
        name = _path(tensor.name)
        if "lora_" in name or "trainable_tokens" in name:
            raise CheckpointError(
                f"{adapter.source}: tensor {tensor.name} belongs to no plain LoRA: {_MERGE}"
            )
        found = self.find(name)
        return replace(tensor, name=found.name if found else name)

    def find(self, name: str) -> TensorSpec | None:
        """The base's tensor of that name, or of the same canonical name; a tied head's embedding.

        peft adds what it learned of a tied head to the one matrix that both are.
        """
        canonical = canonical_names([name])[name]
        if self.tied and canonical == HEAD:
            return self.embedding
        return self.stored.get(name) or self.canonical.get(canonical)


def _path(name: str) -> str:
    path = name.removeprefix(_WRAPPER).replace(".base_layer.", ".")
    return re.sub(r"\.modules_to_save(\.default)?\.", ".", path)


def _target(
    adapter: Checkpoint,
    config: _Config,
    target: TensorSpec,
    a: TensorSpec,
    b: TensorSpec | None,
) -> TensorSpec:
    where = f"{adapter.source}: tensor {a.name}"
    if b is None:
        raise CheckpointError(f"{where}: lora_B is missing: download the adapter again")
    if target.dtype not in _FLOATS or not {a.dtype, b.dtype} <= set(_FLOATS):
        raise CheckpointError(
            f"{where}: {a.dtype} cannot be added to the base's {target.name}, which is "
            f"{target.dtype}: {_MERGE}"
        )
    rank, scale = config.scaling(_path(a.name.removesuffix(_A)))
    product = (b.shape[0], a.shape[-1])
    expected = product[::-1] if config.transposed else product
    fits = a.shape[:1] == b.shape[1:] == (rank,) and len(a.shape) == len(b.shape) == 2
    if not fits or target.shape != expected:
        raise CheckpointError(
            f"{where}: A {list(a.shape)} and B {list(b.shape)} of rank {rank} do not fit "
            f"{target.name} {list(target.shape)}: name the base that the adapter was trained on"
        )
    encoding = f"lora r={rank} scale={repr(scale).removesuffix('.0')}"
    inputs = (target, a, b)
    return replace(
        target,
        nbytes=sum(spec.nbytes for spec in inputs),
        encoding=encoding + " transposed" * config.transposed,
        inputs=inputs,
    )
