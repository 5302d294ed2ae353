"""Every trainer trains the subnetwork, and every other weight keeps its bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.training import Subnetwork, SubnetworkAdamW, train_subnetwork
from tests.training import tiny
from tests.training.weights import (
    Weights,
    assert_only_masked_changed,
    everything,
    masks_of,
    unequal,
    weights_of,
)

STEPS = 200
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tiny.quiet()
    with tiny.offline():
        yield tiny.write_base(tmp_path_factory.mktemp("base") / "base")


def trained(trainer: Any, **how: Any) -> Weights:
    trainer.train(**how)
    return weights_of(trainer.model)


# every trainer


@dataclass(frozen=True)
class Unbroken:
    """A run of one kind of trainer that kept a checkpoint in the middle."""

    kind: str
    folder: Path
    masks: Weights
    before: Weights
    after: Weights
    logs: list[dict[str, float]]

    def again(self, base: Path, folder: Path, **settings: Any) -> Any:
        trainer = tiny.make_trainer(self.kind, base, folder, max_steps=STEPS, **settings)
        train_subnetwork(trainer, Subnetwork.from_masks(self.masks))
        return trainer


@pytest.fixture(scope="module", params=tiny.KINDS)
def unbroken(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Unbroken:
    folder = tmp_path_factory.mktemp(request.param)
    trainer = tiny.make_trainer(
        request.param,
        base,
        folder,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=STEPS // 2,
        logging_strategy="steps",
        logging_steps=STEPS // 4,
    )
    masks, before = masks_of(trainer.model), weights_of(trainer.model)
    train_subnetwork(trainer, Subnetwork.from_masks(masks))
    after = trained(trainer)
    assert trainer.state.global_step == STEPS
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return Unbroken(request.param, folder, masks, before, after, logs)


def test_frozen_weights_keep_every_bit(unbroken: Unbroken) -> None:
    assert_only_masked_changed(unbroken.before, unbroken.after, unbroken.masks)


def test_clipping_and_the_schedule_were_at_work(unbroken: Unbroken) -> None:
    assert max(log["grad_norm"] for log in unbroken.logs) > tiny.SETTINGS["max_grad_norm"]
    rates = [log["learning_rate"] for log in unbroken.logs]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 2 * rates[-1]


def test_a_resumed_run_gives_the_same_bits(unbroken: Unbroken, base: Path, tmp_path: Path) -> None:
    trainer = unbroken.again(base, tmp_path)
    after = trained(
        trainer, resume_from_checkpoint=str(unbroken.folder / f"checkpoint-{STEPS // 2}")
    )
    assert unequal(after, unbroken.after) == {}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_mask_of_everything_is_the_trainers_own_run(
    kind: str, base: Path, tmp_path: Path
) -> None:
    own = trained(tiny.make_trainer(kind, base, tmp_path, max_steps=20))
    trainer = tiny.make_trainer(kind, base, tmp_path, max_steps=20)
    train_subnetwork(trainer, everything(trainer.model))
    assert unequal(trained(trainer), own) == {}


# what a trainer may be set to


def test_16_bit_weights_with_masters_resume_to_the_bit(base: Path, tmp_path: Path) -> None:
    """Loading a state, torch casts it to the weights' dtype: masters and moments would be lost."""

    def trainer(folder: str, **settings: Any) -> Any:
        made = tiny.make_trainer(
            "SFT", base, tmp_path / folder, dtype=torch.bfloat16, max_steps=20, **settings
        )
        train_subnetwork(made, Subnetwork.from_masks(masks_of(made.model)), master_weights=True)
        return made

    whole = trainer("whole", save_strategy="steps", save_steps=10, learning_rate=1e-4)
    before, masks = weights_of(whole.model), masks_of(whole.model)
    after = trained(whole)
    assert_only_masked_changed(before, after, masks)
    resumed = trainer("resumed", learning_rate=1e-4)
    again = trained(resumed, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    assert unequal(again, after) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adamw_torch_fused"},
        {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true", "learning_rate": 0.1},
        {"adam_beta1": 0.5, "adam_beta2": 0.8, "adam_epsilon": 1e-3},
        {"bf16": True},
        {"gradient_accumulation_steps": 1, "max_grad_norm": 0.0},
    ],
    ids=["fused", "sgd", "betas", "bf16 autocast", "neither clipped nor accumulated"],
)
def test_the_trainers_settings_hold(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 10, **settings}
    own = trained(tiny.make_trainer("Trainer", base, tmp_path, **settings))
    trainer = tiny.make_trainer("Trainer", base, tmp_path, **settings)
    train_subnetwork(trainer, everything(trainer.model))
    assert unequal(trained(trainer), own) == {}


