"""Trajectories in the corpus file: what they expand into, what is refused, what is stored."""

import os

import pytest
from pydantic import ValidationError

from rlsparse_ray import sql
from rlsparse_ray.commit import LABELS, relabel_pair
from rlsparse_ray.corpus import Corpus, PairEntry
from rlsparse_ray.entries import CheckpointEntry, Trajectory, TrajectoryPair
from tests.builders import extract_directly, plan_of, small_model, tuned_from, write_model

HEAD = "version: 1\ntrajectories:\n  - name: t\n    checkpoints:\n"
THREE = "      - {model: ./a}\n      - {model: ./b, step: 10}\n      - {model: ./c, step: 25}\n"


def trajectory(count, **facts):
    models = [CheckpointEntry(model=f"m{k}", step=10 * k) for k in range(count)]
    return Trajectory(name="t", checkpoints=models, **facts)


def steps_of(expanded):
    return [(pair.step_from, pair.step_to) for pair in expanded.pairs()]


def test_the_first_with_each_and_neighbours_none_twice(load, tmp_path):
    (found,) = load(HEAD + THREE).trajectories
    assert [c.step for c in found.checkpoints] == [0, 10, 25]
    assert [(p.name, p.base, p.tuned, p.steps) for p in found.pairs()] == [
        ("t@0-10", f"{tmp_path}/a", f"{tmp_path}/b", 10),
        ("t@0-25", f"{tmp_path}/a", f"{tmp_path}/c", 25),
        ("t@10-25", f"{tmp_path}/b", f"{tmp_path}/c", 15),
    ]


def test_spans():
    from_start = [(0, 10), (0, 20), (0, 30), (0, 40)]
    assert steps_of(trajectory(5, spans=())) == from_start
    assert steps_of(trajectory(5)) == [*from_start, (10, 20), (20, 30), (30, 40)]
    assert steps_of(trajectory(5, spans=(2,))) == [*from_start, (10, 30), (20, 40)]
    both = [*from_start, (10, 20), (20, 30), (30, 40), (10, 40)]
    assert steps_of(trajectory(5, spans=(3, 1))) == both
    assert steps_of(trajectory(2)) == [(0, 10)]


def test_names_do_not_repeat():
    names = [pair.name for pair in trajectory(9, spans=(1, 2, 3, 8)).pairs()]
    assert len(names) == len(set(names)) == 8 + 7 + 6 + 5
    assert names[0] == "t@0-10"


def test_a_start_that_is_not_step_0(load):
    (found,) = load(HEAD + THREE.replace("{model: ./a}", "{model: ./a, step: 5}")).trajectories
    assert [pair.name for pair in found.pairs()] == ["t@5-10", "t@5-25", "t@10-25"]


def test_labels_are_those_of_a_pair(load):
    labels = "    family: f\n    algorithm: GRPO\n    seed: 3\n    kl: 0.1\n    labels: {lab: x}\n"
    corpus = load(HEAD + THREE + labels + "    reported_sparsity: 0.8\n")
    for pair in corpus.entries():
        assert (pair.family, pair.algorithm, pair.seed, pair.kl) == ("f", "GRPO", 3, 0.1)
        assert pair.labels == {"lab": "x"}
        assert pair.trajectory == "t"
    reported = {pair.name: pair.reported_sparsity for pair in corpus.entries()}
    assert reported == {"t@0-10": None, "t@0-25": 0.8, "t@10-25": None}, "of the last one only"


def test_pairs_come_first_and_both_may_be_there(load):
    corpus = load(HEAD + THREE + "pairs:\n  - {name: p, base: /b, tuned: /t}\n")
    assert [entry.name for entry in corpus.entries()] == ["p", "t@0-10", "t@0-25", "t@10-25"]
    assert type(corpus.entries()[0]) is PairEntry


