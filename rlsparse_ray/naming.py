"""What a parameter's name says: its canonical form, its layer, its module and their kind."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_PREFIXES = (
    "model.",
    "transformer.",
    "language_model.",
    "base_model.model.",
    "module.",
    "_orig_mod.",
)
"""Wrappers that libraries put around the same network (DDP, torch.compile, peft, VLMs)."""

_CONTAINERS = frozenset({"layers", "layer", "h", "blocks", "block", "resblocks", "blk"})
"""Names after which a number is a layer number."""

_NORM = re.compile(r"norm|^ln(_|\d|$)|_ln(_|\d|$)")
# what follows experts: Meta's own names of Llama 4 (its shared expert), OpenAI's of gpt-oss
_EXPERT = re.compile(r"^(shared_)?experts?$|^w_(in_shared_fd|out_shared_df|swiglu_fd)$|^mlp\d_")
_ROUTER = re.compile(r"^(router(_de)?|gate|shared_expert_gate)$")
_HEAD = re.compile(r"^(lm_head|score|v_head|value_head|embed_out|classifier)$")
_WHOLE_HEADS = frozenset({"output", "output_layer", "head", "unembedding", "ff_out"})
"""Heads in original releases (Llama, ChatGLM, DeepSeek, gpt-oss, OLMo): not as a part of a name."""

_EMBEDDING = re.compile(
    r"^(wte|wpe|embed|embed_(tokens|positions|in)(_per_layer)?|pos_embed"
    r"|(?!patch).*embeddings?(_vlm)?)$"
)
_ATTENTION = re.compile(r"attn|attention|^att_proj$|^[qkvo]_proj$|^qkv$")
_MLP = re.compile(
    r"^(mlp\d*|ffn|ff|feed_?forward|block_sparse_moe|moe|fc\d|c_fc|densereludense|intermediate"
    r"|ff_(proj|out)|(gate|up|down|gate_up)_proj)$"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the network a parameter sits."""

    layer: int | None
    """None outside the layers."""
    module: str
    """The name without the layer and without .weight or .bias."""
    kind: str
    """embedding, attention, mlp, norm, head, router, expert or other."""


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """The canonical name of each name of one model: known prefixes removed.

    Names that would become the same keep their full names.

    >>> canonical_names(["model.norm.weight", "lm_head.weight"])
    {'model.norm.weight': 'norm.weight', 'lm_head.weight': 'lm_head.weight'}
    """
    short = {name: _strip(name) for name in names}
    uses = Counter(short.values())
    return {name: canonical if uses[canonical] == 1 else name for name, canonical in short.items()}


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return _strip(name[len(prefix) :])
    return name


def describe(canonical: str) -> Place:
    """Layer, module and kind, as far as the name tells.

    >>> describe("layers.13.self_attn.q_proj.weight")
    Place(layer=13, module='self_attn.q_proj', kind='attention')
    """
    parts = canonical.split(".")
    if len(parts) > 1 and parts[-1] in ("weight", "bias"):
        parts.pop()
    layer, parts = _take_layer(parts)
    return Place(layer, ".".join(parts), _kind([part.lower() for part in parts], layer))


def _take_layer(parts: list[str]) -> tuple[int | None, list[str]]:
    """What stands before the container is kept: it tells a vision tower from the language model."""
    for place in range(len(parts) - 2):
        number = parts[place + 1]
        if parts[place] in _CONTAINERS and number.isascii() and number.isdigit():
            return int(number), parts[:place] + parts[place + 2 :]
    return None, parts


def _kind(parts: list[str], layer: int | None) -> str:
    def has(pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(part) for part in parts)

    outside = layer is None
    ordered = [
        ("norm", has(_NORM)),
        ("expert", has(_EXPERT)),
        ("head", outside and (has(_HEAD) or ".".join(parts) in _WHOLE_HEADS)),
        # DeepSeek's layer that predicts one more token has a head and an embedding of its own
        ("head", parts[0] == "shared_head"),
        ("embedding", outside and has(_EMBEDDING) and "patch" not in ".".join(parts)),
        ("embedding", parts == ["embed_tokens"]),
        ("attention", has(_ATTENTION)),
        ("router", has(_ROUTER)),
        ("mlp", has(_MLP)),
        # BERT calls the second half of its MLP output.dense
        ("mlp", layer is not None and parts[-2:] == ["output", "dense"]),
    ]
    return next((kind for kind, holds in ordered if holds), "other")
