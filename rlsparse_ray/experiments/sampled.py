"""Training data that the base itself wrote: its samples, told right from wrong by the reward.

Right samples make data for SFT (rejection sampling, RAFT of arXiv:2304.06767), a right and a wrong
one of the same prompt a preference. Such data is in the distribution of the policy that starts
training; answers given with the task are not.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from transformers import set_seed

from rlsparse_ray.errors import RunError
from rlsparse_ray.experiments.checkpoints import load_model, load_tokenizer
from rlsparse_ray.experiments.rollouts import sample
from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.experiments.tasks import Row, Task, Text

PROMPTS_AT_ONCE = 128


def sampled_preferences(
    run: Run, task: Task, base_dir: Path, device: str
) -> tuple[list[Row], dict[str, Any]]:
    """Sample `run.generations` answers of each training question, until the run has enough.

    Args:
        run: enough are steps x batch rows; there are fewer when the questions run out.
        task: gives questions and reward.
        base_dir: the model that samples, in fp32 from its stored weights.
        device: where.

    Returns:
        (rows, what run.json says of them): rows of prompt, chosen and rejected, the first right
        and the first wrong sample. A question without a right one is left out; without a wrong
        one, too, unless the algorithm is SFT, which reads no rejected answer.

    Raises:
        RunError: no question has the samples that the run needs.
    """
    set_seed(run.seed)
    model, tokenizer = load_model(base_dir, device=device).eval(), load_tokenizer(base_dir)
    prompts = [row["prompt"] for row in task.preferences(run)]
    order = random.Random(run.seed).sample(prompts, len(prompts))
    rows: list[Row] = []
    asked = 0
    while asked < len(order) and len(rows) < run.steps * run.batch:
        batch = order[asked : asked + PROMPTS_AT_ONCE]
        asked += len(batch)
        rollout = sample(model, tokenizer, task, batch, run.generations)
        graded = list(zip(rollout.texts, rollout.rewards.tolist(), strict=True))
        groups = [graded[i : i + run.generations] for i in range(0, len(graded), run.generations)]
        made = (_row(p, group, run) for p, group in zip(batch, groups, strict=True))
        rows += [row for row in made if row]
    if not rows:
        raise RunError(
            f"{run.name}: of {asked} questions, none has the samples that {run.algorithm} needs "
            f"among {run.generations}: take a better base, or more generations"
        )
    return rows, {"sampled": {"questions": asked, "kept": len(rows)}}


def _row(prompt: Text, graded: list[tuple[str, float]], run: Run) -> Row | None:
    right = [text for text, reward in graded if reward > 0.5]
    wrong = [text for text, reward in graded if reward <= 0.5]
    if not right or not (wrong or run.algorithm == "SFT"):
        return None
    return {
        "prompt": prompt,
        "chosen": _as_answer(prompt, right[0]),
        "rejected": _as_answer(prompt, wrong[0]) if wrong else None,
    }


def _as_answer(prompt: Text, text: str) -> Text:
    """An answer in the form of its question: a conversation has a conversation's."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
