"""Which tensors are the head and the embedding, and whether config.json ties the two."""

from collections.abc import Collection, Mapping
from typing import Any

from rlsparse_ray.naming import describe
from rlsparse_ray.weights.spec import TensorSpec

HEAD = "lm_head.weight"
"""Canonical name of the head that can be tied; the heads of reward and value models are others."""

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "shared.weight",
    "decoder.embed_tokens.weight",
    "backbone.embeddings.weight",
)

TIED_IN_SILENCE = frozenset(
    {
        *("bloom", "cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "falcon", "falcon_mamba"),
        *("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gpt2"),
        *("gpt_bigcode", "gpt_neo", "jetmoe", "lfm2", "mamba", "mpt", "opt", "recurrent_gemma"),
        *("smollm3", "starcoder2", "vaultgemma", "xglm", "zamba", "zamba2"),
    }
)
"""Decoders (`model_type`) whose config says nothing where it means tied.

transformers 4 leaves `tie_word_embeddings` out where it is True and True is the default of the
class: of every type in 4.57.1 these are the decoders that tie an `lm_head`. Llama, Qwen, Mistral
and all others whose default is False have the key either way, and transformers 5 writes it for
every type, so that the list need not grow.
"""


def embedding_of(canonical: Collection[str]) -> str | None:
    """The canonical name of a model's embedding; None if it has none of a known name.

    >>> embedding_of(["norm.weight", "wte.weight", "lm_head.weight"])
    'wte.weight'
    """
    return next((name for name in _EMBEDDINGS if name in canonical), None)


def tied_embeddings(config: Mapping[str, Any]) -> bool | None:
    """Whether the head is the embedding; None if config.json does not tell.

    The key is taken where it stands, first of the model, then of its `text_config`. Without it the
    text model's type tells.

    >>> tied_embeddings({"model_type": "gemma2"})
    True
    >>> tied_embeddings({"model_type": "gemma2", "tie_word_embeddings": False})
    False
    >>> tied_embeddings({"model_type": "llama"}) is None
    True
    """
    text_config = config.get("text_config")
    text = text_config if isinstance(text_config, dict) else {}
    for holder in (config, text):
        if holder.get("tie_word_embeddings") is not None:
            return bool(holder["tie_word_embeddings"])
    kind = text.get("model_type") or config.get("model_type")
    return True if str(kind) in TIED_IN_SILENCE else None


def is_tied(tensors: Mapping[str, TensorSpec], configured: bool | None) -> bool | None:
    """Whether a model's head is its embedding; None if neither config nor headers tell.

    Args:
        tensors: those of the model, by canonical name.
        configured: what `tied_embeddings` gives.
    """
    head, embedding = tensors.get(HEAD), tensors.get(embedding_of(tensors) or "")
    if embedding is None or (head is not None and head.shape != embedding.shape):
        return False
    if configured is not None:
        return configured
    if head is None:
        # a reward model has another head in its place and ties nothing
        return not has_head(tensors)
    # torch stores shared weights once, under two names
    return True if head.content == embedding.content else None


def has_head(canonical: Collection[str]) -> bool:
    """Whether any of the tensors is a head: of a language model, or of a reward or value model."""
    return any(describe(name).kind == "head" for name in canonical)