def test_a_pair_is_no_step_of_a_trajectory(refused):
    pair = "version: 1\npairs:\n  - name: p\n    base: b\n    tuned: t\n    trajectory: x\n"
    refused(
        pair,
        "6: unknown key 'trajectory': known are name, base, tuned, family, algorithm, stage, "
        "dataset, seed, on_policy, kl, learning_rate, source, reported_sparsity, labels, steps "
        "(free labels go under `labels:`)",
    )


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ("      - {model: a}\n", "a trajectory has at least 2 checkpoints: its start and one more"),
        ("      []\n", "a trajectory has at least 2 checkpoints: its start and one more"),
        (
            "      - {model: a}\n      - {model: b}\n",
            "b has no step: write {model: ..., step: NUMBER}",
        ),
        (
            "      - {model: a}\n      - {model: b, step: 5}\n      - {model: c, step: 5}\n",
            "c has step 5, but the one before it 5: write checkpoints in the order of their "
            "steps, each step once",
        ),
        (
            "      - {model: a, step: 7}\n      - {model: b, step: 5}\n",
            "b has step 5, but the one before it 7: write checkpoints in the order of their "
            "steps, each step once",
        ),
        ("      3\n", "write a list"),
    ],
)
def test_wrong_checkpoints(refused, checkpoints, message):
    refused(HEAD + checkpoints, f"4: trajectories.0.checkpoints: {message}")


def test_wrong_entries_are_found_on_their_lines(refused):
    refused(
        HEAD + "      - {model: a}\n      - {step: 4}\n      - {model: '', stpe: -1}\n",
        "6: key 'model' is missing",
        "7: trajectories.0.checkpoints.2.model: write at least one character",
        "7: unknown key 'stpe': did you mean 'step'?",
    )
    refused(
        HEAD + THREE + "    spanz: [1]\n",
        "8: unknown key 'spanz': did you mean 'spans'? (free labels go under `labels:`)",
    )
    refused(
        "version: 1\ntrajectories:\n  - checkpoints: [{model: a}, {model: b, step: -2}]\n",
        "3: key 'name' is missing",
        "3: trajectories.0.checkpoints.1.step: Input should be greater than or equal to 0",
    )


@pytest.mark.parametrize(
    ("spans", "line"),
    [
        ("[3]", "3: trajectories.0: span 3 takes 4 checkpoints, but there are 3"),
        ("[1, 2, 1]", "3: trajectories.0: spans [1, 2, 1] has one twice: remove one"),
        ("[0]", "8: trajectories.0.spans.0: Input should be greater than or equal to 1"),
        ("1", "8: trajectories.0.spans: write a list"),
    ],
)
def test_wrong_spans(refused, spans, line):
    refused(f"{HEAD}{THREE}    spans: {spans}\n", line)


def test_duplicate_names(refused):
    again = THREE.replace("      ", "        ")
    refused(
        HEAD + THREE + f"  - name: t\n    checkpoints:\n{again}",
        "8: trajectory name 't' is already on line 3: rename one",
    )
    refused(
        HEAD + THREE + "pairs:\n  - {name: t@10-25, base: b, tuned: t}\n",
        "1: pair name 't@10-25' is used twice: give each pair its own",
    )
    with pytest.raises(ValidationError, match="trajectory name 't' is used twice"):
        Corpus(version=1, trajectories=(trajectory(2), trajectory(3)))


def test_the_same_name_for_a_pair_and_a_trajectory(load):
    corpus = load(HEAD + THREE + "pairs:\n  - {name: t, base: b, tuned: t}\n")
    assert len(corpus.entries()) == 4


def test_columns_of_pairs():
    assert [name for name in LABELS if name not in PairEntry.model_fields] == [
        "trajectory",
        "step_from",
        "step_to",
    ]
    assert issubclass(TrajectoryPair, PairEntry)


