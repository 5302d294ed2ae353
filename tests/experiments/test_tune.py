"""Whole runs, short ones: every algorithm, and every field that a run can vary."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlsparse_ray.demo import models
from rlsparse_ray.errors import RunError
from rlsparse_ray.experiments import arithmetic
from rlsparse_ray.experiments.assignment import Assignment
from rlsparse_ray.experiments.checkpoints import load_tokenizer, quiet
from rlsparse_ray.experiments.defaults import default_run
from rlsparse_ray.experiments.runs import ALGORITHMS, RUN_FILE, Run, done_record, sha256_of
from rlsparse_ray.experiments.tasks import ARITHMETIC
from rlsparse_ray.experiments.tune import tune
from rlsparse_ray.naming import canonical_names
from rlsparse_ray.training import Subnetwork

BASES = {base.name: base for base in sorted(models.BASES.iterdir())}
SHORT = Run("short", "tiny-a", "GRPO", 0, "addition", 2, 1e-5, batch=32, save_every=1)


def few_questions(model, tokenizer, run):
    prompts = arithmetic.questions(run.dataset, "test")[:200]
    return arithmetic.accuracy(model, tokenizer, prompts)[0]


# Of 8,000 questions and 2,000 to measure on, most of a short run's time goes there.
QUICK = replace(
    ARITHMETIC, preferences=lambda run: ARITHMETIC.preferences(run)[:512], score=few_questions
)


def short(algorithm, **changes):
    run = default_run(algorithm.lower(), "tiny-a", algorithm, 0, "addition")
    return replace(run, **{"steps": 2, "batch": 16} | changes)


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def changed(folder: Path, base: str = "tiny-a") -> float:
    """The density of a run against its base."""
    before, after = weights(BASES[base]), weights(folder)
    flips = sum(int((after[name] != before[name]).sum()) for name in before)
    return flips / sum(tensor.numel() for tensor in before.values())


def file_of(folder: Path) -> str:
    return sha256_of(folder / "model.safetensors")


def test_a_base_without_its_marker_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a complete base"):
        tune(SHORT, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("device", "message"), [("cuda:1", "not one of cpu, cuda"), ("cuda", "use device cpu")]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_that_is_not_there_is_refused(device, message, tmp_path):
    with pytest.raises(RunError, match=message):
        tune(SHORT, BASES["tiny-a"], tmp_path / "out", device=device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_runs_on_a_gpu(algorithm, tmp_path):
    record = tune(short(algorithm), BASES["tiny-a"], tmp_path / "run", QUICK, device="cuda")
    assert record["device"] == "cuda"
    assert changed(tmp_path / "run") > 0


def test_a_run_is_a_whole_bf16_model_with_its_checkpoints(tmp_path):
    base, out = weights(BASES["tiny-a"]), tmp_path / "one"
    record = tune(SHORT, BASES["tiny-a"], out)
    assert record["reward_before"] == 0.4119, "as the base's own base.json says"
    made = weights(out)
    assert {k: t.shape for k, t in made.items()} == {k: t.shape for k, t in base.items()}
    assert {t.dtype for t in made.values()} == {torch.bfloat16}
    assert 0 < changed(out) < 0.5
    assert record["checkpoints"] == ["checkpoint-000001", "checkpoint-000002"]
    assert file_of(out / "checkpoint-000002") == file_of(out)
    assert file_of(out / "checkpoint-000001") != file_of(out)
    assert json.loads((out / RUN_FILE).read_text()) == record
    assert done_record(SHORT, BASES["tiny-a"], out, task="arithmetic", device="cpu") == record
    assert record["sha256"] == file_of(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint-000001",
        "checkpoint-000002",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_gives_the_same_bytes_twice_and_a_tokenizer_like_the_base(
    algorithm, tmp_path
):
    run = short(algorithm)
    for place in ("one", "two"):
        record = tune(run, BASES["tiny-a"], tmp_path / place, QUICK)
        assert 0.3 < record["reward_before"] < 0.5
        assert record["reward_after"] != record["reward_before"]
    assert file_of(tmp_path / "one") == file_of(tmp_path / "two")
    before, after = (load_tokenizer(f) for f in (BASES["tiny-a"], tmp_path / "one"))
    assert after.special_tokens_map == before.special_tokens_map
    assert after.get_vocab() == before.get_vocab()
    other = tmp_path / "other"
    tune(replace(run, seed=1), BASES["tiny-a"], other, QUICK)
    assert file_of(other) != file_of(tmp_path / "one")


@pytest.mark.parametrize("algorithm", ["PPO", "PRIME"])
def test_our_own_algorithms_learn(algorithm, tmp_path):
    run = short(algorithm, steps=20, batch=32, learning_rate=3e-5, dataset="subtraction")
    record = tune(run, BASES["tiny-b"], tmp_path / "run", QUICK)
    assert record["reward_after"] > record["reward_before"] + 0.05


def test_grpo_is_the_mean_over_answers_of_the_mean_over_their_tokens(tmp_path):
    """Answers of five and two tokens, one good and one bad: the longer one counts no more."""
    with quiet():
        from rlsparse_ray.experiments.trl_trainers import make_trainer

        run = short("GRPO")
        rows = QUICK.preferences(run)
        given = Assignment(run, QUICK, rows, BASES["tiny-a"], tmp_path, None, "cpu")
        trainer = make_trainer(given)
        trainer.current_gradient_accumulation_steps = 1
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
        loss = trainer.compute_loss(
            trainer.model,
            {
                "prompt_ids": torch.tensor([[4, 14, 5, 16]] * 2),
                "prompt_mask": torch.ones(2, 4, dtype=torch.int64),
                "completion_ids": torch.tensor([[4, 5, 6, 7, 2], [8, 2, 0, 0, 0]]),
                "completion_mask": mask,
                "advantages": torch.tensor([1.0, -1.0]),
                "num_items_in_batch": mask.sum(),
            },
        )
    assert loss.item() == pytest.approx(0, abs=1e-6)  # over all tokens it is -3/7
    assert trainer.args.use_bias_correction_kl is False, "its KL term has no ratio in it"


# precision


@pytest.mark.parametrize("algorithm", ["DPO", "PRIME"])
def test_precisions(algorithm, tmp_path):
    """Only with fp32 values behind them do weights move by less than a bf16 ULP at a time."""
    folders = {}
    for precision in ("fp32-master", "bf16-compute", "bf16", "fp32"):
        run = short(algorithm, precision=precision, steps=6, learning_rate=1e-5)
        folders[precision] = tmp_path / precision
        tune(run, BASES["tiny-a"], folders[precision], QUICK)
    dtypes = {name: {t.dtype for t in weights(f).values()} for name, f in folders.items()}
    assert dtypes.pop("fp32") == {torch.float32}
    assert set(map(frozenset, dtypes.values())) == {frozenset([torch.bfloat16])}
    # the same training, stored otherwise
    assert file_of(folders["fp32"] / "bf16") == file_of(folders["fp32-master"])
    density = {name: changed(folder) for name, folder in folders.items()}
    assert density["fp32"] > 0.9 > density["fp32-master"]
    assert density["bf16-compute"] == pytest.approx(density["fp32-master"], rel=0.5)
    assert density["bf16"] < 0.5 * density["bf16-compute"]


# what else a run can vary


@pytest.mark.parametrize("algorithm", ["GRPO", "PPO", "PRIME"])
@pytest.mark.parametrize(
    "changes",
    [{"kl": 10.0}, {"updates_per_sample": 4}, {"clipping": False}],
    ids=["kl", "off-policy", "unclipped"],
)
def test_rl_options_change_the_weights(algorithm, changes, tmp_path):
    """From the third step on: only then do ratios and log-ratios differ from where they began."""
    for name, fields in (("usual", {}), ("other", changes)):
        run = short(algorithm, steps=4, learning_rate=3e-3, **fields)
        tune(run, BASES["tiny-a"], tmp_path / name, QUICK)
    assert file_of(tmp_path / "other") != file_of(tmp_path / "usual")


@pytest.mark.parametrize("algorithm", ["SFT", "GRPO", "PPO"])
def test_sgd_moves_few_weights(algorithm, tmp_path):
    tune(short(algorithm, optimizer="sgd"), BASES["tiny-a"], tmp_path / "sgd", QUICK)
    tune(short(algorithm), BASES["tiny-a"], tmp_path / "adamw", QUICK)
    assert changed(tmp_path / "sgd") < 0.1 * changed(tmp_path / "adamw")


@pytest.mark.parametrize("algorithm", ["SFT", "DPO", "KTO"])
def test_a_run_on_samples_of_the_base_says_how_many_were_of_use(algorithm, tmp_path):
    record = tune(short(algorithm, data="sampled"), BASES["tiny-a"], tmp_path / "run", QUICK)
    asked, kept = record["sampled"]["questions"], record["sampled"]["kept"]
    assert 32 <= kept < asked
    assert asked % 128 == 0
    assert changed(tmp_path / "run") > 0


def test_sampled_preferences_are_told_apart_by_the_reward():
    from rlsparse_ray.experiments.sampled import sampled_preferences

    run = short("DPO", data="sampled", steps=40)  # more rows than there are questions
    rows, said = sampled_preferences(run, QUICK, BASES["tiny-a"], "cpu")
    assert said == {"sampled": {"questions": 512, "kept": len(rows)}}
    prompts = [row["prompt"] for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert set(ARITHMETIC.reward(prompts, [row["chosen"] for row in rows])) == {1.0}
    assert set(ARITHMETIC.reward(prompts, [row["rejected"] for row in rows])) == {0.0}


def test_a_base_that_is_never_right_makes_no_data(tmp_path):
    hopeless = replace(QUICK, reward=lambda prompts, completions: [0.0] * len(prompts))
    with pytest.raises(RunError, match=r"sft: of .* questions, none has the samples"):
        run = short("SFT", data="sampled", generations=2)
        tune(run, BASES["tiny-a"], tmp_path / "run", hopeless)


# subnetworks


def some_weights() -> Subnetwork:
    """Every third weight of two tensors."""
    names = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight")
    base = weights(BASES["tiny-a"])
    return Subnetwork.from_masks(
        {n: (torch.arange(base[n].numel()) % 3 == 0).view_as(base[n]) for n in names}, "thirds"
    )


@pytest.mark.parametrize("precision", ["fp32-master", "bf16-compute", "bf16"])
@pytest.mark.parametrize("algorithm", ["SimPO", "GRPO", "PPO", "PRIME"])
def test_only_the_subnetwork_moves(algorithm, precision, tmp_path):
    sub = some_weights()
    run = short(algorithm, precision=precision, learning_rate=1e-3, mask="random", mask_of="x")
    record = tune(run, BASES["tiny-a"], tmp_path / "run", QUICK, subnetwork=sub)
    assert record["subnetwork"]["size"] == sub.size
    assert record["subnetwork"]["fingerprint"] == sub.fingerprint
    before, after = weights(BASES["tiny-a"]), weights(tmp_path / "run")
    names = canonical_names(before)
    for name, tensor in before.items():
        flips = (after[name].view(torch.int16) != tensor.view(torch.int16)).numpy()
        if names[name] in sub:
            chosen = sub[names[name]].flags()
            assert flips[chosen].mean() > 0.5
            assert not flips[~chosen].any()
        else:
            assert not flips.any()


@pytest.mark.parametrize(("mask", "given"), [("random", False), (None, True)])
def test_a_mask_and_a_subnetwork_come_together(mask, given, tmp_path):
    run = short("SFT", mask=mask, mask_of=mask and "x")
    with pytest.raises(RunError, match="sft: mask="):
        tune(run, BASES["tiny-a"], tmp_path, subnetwork=some_weights() if given else None)
