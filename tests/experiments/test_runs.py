import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import rlsparse_ray
from rlsparse_ray.demo import models
from rlsparse_ray.errors import RunError
from rlsparse_ray.experiments import fingerprint
from rlsparse_ray.experiments.defaults import DEFAULTS, default_run
from rlsparse_ray.experiments.fingerprint import code_hash
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


def make_done(run, base, out, **more):
    with fresh_folder(out) as folder:
        known = identity(run, base, out, "arithmetic") | {"device": "cpu", "reward_after": 0.5}
        write_json(folder / RUN_FILE, known | more)


def done(run, base, out, task="arithmetic", **where):
    return done_record(run, base, out, task=task, **where)


def test_a_run_is_done_only_for_the_same_fields_versions_base_task_and_device(
    tmp_path, monkeypatch
):
    out = tmp_path / "short"
    assert done(SHORT, BASE, out) is None
    make_done(SHORT, BASE, out)
    assert done(SHORT, BASE, out)["reward_after"] == 0.5
    assert done(SHORT, BASE, out, device="cpu")
    assert done(SHORT, BASE, out, device="cuda") is None
    assert done(SHORT, BASE, out, task="short-sums") is None
    assert done(replace(SHORT, seed=1), BASE, out) is None
    assert done(replace(SHORT, learning_rate=2e-5), BASE, out) is None
    assert done(replace(SHORT, precision="bf16"), BASE, out) is None
    assert done(SHORT, models.BASES / "tiny-b", out) is None
    monkeypatch.setattr("rlsparse_ray.experiments.runs.library_versions", lambda: {"torch": "0"})
    assert done(SHORT, BASE, out) is None


def test_a_run_of_other_training_code_is_made_again(tmp_path, monkeypatch):
    make_done(SHORT, BASE, tmp_path / "short")
    monkeypatch.setattr("rlsparse_ray.experiments.runs.training_code", lambda: "other")
    assert done(SHORT, BASE, tmp_path / "short") is None


def test_a_masked_run_is_made_again_when_the_run_of_its_mask_is_another(tmp_path):
    masked = replace(SHORT, name="masked", mask="random", mask_of="short")
    make_done(SHORT, BASE, tmp_path / "short", sha256="of these weights")
    make_done(masked, BASE, tmp_path / "masked")
    assert done(masked, BASE, tmp_path / "masked")
    make_done(SHORT, BASE, tmp_path / "short", sha256="of others")
    assert done(masked, BASE, tmp_path / "masked") is None
    shutil.rmtree(tmp_path / "short")
    assert done(masked, BASE, tmp_path / "masked") is None


CODE = """
RATE = 0.5
def step(x):
    return x * RATE
"""


@pytest.mark.parametrize(
    ("code", "equal"),
    [
        (CODE, True),
        ('"""A module."""\n# with a comment\n' + CODE.replace("0.5", "0.5  # of half"), True),
        (CODE.replace("x):", 'x):\n    """Says more."""'), True),
        (CODE.replace("x * RATE", "(x *\n    RATE)"), True),
        (CODE.replace("RATE = 0.5", 'RATE = 0.5\n"""Of a step."""'), True),
        (CODE.replace("0.5", "0.25"), False),
        (CODE.replace("*", "+"), False),
        (CODE.replace("return x", "return 'words'\n    return x"), False),
    ],
)
def test_what_code_does_counts_and_not_its_words(tmp_path, code, equal):
    module = tmp_path / "module.py"
    module.write_text(CODE)
    before = code_hash([module])
    module.write_text(code)
    assert (code_hash([module]) == before) == equal


def test_every_module_that_training_imports_counts_or_is_said_not_to():
    """Beside the two packages, what they import of this one."""
    root = Path(rlsparse_ray.__file__).parent
    counted = {path.relative_to(root).as_posix() for path in fingerprint.modules()}
    imported = {
        name
        for place in counted
        for name in re.findall(r"from (rlsparse_ray[\w.]*) import", (root / place).read_text())
    }
    files = {name.replace(".", "/").removeprefix("rlsparse_ray/") + ".py" for name in imported}
    known = counted | {"errors.py", "rlsparse_ray.py"}
    known.add("weights/spec.py")  # how tensors lie in a file: fused.py cuts none for a run
    known |= {"training.py", "experiments.py"}  # the packages: their modules are counted
    known |= set(fingerprint.DO_NOT)
    assert files <= known


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
    assert done(SHORT, BASE, out), "the earlier result stays until it is replaced"
    make_done(SHORT, BASE, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short"]
    assert [path.name for path in out.iterdir()] == [RUN_FILE]