def corpus_with(folder, checkpoints, extra=""):
    text = "version: 1\nsettings: {criteria: [exact]}\ntrajectories:\n  - name: t\n"
    text += "    family: f\n    checkpoints:\n"
    for step, name in checkpoints:
        text += f"      - {{model: ./{name}, step: {step}}}\n"
    path = folder / "corpus.yaml"
    path.write_text(text + extra)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    weights = small_model(width=16, vocabulary=40)
    for number, name in enumerate("abcd"):
        written = write_model(folder / name, weights)
        # files of one shape, written in one tick of the clock, would be taken for one model
        os.utime(written / "model.safetensors", (0, number))
        weights = tuned_from(weights, 100 * number)
    return folder


ABC = [(0, "a"), (10, "b"), (20, "c")]


def asked(store, text):
    with sql.connect(store) as con:
        return sql.run_sql(con, text).to_pylist()


def test_steps_reach_the_store(models, tmp_path):
    plain = "pairs:\n  - {name: p, base: ./a, tuned: ./d}\n"
    extract_directly(corpus_with(models, ABC, plain), tmp_path / "store")
    rows = asked(
        tmp_path / "store", "SELECT name, trajectory, step_from, step_to FROM pairs ORDER BY name"
    )
    assert [tuple(row.values()) for row in rows] == [
        ("p", None, None, None),
        ("t@0-10", "t", 0, 10),
        ("t@0-20", "t", 0, 20),
        ("t@10-20", "t", 10, 20),
    ]
    rows = asked(tmp_path / "store", "FROM trajectory_pairs ORDER BY step_from, step_to")
    columns = ("place_from", "place_to", "span", "from_start", "consecutive")
    assert [tuple(row[c] for c in columns) for row in rows] == [
        (0, 1, 1, True, True),
        (0, 2, 2, True, False),
        (1, 2, 1, False, True),
    ]


def names_of_runs(store):
    return [row["name"] for row in asked(store, "SELECT name FROM runs ORDER BY name")]


def test_runs_are_plain_pairs_and_the_end_of_a_trajectory(models, tmp_path):
    other = "pairs:\n  - {name: p, base: ./a, tuned: ./d}\n"
    extract_directly(corpus_with(models, ABC, other), tmp_path / "store")
    assert names_of_runs(tmp_path / "store") == ["p", "t@0-20"]
    families = asked(tmp_path / "store", "SELECT family, count(*) AS n FROM runs GROUP BY ALL")
    assert {row["family"]: row["n"] for row in families} == {"f": 1, None: 1}
    with sql.connect(tmp_path / "store") as con:
        rows = sql.run_query(con, "sparsity_by_family").to_pylist()
    assert {row["family"]: row["pairs"] for row in rows} == {"f": 1, None: 1}


def test_a_plain_pair_of_the_same_models_is_the_run(models, tmp_path):
    same = "pairs:\n  - {name: p, base: ./a, tuned: ./c}\n"
    extract_directly(corpus_with(models, ABC, same), tmp_path / "store")
    assert names_of_runs(tmp_path / "store") == ["p"]


def test_a_trajectory_that_went_on(models, tmp_path):
    extract_directly(corpus_with(models, ABC), tmp_path / "store")
    extract_directly(corpus_with(models, [*ABC, (30, "d")]), tmp_path / "store")
    assert names_of_runs(tmp_path / "store") == ["t@0-30"]


def test_a_new_step_is_a_new_label(models, tmp_path):
    extract_directly(corpus_with(models, ABC), tmp_path / "store")
    renamed = corpus_with(models, ABC).read_text().replace("family: f", "family: g")
    (models / "corpus.yaml").write_text(renamed)
    pairs = plan_of(models / "corpus.yaml").pairs
    assert [relabel_pair(pair, str(tmp_path / "store")) for pair in pairs] == [True] * 3
    assert [relabel_pair(pair, str(tmp_path / "store")) for pair in pairs] == [False] * 3
    assert {r["family"] for r in asked(tmp_path / "store", "FROM pairs")} == {"g"}
