"""Models and tokenizers of a run: loading for training, storing, measuring what was stored."""

# ruff: noqa: PLC0415 - torch and transformers take seconds to import: only where used

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

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

    Afterwards all is as it was, the random number generators too, which a run seeds: a Ray worker
    that trained reads from the hub next, and a caller draws on.
    """
    import torch
    from huggingface_hub import constants

    before = {name: os.environ.get(name) for name in QUIET}
    online, threads = constants.HF_HUB_OFFLINE, torch.get_num_threads()
    try:
        os.environ.update(QUIET)
        constants.HF_HUB_OFFLINE = True  # the library read its variable when it was imported
        torch.set_num_threads(1)  # beside another process, 2 threads took up to 5x as long
        with _silent(), _own_random_numbers():
            yield
    finally:
        torch.set_num_threads(threads)
        constants.HF_HUB_OFFLINE = online
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _silent() -> Iterator[None]:
    import datasets
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = (  # transformers' first: it switches the hub's as well
        (logging.is_progress_bar_enabled(), logging.enable_progress_bar),
        (not are_progress_bars_disabled(), enable_progress_bars),
        (not datasets.are_progress_bars_disabled(), datasets.enable_progress_bars),
    )
    disable = (
        logging.disable_progress_bar,
        disable_progress_bars,
        datasets.disable_progress_bars,
    )
    with warnings.catch_warnings(action="ignore"):
        logging.set_verbosity_error()
        for hide in disable:
            hide()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            for (shown, show), hide in zip(bars, disable, strict=True):
                (show if shown else hide)()


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    import torch

    # only a GPU that is in use has numbers to keep; asking another for them would start it
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = range(torch.cuda.device_count()) if started else ()
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


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
