"""Models and tokenizers of a run: loading for training, storing, measuring what was stored."""

# ruff: noqa: PLC0415 - torch and transformers take seconds to import: only where used

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlsparse_ray.experiments.precision import PRECISIONS
from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.experiments.tasks import Task

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""Environment variables while a model is trained."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries offline, silent and on one thread; enter it before trl is imported.

    The process is offline no longer than that: a Ray worker that trained reads from the hub next.
    """
    import datasets
    import torch
    import transformers
    from huggingface_hub import constants

    before = {name: os.environ.get(name) for name in QUIET}
    online, threads = constants.HF_HUB_OFFLINE, torch.get_num_threads()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        os.environ.update(QUIET)
        constants.HF_HUB_OFFLINE = True  # the library read its variable when it was imported
        torch.set_num_threads(1)  # beside another process, 2 threads took up to 5x as long
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        torch.set_num_threads(threads)
        constants.HF_HUB_OFFLINE = online
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def load_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> Any:
    """Load a model from its path (DPO and KTO make their reference from the same path)."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder, padding on the left as generation wants it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def save(model: Any, tokenizer: Any, folder: Path, dtype: str = "bfloat16") -> None:
    """Store a copy of a model in training, rounded to nearest even, and its tokenizer."""
    import torch

    copy.deepcopy(model).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_run(run: Run, model: Any, tokenizer: Any, folder: Path) -> None:
    """Store a run's model as its precision says, with the bf16 cast beside it for "fp32"."""
    precision = PRECISIONS[run.precision]
    save(model, tokenizer, folder, precision.stored)
    if precision.cast_beside:
        save(model, tokenizer, folder / precision.cast_beside)


def score_folder(task: Task, run: Run, folder: Path, device: str = "cpu") -> float:
    """Measure a stored model: the weights as stored, computed in fp32; rounded to 4 digits."""
    model = load_model(folder, device=device).eval()
    return round(task.score(model, load_tokenizer(folder), run), 4)


def checkpoint_name(step: int) -> str:
    """Name the folder of a checkpoint so that names sort in the order of steps."""
    return f"checkpoint-{step:06d}"


def checkpoint_names(run: Run) -> Sequence[str]:
    """List the checkpoints that a finished run has, in the order of steps."""
    if not run.save_every:
        return []
    return [checkpoint_name(s) for s in range(run.save_every, run.steps + 1, run.save_every)]