def test_a_class_of_optimizers_given_to_the_trainer_is_what_it_becomes(
    base: Path, tmp_path: Path
) -> None:
    def make() -> Any:
        given = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
        parts = {"optimizer_cls_and_kwargs": given}
        return tiny.make_trainer("SFT", base, tmp_path, parts=parts, max_steps=10)

    own, trainer = trained(make()), make()
    train_subnetwork(trainer, everything(trainer.model))
    assert unequal(trained(trainer), own) == {}


def test_the_norm_of_the_subnetwork_alone_when_gradients_are_masked(
    base: Path, tmp_path: Path
) -> None:
    def norm(**options: bool) -> float:
        settings = {"max_steps": 1, "logging_strategy": "steps", "logging_steps": 1}
        trainer = tiny.make_trainer("Trainer", base, tmp_path, **settings)
        train_subnetwork(trainer, Subnetwork.from_masks(masks_of(trainer.model)), **options)
        trainer.train()
        return float(trainer.state.log_history[0]["grad_norm"])

    assert 0 < norm(mask_gradients=True) < 0.6 * norm()


def test_every_trial_of_a_search_has_an_optimizer_of_its_own(base: Path, tmp_path: Path) -> None:
    """A trainer with model_init makes the model anew in `train`, after this line was called."""
    made = tiny.make_trainer("Trainer", base, tmp_path, max_steps=5)
    parts = {"model": None, "model_init": lambda: tiny.load(base, "Trainer", torch.float32)}
    trainer = tiny.make_trainer("Trainer", base, tmp_path, max_steps=5, parts=parts)
    masks, before = masks_of(made.model), weights_of(made.model)
    train_subnetwork(trainer, Subnetwork.from_masks(masks))
    for rate in (1e-3, 1e-4):
        trainer.args.learning_rate = rate
        assert_only_masked_changed(before, trained(trainer), masks)
        assert trainer.optimizer.param_groups[0]["initial_lr"] == rate


def test_training_goes_on_in_a_second_call(base: Path, tmp_path: Path) -> None:
    trainer = tiny.make_trainer("SFT", base, tmp_path, max_steps=3)
    masks, before = masks_of(trainer.model), weights_of(trainer.model)
    train_subnetwork(trainer, Subnetwork.from_masks(masks))
    first = trained(trainer)
    second = trained(trainer)
    assert unequal(second, first)
    assert_only_masked_changed(before, second, masks)


def test_a_frozen_tensor_that_the_subnetwork_knows_as_unchanged_is_no_error(
    base: Path, tmp_path: Path
) -> None:
    trainer = tiny.make_trainer("Trainer", base, tmp_path, max_steps=3)
    masks, before = masks_of(trainer.model), weights_of(trainer.model)
    trainer.model.get_parameter("model.layers.1.self_attn.o_proj.weight").requires_grad_(False)
    train_subnetwork(trainer, Subnetwork.from_masks(masks))
    assert_only_masked_changed(before, trained(trainer), masks)


