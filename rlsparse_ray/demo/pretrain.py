"""Pretrain the two base models that the package ships, from random weights on one CPU thread.

python -m rlsparse_ray.demo.pretrain [--only tiny-a|tiny-b] [--out DIR]

Made so with torch 2.13.0 and transformers 5.23.0 (a second run gave the same files byte for byte),
both at once on two busy cores; sampled / greedy accuracy on questions never trained on:

| base   | parameters          | seconds | addition      | subtraction   |
|--------|---------------------|---------|---------------|---------------|
| tiny-a | 349,056 (untied)    | 279     | 0.412 / 0.376 | 0.335 / 0.257 |
| tiny-b | 306,432 (tied)      | 282     | 0.428 / 0.509 | 0.371 / 0.311 |

Sampled accuracy cannot go beyond 0.45: half of the training answers are estimates and a tenth of
the rest are slips. base.json in each folder holds these figures, the recipe and the file's hash.
"""

# ruff: noqa: PLC0415 - torch, transformers and trl take seconds to import: only where used

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsparse_ray.experiments import arithmetic, checkpoints
from rlsparse_ray.experiments.runs import (
    BASE_FILE,
    fresh_folder,
    library_versions,
    sha256_of,
    write_json,
)

BASES = Path(__file__).parent / "bases"


@dataclass(frozen=True)
class Recipe:
    """How one base is made; sizes are those of the Llama architecture."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    tied: bool
    seed: int
    steps: int = 1200
    batch: int = 256
    learning_rate: float = 2e-3


RECIPES = (
    Recipe("tiny-a", hidden=128, intermediate=320, layers=2, tied=False, seed=1),
    Recipe("tiny-b", hidden=96, intermediate=256, layers=3, tied=True, seed=2),
)


def make_model(recipe: Recipe, tokenizer: Any) -> Any:
    """Build the random Llama (fp32) of a recipe."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        # About 1/sqrt(width). With the default 0.02 the weights stay smaller and more of them
        # change in bf16: GRPO gained 0.06 at density 0.48 (100 steps, 3e-6); so, 0.08 at 0.39
        # (200 steps, 2e-6).
        initializer_range=0.08,
        tie_word_embeddings=recipe.tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def batches(recipe: Recipe, tokenizer: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (ids, answer mask) of `recipe.batch` training questions with sloppy answers."""
    rng = random.Random(recipe.seed)
    pool = arithmetic.questions("mixed", "train")
    for _ in range(recipe.steps):
        chosen = rng.choices(pool, k=recipe.batch)
        pairs = [(q, arithmetic.sloppy_answer(q, rng)) for q in chosen]
        yield arithmetic.encode_pairs(tokenizer, pairs)


@checkpoints.quiet()
def pretrain(recipe: Recipe, out_dir: Path, device: str = "cpu") -> dict[str, Any]:
    """Train a base in fp32 and save it in bf16 as an ordinary transformers folder.

    Args:
        recipe: its sizes; from 300 thousand to 100 million parameters there is nothing to change
            but them (hidden=768, intermediate=2048, layers=14 makes 88 million).
        out_dir: replaced as a whole when the base is complete.
        device: "cpu" or "cuda".

    Returns:
        What base.json says: the recipe, the file's sha256, seconds, and for each data set the
        expected reward on its test questions under sampling and under greedy decoding.
    """
    start = time.monotonic()
    tokenizer = arithmetic.make_tokenizer()
    model = make_model(recipe, tokenizer).to(device)
    train(model, recipe, batches(recipe, tokenizer))
    with fresh_folder(out_dir) as folder:
        checkpoints.save(model, tokenizer, folder)
        stored = checkpoints.load_model(folder, device=device).eval()
        record = {
            "recipe": asdict(recipe),
            "sha256": sha256_of(folder / "model.safetensors"),
            "versions": library_versions(),
            "parameters": sum(p.numel() for p in stored.parameters()),
            "accuracy": {name: measure(stored, tokenizer, name) for name in arithmetic.DATASETS},
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(folder / BASE_FILE, record)
    return record


def train(model: Any, recipe: Recipe, data: Iterator[tuple[Any, Any]]) -> None:
    """Train in place with AdamW and a one-cycle learning rate; the loss is on answers only."""
    import torch

    peak = recipe.learning_rate
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, recipe.steps, pct_start=0.05)
    for batch, mask in data:
        ids = batch.to(model.device)
        logits = model(input_ids=ids).logits[:, :-1]
        answers = mask[:, 1:].to(model.device)
        loss = torch.nn.functional.cross_entropy(logits[answers], ids[:, 1:][answers])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()


def measure(model: Any, tokenizer: Any, dataset: str) -> dict[str, float]:
    """Measure a model on a data set's test questions; fractions from 0 to 1."""
    sampled, greedy = arithmetic.accuracy(model, tokenizer, arithmetic.questions(dataset, "test"))
    return {"sampled": round(sampled, 4), "greedy": round(greedy, 4)}


def main() -> None:
    """Make all bases, or the one named by --only."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=BASES, help="folder that gets the bases")
    parser.add_argument("--only", choices=[recipe.name for recipe in RECIPES])
    args = parser.parse_args()
    for recipe in RECIPES:
        if args.only in (None, recipe.name):
            record = pretrain(recipe, args.out / recipe.name)
            print(recipe.name, record["accuracy"], f"{record['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
