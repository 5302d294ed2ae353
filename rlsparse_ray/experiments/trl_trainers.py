"""The algorithms that TRL has, offline and silent: SFT, DPO, SimPO, ORPO, KTO and GRPO.

Each is what the paper of its name says; where TRL's default is something else, the function that
builds the trainer says what is set instead. Nothing else differs: SFT's loss is on answers only;
DPO's is the sigmoid one without smoothing; KTO weighs right and wrong answers alike; ORPO's
likelihood term is over prompt and answer, as in its authors' code.
"""

# ruff: noqa: PLC0415 - torch, transformers and trl take seconds to import: only where used

from __future__ import annotations

import math
from typing import Any

from rlsparse_ray.experiments.assignment import Assignment
from rlsparse_ray.experiments.runs import CLIPPED_NORM, CLIPPED_RATIO, Run
from rlsparse_ray.experiments.tasks import Task

SIMPO_MARGIN = 0.5
"""Gamma of SimPO: by how much the length-normalised reward of the chosen answer shall be larger."""


def train(given: Assignment) -> Any:
    """Train with TRL's trainer of the algorithm and give the model."""
    trainer = make_trainer(given)
    masters = given.precision.masters
    if given.subnetwork is not None or masters:
        from rlsparse_ray.experiments.optimizers import everything
        from rlsparse_ray.training.trainers import train_subnetwork

        trained = everything(trainer.model) if given.subnetwork is None else given.subnetwork
        train_subnetwork(trainer, trained, master_weights=masters)
    trainer.train()
    return trainer.model


def make_trainer(given: Assignment) -> Any:
    """Build the trainer of all weights."""
    from datasets import Dataset
    from transformers import set_seed

    makers = {
        "SFT": _sft,
        "DPO": _dpo,
        "SimPO": _simpo,
        "ORPO": _orpo,
        "KTO": _kto,
        "GRPO": _grpo,
    }
    set_seed(given.run.seed)
    trainer = makers[given.run.algorithm](
        given.task,
        given.run,
        args=_common(given),
        model=given.load_base(),
        train_dataset=Dataset.from_list(given.rows()),
        processing_class=given.load_tokenizer(),
    )
    trainer.add_callback(_checkpoints(given))
    return trainer


def _common(given: Assignment) -> dict[str, Any]:
    run = given.run
    return {
        "output_dir": str(given.folder),
        "max_steps": run.steps,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": {"adamw": "adamw_torch_fused", "sgd": "sgd"}[run.optimizer],
        "max_grad_norm": CLIPPED_NORM if run.clipping else 0.0,
        "per_device_train_batch_size": run.batch,
        "seed": run.seed,
        "use_cpu": given.device == "cpu",
        "bf16": False,  # no autocast: the model's own dtype decides
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _sft(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(args=SFTConfig(max_length=task.max_length, **args), **parts)


def _dpo(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(max_length=task.max_length, beta=run.kl, **args)
    return DPOTrainer(args=config, **parts)


def _simpo(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    """SimPO (arXiv:2405.14734): CPO's trainer with its loss, without CPO's likelihood term.

    TRL would take CPO's sigmoid loss, and a likelihood term of weight 1.
    """
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config = CPOConfig(
        loss_type="simpo",
        cpo_alpha=0.0,
        simpo_gamma=SIMPO_MARGIN,
        max_length=task.max_length,
        beta=run.kl,
        **args,
    )
    return CPOTrainer(args=config, **_without_start_token(parts))


def _orpo(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    config = ORPOConfig(max_length=task.max_length, beta=run.kl, **args)
    return ORPOTrainer(args=config, **_without_start_token(parts))


def _without_start_token(parts: dict[str, Any]) -> dict[str, Any]:
    """Keep these two trainers from putting a start token before a prompt that has none.

    No other trainer does so, and no model here has ever read one in that place.
    """
    parts["processing_class"].bos_token = None
    return parts


def _kto(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    from trl import KTOConfig, KTOTrainer

    config = KTOConfig(max_length=task.max_length, beta=run.kl, **args)
    return KTOTrainer(args=config, **parts)


def _grpo(task: Task, run: Run, *, args: dict[str, Any], **parts: Any) -> Any:
    """GRPO (arXiv:2402.03300, eq. 3 and 4).

    The mean over answers of each answer's mean over its tokens, where TRL would take the mean over
    all tokens of the batch (DAPO), in which a long answer counts for more; and the KL term as it is
    estimated from a sample, which TRL would multiply by the ratio of probabilities (DeepSeek-V3.2).
    As in the paper, advantages are in standard deviations of a prompt's rewards, ratios are of
    tokens, and both sides are clipped alike.
    """
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        num_generations=run.generations,
        max_completion_length=task.max_new_tokens,
        loss_type="grpo",
        scale_rewards="group",
        importance_sampling_level="token",
        beta=run.kl,
        use_bias_correction_kl=False,
        num_iterations=run.updates_per_sample,
        epsilon=CLIPPED_RATIO if run.clipping else math.inf,
        **args,
    )
    return GRPOTrainer(args=config, reward_funcs=task.reward, **parts)


def _checkpoints(given: Assignment) -> Any:
    from transformers import TrainerCallback

    class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            given.after_step(state.global_step, parts["model"])

    return KeepCheckpoints()