def test_a_scaler_knows_the_gradients_of_frozen_tensors(base: Path) -> None:
    """It unscales what is in the optimizer's groups: clipping would take the rest as it is."""

    def norm(scale: float) -> tuple[float, Weights]:
        model = tiny.load(base, "SFT", torch.float32)
        sub = Subnetwork.from_masks({"lm_head.weight": masks_of(model)["lm_head.weight"]})
        optimizer = SubnetworkAdamW(model.named_parameters(), sub, lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        ids = torch.arange(4, 20)[None]
        scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
        scaler.unscale_(optimizer)
        total = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        return float(total), weights_of(model)

    (plain, weights), (scaled, same) = norm(1.0), norm(2.0**16)
    assert (plain, unequal(weights, same)) == (scaled, {})
    assert unequal(norm(float("inf"))[1], weights_of(tiny.load(base, "SFT", torch.float32))) == {}


def test_tied_weights_go_by_any_of_their_names(base: Path, tmp_path: Path) -> None:
    trainer = tiny.make_trainer("Trainer", base, tmp_path, max_steps=3)
    model = trainer.model
    model.lm_head.weight = model.model.embed_tokens.weight
    masks, before = masks_of(model), weights_of(model)
    embedding = masks.pop("model.embed_tokens.weight")
    train_subnetwork(trainer, Subnetwork.from_masks({**masks, "lm_head.weight": embedding}))
    after = trained(trainer)
    assert_only_masked_changed(before, after, {**masks, "model.embed_tokens.weight": embedding})


def test_models_that_are_wrapped_over_two_processes(base: Path, tmp_path: Path) -> None:
    """FSDP 2 swaps the parameters of the optimizer for their shards after it is made."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"),
            *("-m", "tests.training.wrapped", base, tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    wrapped = Counter(re.findall(r"wrapped as (\w+)", run.stdout))
    assert wrapped == {"DistributedDataParallel": 2, "FSDPLlamaForCausalLM": 2}


# what is refused


def test_a_tensor_of_the_subnetwork_that_requires_no_gradient(base: Path, tmp_path: Path) -> None:
    trainer = tiny.make_trainer("Trainer", base, tmp_path)
    trainer.model.lm_head.requires_grad_(False)
    train_subnetwork(trainer, Subnetwork.from_masks(masks_of(trainer.model)))
    with pytest.raises(TrainingError, match=r"1 tensors .* gradients, lm_head\.weight the first"):
        trainer.train()


def test_a_subnetwork_of_another_model(base: Path, tmp_path: Path) -> None:
    trainer = tiny.make_trainer("SFT", base, tmp_path)
    train_subnetwork(trainer, Subnetwork.from_masks({"wte.weight": torch.ones(3, 3).bool()}))
    with pytest.raises(TrainingError, match=r"wte\.weight"):
        trainer.train()


def test_a_checkpoint_of_another_subnetwork(base: Path, tmp_path: Path) -> None:
    def make(seed: int) -> Any:
        trainer = tiny.make_trainer(
            "Trainer", base, tmp_path, max_steps=4, save_strategy="steps", save_steps=2
        )
        sub = Subnetwork.from_masks(masks_of(trainer.model)).random(seed)
        train_subnetwork(trainer, sub)
        return trainer

    make(0).train()
    with pytest.raises(TrainingError, match="random, seed 1"):
        make(1).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("kind", ["SFT", "GRPO"])
def test_adapters(kind: str, base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    parts = {"peft_config": LoraConfig(target_modules=["q_proj"])}
    trainer = tiny.make_trainer(kind, base, tmp_path, parts=parts)
    with pytest.raises(TrainingError, match=f"{kind}Trainer: its model has PEFT adapters"):
        train_subnetwork(trainer, Subnetwork.from_masks({}))


def test_an_optimizer_without_a_form_for_subnetworks(base: Path, tmp_path: Path) -> None:
    trainer = tiny.make_trainer("Trainer", base, tmp_path, optim="adafactor")
    with pytest.raises(TrainingError, match="no Adafactor for subnetworks: set optim="):
        train_subnetwork(trainer, everything(trainer.model))


def test_a_second_subnetwork(base: Path, tmp_path: Path) -> None:
    trainer = tiny.make_trainer("Trainer", base, tmp_path, max_steps=1)
    sub = everything(trainer.model)
    train_subnetwork(trainer, sub)
    with pytest.raises(TrainingError, match="call train_subnetwork once"):
        train_subnetwork(trainer, sub)
    trainer.train()
    with pytest.raises(TrainingError, match="it has an optimizer already"):
        train_subnetwork(trainer, sub)


def test_a_trainer_that_makes_its_own_optimizer(base: Path, tmp_path: Path) -> None:
    trainer = tiny.make_trainer("Trainer", base, tmp_path)
    before = weights_of(trainer.model)

    class Stubborn(type(trainer)):
        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            self.optimizer = torch.optim.AdamW(self.model.parameters())
            return self.optimizer

    trainer.__class__ = Stubborn
    train_subnetwork(trainer, everything(trainer.model))
    with pytest.raises(TrainingError, match="would step a AdamW, and train every weight"):
        trainer.train()
    assert unequal(weights_of(trainer.model), before) == {}
