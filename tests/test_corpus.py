import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlsparse_ray.corpus import Corpus, PairEntry, Settings, load_corpus
from rlsparse_ray.errors import CorpusError

PAIR = "version: 1\npairs:\n  - name: p\n    base: ./b\n    tuned: ./t\n"


def test_the_least(load, tmp_path):
    corpus = load(PAIR)
    assert corpus.settings == Settings(
        criteria=("exact", "abs:1e-5"), slice_bytes=256 * 2**20, compare_dtype=None
    )
    assert corpus.pairs == (PairEntry(name="p", base=f"{tmp_path}/b", tuned=f"{tmp_path}/t"),)


def test_everything(load):
    corpus = load("""
version: 1
settings: {criteria: [exact, abs:1e-5, "rel:1e-3"], slice_bytes: 1GiB, compare_dtype: BF16}
pairs:
  - name: 7
    base: /models/base
    tuned: s3://bucket/tuned
    family: tiny
    algorithm: GRPO
    stage: RL
    dataset: gsm8k
    seed: 0
    on_policy: yes
    kl: 0
    learning_rate: 1e-6
    steps: 1_000
    source: arXiv 2505.11711
    reported_sparsity: 0.814
    labels: {lab: a, gpus: 8, clip: 0.2, beta: 1e-2, ref: true, day: 2026-11-23, 3: x}
""")
    (pair,) = corpus.pairs
    assert corpus.settings.criteria == ("exact", "abs:1e-5", "rel:1e-3")
    assert corpus.settings.slice_bytes == 2**30
    assert (pair.name, pair.base, pair.tuned) == ("7", "/models/base", "s3://bucket/tuned")
    assert (pair.seed, pair.on_policy, pair.kl) == (0, True, 0.0)
    assert (pair.learning_rate, pair.steps, pair.reported_sparsity) == (1e-6, 1000, 0.814)
    assert pair.labels == {
        "lab": "a",
        "gpus": "8",
        "clip": "0.2",
        "beta": "1e-2",
        "ref": "true",
        "day": str(datetime.date(2026, 11, 23)),
        "3": "x",
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("512MB", 512_000_000),
        ("1GiB", 2**30),
        ("1.5 KiB", 1536),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes(load, text, size):
    assert load(f"settings: {{slice_bytes: {text}}}\n{PAIR}").settings.slice_bytes == size


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.yaml").write_text(PAIR.replace("./b", "../b").replace("./t", "~/t"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    (pair,) = load_corpus("sub/c.yaml").pairs
    assert (pair.base, pair.tuned) == (str(tmp_path / "b"), "/home/someone/t")


def test_anchors_and_merge_keys(load):
    text = """
version: 1
pairs:
  - &first {name: a, base: /b, tuned: /t1, family: f}
  - {<<: *first, name: b, tuned: /t2}
"""
    assert [(p.name, p.base, p.family) for p in load(text).pairs] == [
        ("a", "/b", "f"),
        ("b", "/b", "f"),
    ]


def test_unknown_keys(refused):
    refused(
        PAIR + "    familly: f\n    zzz: 1\nsetings: {}\nsettings:\n  criterion: [exact]\n",
        "6: unknown key 'familly': did you mean 'family'? (free labels go under `labels:`)",
        "7: unknown key 'zzz': known are name, base, tuned, family, algorithm, stage, dataset, "
        "seed, on_policy, kl, learning_rate, source, reported_sparsity, labels, steps "
        "(free labels go under `labels:`)",
        "8: unknown key 'setings': did you mean 'settings'?",
        "10: unknown key 'criterion': did you mean 'criteria'?",
    )


def test_missing_keys(refused):
    refused(
        "pairs:\n  - {name: a, base: b, tuned: c}",
        "1: key 'version' is missing: write `version: 1`",
    )
    refused("version: 1\npairs:\n  - name: a\n    base: b\n", "3: key 'tuned' is missing")
    nothing = "no pairs and no trajectories: there is nothing to compare"
    refused("version: 1\n", f"1: {nothing}")


def test_duplicate_pair_names(refused):
    again = "  - {name: q, base: b, tuned: t}\n  - name: p\n    base: b\n    tuned: t\n"
    refused(PAIR + again, "7: pair name 'p' is already on line 3: rename one")
    with pytest.raises(ValidationError, match="'p' is used twice"):
        pair = PairEntry(name="p", base="b", tuned="t")
        Corpus(version=1, pairs=(pair, pair))


def test_duplicate_yaml_keys(refused):
    refused(
        PAIR + "    name: q\nversion: 1\n",
        "6: key 'name' is already on line 3: remove one",
        "7: key 'version' is already on line 1: remove one",
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("reported_sparsity: 81.4", "a sparsity is between 0 and 1: write 0.814, not 81.4"),
        ("reported_sparsity: -1", "Input should be greater than or equal to 0"),
        ("seed: one", "Input should be a valid integer, unable to parse string as an integer"),
        ("learning_rate: .nan", "Input should be a finite number"),
        ("on_policy: maybe", "Input should be a valid boolean, unable to interpret input"),
        ("labels: [a]", "write a mapping"),
        ("labels: {x: [1]}", "label 'x' must be one text, number or truth value"),
        ("labels: {x: }", "label 'x' must be one text, number or truth value"),
    ],
)
def test_wrong_values_in_a_pair(refused, wrong, message):
    refused(f"{PAIR}    {wrong}\n", f"6: pairs.0.{wrong.split(':')[0]}: {message}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "criteria: [exact, exakt]",
            "settings.criteria.1: unknown criterion 'exakt': write exact, abs:TOLERANCE or "
            "rel:TOLERANCE (abs:1e-5)",
        ),
        (
            'criteria: [exact, "abs:1e-5", "abs:0.00001"]',
            "settings: criterion 'abs:0.00001' is there twice: remove one",
        ),
        ("criteria: []", "settings: no criteria: name one, e.g. exact, or leave the key out"),
        ("criteria: exact", "settings.criteria: write a list"),
        (
            "slice_bytes: 1XB",
            "settings.slice_bytes: '1XB' is no size: write bytes, or a unit such as 512MB or 1GiB",
        ),
        ("slice_bytes: 0", "settings.slice_bytes: Input should be greater than 0"),
        (
            "compare_dtype: bf16",
            "settings.compare_dtype: 'bf16' is no float dtype: write one of F64, F32, F16, BF16, "
            "F8_E4M3, F8_E5M2",
        ),
    ],
)
def test_wrong_settings(refused, wrong, message):
    line = 7 if message.split(":")[0] != "settings" else 6
    refused(f"{PAIR}settings:\n  {wrong}\n", f"{line}: {message}")


