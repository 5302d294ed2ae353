"""Train the tiny family: real SFT, DPO and GRPO runs of TRL on one CPU thread.

python -m rlsparse_ray.demo.tune --models DIR NAME [NAME ...]

Every run loads its bf16 base into fp32, trains fp32 master weights and stores bf16, which is how RL
frameworks do it and what decides which weights change at all.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsparse_ray.demo import arithmetic, trainers
from rlsparse_ray.demo.runs import RUN_FILE, Run, fresh_folder, identity, write_json

# Measured with torch 2.13.0, trl 1.16.0 on two cores, two processes: 49 s in all, imports included.
# Reward before -> after, and density (weights whose bf16 value changed / all); run twice, every
# run gives the same bytes.
#   tiny-a-grpo-seed0      0.412 -> 0.537  0.527
#   tiny-a-grpo-seed1      0.412 -> 0.538  0.523
#   tiny-a-grpo-sub-seed0  0.335 -> 0.521  0.582
#   tiny-a-sft-seed0       0.412 -> 0.885  0.925
#   tiny-a-dpo-seed0       0.412 -> 0.518  0.527
#   tiny-b-grpo-seed0      0.428 -> 0.538  0.452
#   tiny-b-grpo-seed1      0.428 -> 0.539  0.456
TINY_RUNS = (
    Run("tiny-a-grpo-seed0", "tiny-a", "GRPO", 0, "addition", 60, 1e-5, save_every=12),
    Run("tiny-a-grpo-seed1", "tiny-a", "GRPO", 1, "addition", 60, 1e-5),
    Run("tiny-a-grpo-sub-seed0", "tiny-a", "GRPO", 0, "subtraction", 60, 1e-5),
    Run("tiny-a-sft-seed0", "tiny-a", "SFT", 0, "addition", 60, 1e-4),
    Run("tiny-a-dpo-seed0", "tiny-a", "DPO", 0, "addition", 60, 8e-6, kl=0.1),
    Run("tiny-b-grpo-seed0", "tiny-b", "GRPO", 0, "addition", 60, 1e-5),
    Run("tiny-b-grpo-seed1", "tiny-b", "GRPO", 1, "addition", 60, 1e-5),
)


def training_rows(run: Run) -> list[dict[str, Any]]:
    """List a run's training questions in the columns that its trainer wants."""
    prompts = arithmetic.questions(run.dataset, "train")
    rng = random.Random(run.seed)
    if run.algorithm == "GRPO":
        return [{"prompt": q} for q in prompts]
    if run.algorithm == "SFT":
        return [{"prompt": q, "completion": arithmetic.answer(q)} for q in prompts]
    return [
        {"prompt": q, "chosen": arithmetic.answer(q), "rejected": arithmetic.wrong_answer(q, rng)}
        for q in prompts
    ]


def held_out_reward(model: Any, tokenizer: Any, run: Run) -> float:
    """Give the expected exact-answer reward on the test questions of the run's dataset."""
    sampled, _ = arithmetic.accuracy(model, tokenizer, arithmetic.questions(run.dataset, "test"))
    return sampled


ARITHMETIC = trainers.Task(
    rows=training_rows,
    reward=arithmetic.exact_reward,
    score=held_out_reward,
    max_new_tokens=arithmetic.MAX_ANSWER_TOKENS,
)


def tune(
    run: Run, base_dir: Path, out_dir: Path, task: trainers.Task = ARITHMETIC
) -> dict[str, Any]:
    """Train one run and leave `out_dir` as a bf16 transformers folder with its run.json.

    Args:
        run: what to train; its `base` is a label only.
        base_dir: a complete base folder (with base.json).
        out_dir: replaced as a whole when the run ends well, untouched otherwise.
        task: what to learn; two-digit arithmetic unless said otherwise.

    Returns:
        The record in run.json: the run, library versions, the base's sha256, mean reward on fixed
        test questions before and after (0 to 1, measured on the stored bf16 weights), the names of
        the checkpoint folders in order, and the seconds that all of it took.

    Raises:
        ValueError: the algorithm is not SFT, DPO or GRPO.
        FileNotFoundError: the base is not complete.
    """
    start = time.monotonic()
    record = identity(run, base_dir)
    trainers.quiet()
    with fresh_folder(out_dir) as folder:
        trainer = trainers.make_trainer(task, run, base_dir, folder)
        trainer.train()
        trainers.save_bf16(trainer.model, trainer.processing_class, folder)
        record |= {
            "reward_before": trainers.score_folder(task, run, base_dir),
            "reward_after": trainers.score_folder(task, run, folder),
            "checkpoints": trainers.checkpoint_names(run),
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(folder / RUN_FILE, record)
    return record


def tune_named(runs: Sequence[Run], task: trainers.Task = ARITHMETIC) -> None:
    """Run the command line of a module that trains some of `runs`, one after another."""
    parser = argparse.ArgumentParser(description="Train the named runs one after another.")
    parser.add_argument("--models", type=Path, required=True, help="folder of bases and results")
    parser.add_argument("names", nargs="+", choices=[run.name for run in runs])
    args = parser.parse_args()
    for run in (run for run in runs if run.name in args.names):
        print(f"== {run.name}", flush=True)
        record = tune(run, args.models / run.base, args.models / run.name, task)
        print(f"== reward {record['reward_before']} -> {record['reward_after']}", flush=True)


if __name__ == "__main__":
    tune_named(TINY_RUNS)
