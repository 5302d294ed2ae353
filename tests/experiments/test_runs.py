from dataclasses import replace

import pytest

from rlsparse_ray.demo import models
from rlsparse_ray.errors import RunError
from rlsparse_ray.experiments.defaults import DEFAULTS, default_run
from rlsparse_ray.experiments.runs import (
    ALGORITHMS,
    RUN_FILE,
    Run,
    done_record,
    fresh_folder,
    identity,
    write_json,
)

BASE = models.BASES / "tiny-a"
SHORT = Run("short", "tiny-a", "GRPO", 0, "addition", 2, 1e-5, batch=32, save_every=1)
SFT = replace(SHORT, algorithm="SFT")


@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        (SHORT, {"algorithm": "REINFORCE"}, "short: algorithm 'REINFORCE' is not one of SFT, DPO,"),
        (SHORT, {"precision": "fp16"}, "precision 'fp16' is not one of fp32-master, bf16-compute"),
        (SHORT, {"optimizer": "adam"}, "optimizer 'adam' is not one of adamw, sgd"),
        (SHORT, {"mask": "all", "mask_of": "x"}, "mask 'all' is not one of subnetwork, random"),
        (SHORT, {"mask": "random"}, "mask and mask_of go together"),
        (SHORT, {"mask_of": "x"}, "mask and mask_of go together"),
        (SHORT, {"updates_per_sample": 0}, "updates_per_sample=0 is less than 1"),
        (SHORT, {"data": "sampled"}, "GRPO always samples"),
        (SHORT, {"batch": 30}, "batch=30 is not a multiple of generations=8"),
        (SHORT, {"generations": 1}, "generations=1"),
        (SFT, {"data": "mine"}, "data 'mine' is not one of given, sampled"),
        (SFT, {"updates_per_sample": 2}, "SFT takes no samples of its policy"),
        (SFT, {"algorithm": "DPO"}, "kl=0.0: DPO needs a beta above 0"),
    ],
)
def test_fields_that_contradict_one_another_are_refused(run, changes, message):
    with pytest.raises(RunError, match=message):
        replace(run, **changes)


def test_every_algorithm_has_defaults_a_stage_and_a_policy():
    assert tuple(DEFAULTS) == ALGORITHMS
    runs = [default_run("x", "tiny-a", name, 0, "addition") for name in ALGORITHMS]
    assert [run.stage for run in runs] == ["SFT"] + ["preference"] * 4 + ["RL"] * 3
    assert [run.algorithm for run in runs if run.on_policy] == ["GRPO", "PPO", "PRIME"]
    assert not replace(runs[-1], updates_per_sample=2).on_policy
    with pytest.raises(RunError, match="'RLOO' is not one of"):
        default_run("x", "tiny-a", "RLOO", 0, "addition")


def make_done(run, base, out):
    with fresh_folder(out) as folder:
        write_json(folder / RUN_FILE, identity(run, base) | {"reward_after": 0.5})


def test_a_run_is_done_only_for_the_same_fields_versions_and_base(tmp_path, monkeypatch):
    out = tmp_path / "short"
    assert done_record(SHORT, BASE, out) is None
    make_done(SHORT, BASE, out)
    assert done_record(SHORT, BASE, out)["reward_after"] == 0.5
    assert done_record(replace(SHORT, seed=1), BASE, out) is None
    assert done_record(replace(SHORT, learning_rate=2e-5), BASE, out) is None
    assert done_record(replace(SHORT, precision="bf16"), BASE, out) is None
    assert done_record(SHORT, models.BASES / "tiny-b", out) is None
    monkeypatch.setattr("rlsparse_ray.experiments.runs.library_versions", lambda: {"torch": "0"})
    assert done_record(SHORT, BASE, out) is None


def test_an_interrupted_run_leaves_nothing_that_counts_as_done(tmp_path):
    out = tmp_path / "short"

    def interrupted():
        with fresh_folder(out) as folder:
            (folder / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not out.exists()
    make_done(SHORT, BASE, out)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done_record(SHORT, BASE, out), "the earlier result stays until it is replaced"
    make_done(SHORT, BASE, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short"]
    assert [path.name for path in out.iterdir()] == [RUN_FILE]
