"""TRL trainers as the demo uses them: offline, silent, fp32 in training, bf16 when stored."""

# ruff: noqa: PLC0415 - torch, transformers and trl take seconds to import: only where used

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsparse_ray.demo.runs import Run


@dataclass(frozen=True)
class Task:
    """What a run learns and how it is measured."""

    rows: Callable[[Run], list[dict[str, Any]]]
    """The training rows, in the columns that the run's trainer wants."""
    reward: Callable[..., list[float]]
    """TRL's reward signature; for GRPO."""
    score: Callable[[Any, Any, Run], float]
    """(model, tokenizer, run) to the mean reward on fixed questions, 0 to 1."""
    max_new_tokens: int
    """Of one sample, the end token counted."""


def quiet() -> None:
    """Keep the libraries offline, silent and on one thread; call it before trl is imported."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1")
    warnings.filterwarnings("ignore")
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)  # beside another process, 2 threads took up to 5x as long
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def load_fp32(folder: Path) -> Any:
    """Load a model in fp32 from its path (DPO makes its reference model from the same path)."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder, padding on the left as generation wants it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def save_bf16(model: Any, tokenizer: Any, folder: Path) -> None:
    """Store a bf16 copy (round to nearest even) of a model in training, and its tokenizer."""
    import torch

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def score_folder(task: Task, run: Run, folder: Path) -> float:
    """Measure a stored model: the bf16 weights, computed in fp32; rounded to 4 digits."""
    return round(task.score(load_fp32(folder).eval(), load_tokenizer(folder), run), 4)


def make_trainer(task: Task, run: Run, base_dir: Path, folder: Path) -> Any:
    """Build the TRL trainer of a run; checkpoints go to `folder`.

    Raises:
        ValueError: the algorithm is not SFT, DPO or GRPO.
    """
    makers = {"SFT": _sft, "DPO": _dpo, "GRPO": _grpo}
    if run.algorithm not in makers:
        known = ", ".join(makers)
        raise ValueError(f"{run.name}: algorithm {run.algorithm!r} is not one of {known}")
    from datasets import Dataset
    from transformers import set_seed

    set_seed(run.seed)
    tokenizer = load_tokenizer(base_dir)
    trainer = makers[run.algorithm](
        task,
        run,
        args=_common(run, folder),
        model=load_fp32(base_dir),
        train_dataset=Dataset.from_list(task.rows(run)),
        processing_class=tokenizer,
    )
    if run.save_every:
        trainer.add_callback(_checkpoints(run.save_every, tokenizer, folder))
    return trainer


def _common(run: Run, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": run.steps,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": run.batch,
        "seed": run.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _sft(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(args=SFTConfig(max_length=32, **args), **parts)


def _dpo(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(args=DPOConfig(max_length=32, beta=run.kl, **args), **parts)


def _grpo(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        num_generations=run.generations,
        max_completion_length=task.max_new_tokens,
        beta=run.kl,
        **args,
    )
    return GRPOTrainer(args=config, reward_funcs=task.reward, **parts)


def _checkpoints(every: int, tokenizer: Any, folder: Path) -> Any:
    from transformers import TrainerCallback

    class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            if state.global_step % every == 0:
                save_bf16(parts["model"], tokenizer, folder / checkpoint_name(state.global_step))

    return KeepCheckpoints()


def checkpoint_name(step: int) -> str:
    """Name the folder of a checkpoint so that names sort in the order of steps."""
    return f"checkpoint-{step:06d}"


def checkpoint_names(run: Run) -> Sequence[str]:
    """List the checkpoints that a finished run has, in the order of steps."""
    if not run.save_every:
        return []
    return [checkpoint_name(s) for s in range(run.save_every, run.steps + 1, run.save_every)]