def test_wrong_shapes(refused):
    refused(
        "version: 2\npairs: hello",
        "1: version 2 is unknown: this rlsparse_ray reads version 1",
        "2: pairs: write a list",
    )
    refused(
        "version: 1\npairs:\n  - 3\n  - {name: '', base: b, tuned: t}",
        "3: pairs.0: write a mapping",
        "4: pairs.1.name: write at least one character",
    )
    refused("version: 1\npairs: []", "1: no pairs and no trajectories: there is nothing to compare")


def test_an_anchor_inside_itself(refused):
    refused("version: 1\npairs: &x\n  - *x\n", "2: pairs.0: write a mapping")


def test_no_mapping(refused):
    for text in ("", "# nothing\n"):
        refused(text, "1: the file is empty: write `version: 1` and `pairs:`")
    refused("- 1", "1: the file is not a mapping: write `version: 1` and `pairs:`")


def test_yaml_syntax(refused, load):
    refused(
        "version: 1\npairs: [",
        "2: not valid YAML: expected the node content, but found '<stream end>'",
    )
    with pytest.raises(
        CorpusError, match=r"corpus.yaml:2: not valid YAML: could not determine a constr"
    ):
        load("version: 1\npairs: !!python/object:os.system {}")
    with pytest.raises(CorpusError, match=r"corpus.yaml: not valid YAML: .*not allowed"):
        load("version: \x00")


def test_unreadable_files(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.yaml: cannot be read: No such file"):
        load_corpus(tmp_path / "none.yaml")
    with pytest.raises(CorpusError, match="cannot be read: Is a directory"):
        load_corpus(tmp_path)
    Path(tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(CorpusError, match=r"latin\.yaml: not UTF-8 text"):
        load_corpus(tmp_path / "latin.yaml")
