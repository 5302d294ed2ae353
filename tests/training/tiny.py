"""Tiny trainers of every kind: a Llama of 80,192 parameters, a tokenizer made in place."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

KINDS = ("Trainer", "SFT", "Reward", "DPO", "KTO", "SimPO", "ORPO", "GRPO", "RLOO")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 +-=?.:\n"
SUMS = [(f"{i}+{j}=", str(i + j)) for i in range(20) for j in range(20)]
"""Enough for 200 steps of GRPO and RLOO: from the second epoch on, TRL's own order of prompts is
another one in a resumed run (its RepeatSampler draws on from where a new sampler begins)."""
SETTINGS: dict[str, Any] = {
    "max_steps": 200,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    # the loop over tensors, one operation at a time: the order of operations to compare with
    "optim": "adamw_torch",
    "seed": 0,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
"""Every trainer decays weights, clips gradients, has a schedule and accumulates two batches."""


def quiet() -> None:
    """Silence the libraries; before trl is imported."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
    warnings.filterwarnings("ignore")
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@contextmanager
def offline() -> Iterator[None]:
    """Nothing asks the hub, here and in child processes; other tests have one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        # read from the environment when the library is imported, which it may have been
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def write_base(folder: Path) -> Path:
    """A random Llama in bf16 and its tokenizer, one character a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<pad>", "<s>", "</s>", "<unk>", *sorted(LETTERS)]
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def load(base: Path, kind: str, dtype: torch.dtype) -> Any:
    """The model that a kind of trainer wants; a reward model has a head of one number."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if kind == "Reward":
        torch.manual_seed(0)  # its head is not in the base
        return AutoModelForSequenceClassification.from_pretrained(base, dtype=dtype, num_labels=1)
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def make_trainer(
    kind: str,
    base: Path,
    out: Path,
    *,
    dtype: torch.dtype = torch.float32,
    parts: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of any kind, with SETTINGS; `parts` are further arguments of its constructor."""
    from datasets import Dataset
    from transformers import AutoTokenizer, set_seed

    set_seed(0)
    rows, maker = _MAKERS[kind]
    given = {
        "model": load(base, kind, dtype),
        "processing_class": AutoTokenizer.from_pretrained(base, padding_side="left"),
    }
    data = Dataset.from_list(rows)
    settings = SETTINGS | {"output_dir": str(out)} | settings
    return maker(settings, {**given, "train_dataset": data, **(parts or {})})


def reward_digits(completions: list[str], **_: Any) -> list[float]:
    """TRL's signature of a reward: digits in a completion."""
    return [float(sum(c.isdigit() for c in text)) for text in completions]


def _trainer(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = parts["processing_class"]
    parts["train_dataset"] = parts["train_dataset"].map(
        lambda row: tokenizer(row["text"]), remove_columns=["text"]
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return Trainer(args=TrainingArguments(**settings), data_collator=collator, **parts)


def _sft(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(args=SFTConfig(max_length=16, **settings), **parts)


def _reward(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(args=RewardConfig(max_length=16, **settings), **parts)


def _dpo(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(args=DPOConfig(max_length=16, **settings), **parts)


def _kto(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl import KTOConfig, KTOTrainer

    return KTOTrainer(args=KTOConfig(max_length=16, **settings), **parts)


def _simpo(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    # SimPO is CPO's loss without its likelihood term
    config = CPOConfig(loss_type="simpo", cpo_alpha=0.0, max_length=16, **settings)
    return CPOTrainer(args=config, **parts)


def _orpo(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOTrainer(args=ORPOConfig(max_length=16, **settings), **parts)


SAMPLING: dict[str, Any] = {"num_generations": 2, "max_completion_length": 3}


def _grpo(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    return GRPOTrainer(args=GRPOConfig(**SAMPLING, **settings), reward_funcs=reward_digits, **parts)


def _rloo(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl import RLOOConfig, RLOOTrainer

    return RLOOTrainer(args=RLOOConfig(**SAMPLING, **settings), reward_funcs=reward_digits, **parts)


_TEXTS = [{"text": prompt + answer} for prompt, answer in SUMS]
_PROMPTS = [{"prompt": prompt} for prompt, _ in SUMS]
_PAIRS = [{"prompt": p, "chosen": answer, "rejected": "no"} for p, answer in SUMS]
_WHOLE_PAIRS = [{"chosen": p + answer, "rejected": p + "no"} for p, answer in SUMS]
_JUDGED = [
    {"prompt": p, "completion": completion, "label": completion == answer}
    for p, answer in SUMS
    for completion in (answer, "no")
]
_MAKERS = {
    "Trainer": (_TEXTS, _trainer),
    "SFT": (_TEXTS, _sft),
    "Reward": (_WHOLE_PAIRS, _reward),
    "DPO": (_PAIRS, _dpo),
    "KTO": (_JUDGED, _kto),
    "SimPO": (_PAIRS, _simpo),
    "ORPO": (_PAIRS, _orpo),
    "GRPO": (_PROMPTS, _grpo),
    "RLOO": (_PROMPTS, _rloo),
}
