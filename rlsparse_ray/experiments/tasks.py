"""What a run learns and how it is measured, apart from any algorithm. Imports no torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlsparse_ray.experiments import arithmetic
from rlsparse_ray.experiments.runs import RL, Run

Text = str | list[dict[str, str]]
"""A prompt or an answer: plain, or a conversation in transformers' form."""
Row = dict[str, Any]
"""A training row in the columns that TRL wants."""


@dataclass(frozen=True)
class Task:
    """Prompts with answers that can be told right from wrong."""

    name: str
    """Tells it from others in the records of runs."""
    preferences: Callable[[Run], list[Row]]
    """The training questions of a run, each with a right ("chosen") and a wrong ("rejected")
    answer given: rows of prompt, chosen, rejected."""
    reward: Callable[..., list[float]]
    """(prompts=, completions=) to 1.0 for right and 0.0 for wrong: TRL's reward signature."""
    score: Callable[[Any, Any, Run], float]
    """(model, tokenizer, run) to the mean reward on fixed questions, 0 to 1."""
    several_answers: bool
    """Whether more than one text is a right answer to a question."""
    max_new_tokens: int
    """Of one sample, the end token counted."""
    max_length: int
    """Tokens of the longest question with its answer, at least."""


def training_rows(run: Run, preferences: list[Row]) -> list[Row]:
    """Put questions with a right and a wrong answer each into the columns of the run's trainer."""
    if run.algorithm in RL:
        return [{"prompt": row["prompt"]} for row in preferences]
    if run.algorithm == "SFT":
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in preferences]
    if run.algorithm == "KTO":
        return _single_answers(run, preferences)
    return preferences


def _single_answers(run: Run, preferences: list[Row]) -> list[Row]:
    """Shuffle the answers one by one: KTO reads its rows in order, whatever the seed."""
    rows = [
        {"prompt": row["prompt"], "completion": row[column], "label": column == "chosen"}
        for row in preferences
        for column in ("chosen", "rejected")
    ]
    random.Random(run.seed).shuffle(rows)
    return rows


def _arithmetic_preferences(run: Run) -> list[Row]:
    rng = random.Random(run.seed)
    return [
        {"prompt": q, "chosen": arithmetic.answer(q), "rejected": arithmetic.wrong_answer(q, rng)}
        for q in arithmetic.questions(run.dataset, "train")
    ]


def _arithmetic_score(model: Any, tokenizer: Any, run: Run) -> float:
    """The expected exact-answer reward on the test questions of the run's dataset."""
    sampled, _ = arithmetic.accuracy(model, tokenizer, arithmetic.questions(run.dataset, "test"))
    return sampled


ARITHMETIC = Task(
    name="arithmetic",
    preferences=_arithmetic_preferences,
    reward=arithmetic.exact_reward,
    score=_arithmetic_score,
    several_answers=False,
    max_new_tokens=arithmetic.MAX_ANSWER_TOKENS,
    max_length=32,
)
"""Sums and differences of two numbers up to 99: the datasets addition, subtraction and mixed."""
