"""What a model card and a name hint at: algorithm, stage, seed. Guesses, and labelled as such."""

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rlsparse_ray.weights.hub_tree import Descendant

SOURCE = "guessed from the model card"
"""What stands in the column `source` of pairs whose labels are guesses."""

_STAGES = {
    "SFT": ("SFT",),
    "preference": (
        *("DPO", "IPO", "KTO", "ORPO", "SimPO", "CPO", "RDPO", "RRHF", "SLiC-HF", "BCO", "SPPO"),
        *("Online-DPO", "XPO", "Nash-MD"),
    ),
    "RL": (
        *("PPO", "GRPO", "DAPO", "GPPO", "GSPO", "Dr-GRPO", "RLOO", "PRIME", "ReMax"),
        *("REINFORCE", "REINFORCE++"),
    ),
}

ALGORITHMS = {name: stage for stage, names in _STAGES.items() for name in names}
"""The stage of each algorithm that is known here."""

_SPELLINGS = {name.lower(): name for name in ALGORITHMS} | {
    "r-dpo": "RDPO",
    "slic": "SLiC-HF",
    "odpo": "Online-DPO",
    "nashmd": "Nash-MD",
    "drgrpo": "Dr-GRPO",
    "reinforce-plus-plus": "REINFORCE++",
}

_RL = ("rl", "rlhf", "rlaif", "rlvr")
"""Words for the stage that leave the algorithm open."""

_QUANTIZED = (
    *("gguf", "gptq", "awq", "exl2", "exl3", "mlx", "hqq", "bnb", "bitsandbytes", "fp8", "nvfp4"),
    *("4bit", "8bit", "4-bit", "8-bit", "compressed-tensors"),
)

_ADAPTER_LIBRARIES = ("peft", "adapter-transformers")


def words(text: str) -> str:
    """A text as lower-case words with hyphens between and around them.

    >>> words("Qwen2.5-7B_Dr.GRPO")
    '-qwen2-5-7b-dr-grpo-'
    """
    return f"-{'-'.join(re.findall(r'[a-z0-9+]+', text.lower()))}-"


def has_words(text: str, phrase: str) -> bool:
    """Whether the words of a phrase stand one after another in a text.

    >>> has_words("Llama-3-8B-Online_DPO", "online-dpo"), has_words("Llama-3-8B-DPO2", "dpo")
    (True, False)
    """
    return words(phrase) in words(text) and words(phrase) != "--"


def plain_tags(model: "Descendant") -> tuple[str, ...]:
    """The tags that are words of the card, and no dataset:..., license:... or base_model:..."""
    return tuple(tag for tag in model.tags if ":" not in tag)


def copy_kind(model: "Descendant") -> Literal["quantized", "adapter", "merge"] | None:
    """What else a repository seems to be than weights that were trained on."""
    if model.library in _ADAPTER_LIBRARIES:
        return "adapter"
    tags = plain_tags(model)
    texts = (*tags, model.library, _own_name(model.repository))
    if any(has_words(text, word) for text in texts for word in _QUANTIZED):
        return "quantized"
    # by whole tags alone: with a merged adapter, a name means a model that was trained
    return "merge" if {"merge", "mergekit"} & {tag.lower() for tag in tags} else None


def guess_labels(model: "Descendant", base: str) -> dict[str, str]:
    """Labels for a model: `guessed_...`, and `card_...` for what the card says outright.

    Args:
        model: as the hub describes it.
        base: repository of the base; what its name says is not said of the tuned model.
    """
    name = _own_name(model.repository)
    algorithm = _algorithm(plain_tags(model), name, _own_name(base))
    stage = ALGORITHMS.get(algorithm or "")
    hints = (*plain_tags(model), name)
    if algorithm is None and any(has_words(hint, word) for hint in hints for word in _RL):
        stage = "RL"
    seed = re.search(r"-seed-?(\d{1,9})-", words(name))
    labels = {
        "guessed_family": _own_name(base),
        "guessed_algorithm": algorithm,
        "guessed_stage": stage,
        "guessed_dataset": ", ".join(model.tagged("dataset")),
        "guessed_seed": str(int(seed[1])) if seed else None,
        "card_license": ", ".join(model.tagged("license")),
        "card_library": model.library,
    }
    return {key: clean(value) for key, value in labels.items() if value and clean(value)}


def clean(text: str) -> str:
    """A text of the hub on one line, of characters that can be printed and written as UTF-8."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _algorithm(tags: tuple[str, ...], name: str, base: str) -> str | None:
    """The one algorithm that tags and name speak of, or else agree on; None if it stays open."""
    tagged = {found for tag in tags for found in _spoken_of(tag)}
    named = _spoken_of(name) - _spoken_of(base)
    for candidates in (tagged | named, tagged & named):
        # the word of the stage before often stays: -sft-dpo
        later = candidates - {"SFT"} or candidates
        if len(later) == 1:
            return next(iter(later))
    return None


def _spoken_of(text: str) -> set[str]:
    """Algorithms in a text; of one within another (online-dpo), the longer one alone."""
    longest_first = sorted(_SPELLINGS, key=len, reverse=True)
    found, rest = set(), words(text)
    for spelling in longest_first:
        if f"-{spelling}-" in rest:
            found.add(_SPELLINGS[spelling])
            rest = rest.replace(f"-{spelling}-", "- -")
    return found


def _own_name(repository: str) -> str:
    return repository.rpartition("/")[2]
