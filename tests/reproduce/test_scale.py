"""Scale files, and the runs that they ask for."""

from collections import Counter
from dataclasses import asdict

import pytest

from rlsparse_ray.errors import ScaleError
from rlsparse_ray.reproduce.bases import check_base
from rlsparse_ray.reproduce.scale_file import load_scale, packaged_scales
from rlsparse_ray.reproduce.study import make_study

HEAD = """\
version: 1
bases: [{name: tiny-a, family: tiny}]
main:
  - base: tiny-a
    datasets: [addition]
    seeds: [0, 1]
    algorithms: {SFT: {steps: 12}, GRPO: {}}
"""


@pytest.fixture
def study(tmp_path):
    def make(more=""):
        path = tmp_path / "scale.yaml"
        path.write_text(HEAD + more)
        return make_study(load_scale(str(path)))

    return make


@pytest.mark.parametrize("name", packaged_scales())
def test_a_packaged_scale_is_sound(name):
    study = make_study(load_scale(name))
    for base in study.scale.bases:
        check_base(base)
    names = [run.name for run in (*study.full, *study.masked)]
    assert len(names) == len(set(names)) > 5
    assert {v.reference for v in study.variants} <= {run.name for run in study.main}
    assert {run.mask_of for run in study.masked} <= {run.name for run in study.main}


def test_tiny_has_what_the_claims_ask_for():
    study = make_study(load_scale("tiny"))
    main = Counter((run.algorithm, run.dataset) for run in study.main)
    assert len(main) == 8 * 2 and set(main.values()) == {3}
    assert {v.varies for v in study.variants} == {
        *("kl", "clipping", "updates_per_sample", "data"),
        *("learning_rate", "optimizer", "precision"),
    }
    masks = Counter((run.algorithm, run.mask) for run in study.masked)
    assert len({algorithm for algorithm, _ in masks}) >= 3
    assert set(masks.values()) == {3} and len({mask for _, mask in masks}) == 3
    # two cores have 20 minutes, and need some of it for the rest
    assert sum(map(study.seconds, (*study.full, *study.masked))) < 2 * 17 * 60


def test_a_variant_differs_from_its_main_run_in_what_it_says(study):
    made = study(
        "comparisons:\n"
        "  - {varies: learning_rate, values: [1.0e-6], also: {steps: 7}, base: tiny-a,\n"
        "     dataset: addition, algorithms: [SFT], seeds: [1]}\n"
        "dynamics:\n"
        "  - {base: tiny-a, dataset: addition, algorithms: [SFT], seeds: [1], checkpoints: 4}\n"
    )
    runs = {run.name: run for run in made.full}
    (variant,) = made.variants
    one, usual = asdict(runs[variant.name]), asdict(runs[variant.reference])
    differing = {key for key in one if one[key] != usual[key]}
    assert differing == {"name", "learning_rate", "steps", "save_every"}
    assert (one["steps"], usual["steps"], usual["save_every"], one["save_every"]) == (7, 12, 3, 0)
    assert (variant.value, variant.usual) == (1e-6, usual["learning_rate"])


def test_a_masked_run_is_its_main_run_but_for_the_mask(study):
    made = study(
        "subnetworks:\n"
        "  - {base: tiny-a, dataset: addition, algorithms: [GRPO], seeds: [0],\n"
        "     masks: [subnetwork, random]}\n"
    )
    runs = {run.name: run for run in made.full}
    for run in made.masked:
        one, full = asdict(run), asdict(runs[run.mask_of])
        assert {k for k in one if one[k] != full[k]} == {"name", "mask", "mask_of"}
    assert [run.mask for run in made.masked] == ["subnetwork", "random"]


SOME = "base: tiny-a, dataset: addition, algorithms: [SFT], seeds: [0]"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("marginn: 0.1\n", r":8: unknown key marginn: did you mean 'margin'\?$"),
        ("margin: 0\n", r":8: margin: Input should be greater than 0$"),
        ("bases: []\n", r":8: key 'bases' is already on line 2: remove one$"),
        ("device: tpu\n", r":8: device: Input should be 'auto', 'cpu' or 'cuda'$"),
        (
            "comparisons: [{varies: kl, values: [0.1], base: tiny-a, dataset: addition, "
            "algorithms: [PPO], seeds: [0]}]\n",
            r"comparisons.0.algorithms: PPO not among the main runs of tiny-a: known are SFT, GRPO",
        ),
        (
            f"dynamics: [{{{SOME.replace('[0]', '[0, 5]')}, checkpoints: 3}}]\n",
            r"dynamics.0.seeds: 5 not among the main runs of tiny-a: known are 0, 1",
        ),
        (
            f"dynamics: [{{{SOME}, checkpoints: 5}}]\n",
            r"12 steps cannot be cut into 5 checkpoints evenly",
        ),
        (
            f"comparisons: [{{varies: optimizer, values: [adamw], {SOME}}}]\n",
            r"adamw is the usual value of SFT, so there is nothing to compare",
        ),
        (
            f"subnetworks: [{{masks: [random, random], {SOME}}}]\n",
            r"asked for twice: tiny-a-sft-addition-seed0-random: remove one of the two",
        ),
        ("comparisons: [{\n", r"not valid YAML"),
    ],
)
def test_what_is_wrong_is_said(study, more, message):
    with pytest.raises(ScaleError, match=message):
        study(more)


def test_neither_a_file_nor_a_scale():
    with pytest.raises(ScaleError, match=r"huge: no such file, and no scale of that name: quick,"):
        load_scale("huge")


def test_a_name_that_is_nearly_right():
    with pytest.raises(ScaleError, match=r"quick, small, tiny; did you mean 'tiny'\?$"):
        load_scale("tinny")


def test_a_base_that_cannot_be_made():
    scale = load_scale("tiny")
    with pytest.raises(ScaleError, match=r"base 'tiny-z': give it `scratch:`.*tiny-a, tiny-b,"):
        check_base(scale.bases[0].model_copy(update={"name": "tiny-z"}))
