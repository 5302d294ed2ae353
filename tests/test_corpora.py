"""The corpora that ship: they load, names are unique, numbers are the published ones."""

import re
from collections import Counter

import pytest

from rlsparse_ray.corpus import find_corpus, load_corpus, packaged_corpora
from rlsparse_ray.errors import CorpusError

CORPORA = {name: load_corpus(path) for name, path in packaged_corpora().items()}
PAIRS = {pair.name: pair for corpus in CORPORA.values() for pair in corpus.entries()}
HUB = re.compile(r"hf://[\w.-]+/[\w.-]+(@[0-9a-f]{8}|@[0-9a-f]{40})?")

# tuned model: sparsity in percent at 1e-8, 1e-7, 1e-6, 1e-5 (arXiv 2505.11711)
SWEEP = {
    "allenai/Llama-3.1-Tulu-3-8B-DPO": (76.04, 76.04, 76.14, 81.38),
    "allenai/Llama-3.1-Tulu-3-70B-DPO": (87.58, 87.59, 87.79, 95.24),
    "deepseek-ai/deepseek-math-7b-rl": (68.14, 68.14, 68.14, 68.53),
    "kaist-ai/mistral-orpo-beta": (73.16, 73.18, 73.23, 76.94),
    "kaist-ai/mistral-orpo-alpha": (50.40, 50.41, 50.48, 53.23),
    "openbmb/Eurus-7b-kto": (71.78, 71.79, 73.14, 95.98),
    "peiyi9979/math-shepherd-mistral-7b-rl": (52.45, 52.47, 53.21, 80.77),
    "PRIME-RL/Eurus-2-7B-PRIME": (75.26, 75.27, 75.36, 77.04),
    "princeton-nlp/Llama-3-Instruct-8B-SimPO": (71.00, 71.00, 71.10, 76.42),
    "princeton-nlp/Llama-3-Base-8B-SFT-SimPO": (79.47, 79.47, 79.60, 86.52),
    "princeton-nlp/Mistral-7B-Instruct-SimPO": (59.37, 59.40, 60.31, 89.07),
    "princeton-nlp/Mistral-7B-Base-SFT-SimPO": (62.58, 62.60, 63.56, 91.44),
}

# name: sparsity in percent, bit by bit (arXiv 2511.08567)
FOLLOW_UP = {
    "r1-distill-qwen-1.5b": 2.8,
    "deepscaler-1.5b": 53.8,
    "deepcoder-1.5b": 45.5,
    "prorl-1.5b-v1": 38.4,
    "prorl-1.5b-v2": 36.3,
    "klear-reasoner-8b-sft": 0.6,
    "klear-reasoner-8b": 69.5,
    "polaris-4b": 79.3,
    "polaris-7b": 61.7,
    "unireason-qwen3-14b-think-sft": 18.8,
    "unireason-qwen3-14b-rl": 68.3,
}


def test_what_ships():
    assert list(CORPORA) == ["follow_up", "others", "paper", "reasoning", "simpo", "tulu3"]
    assert all(corpus.settings.criteria == ("exact", "abs:1e-5") for corpus in CORPORA.values())


def test_names_and_models_are_unique_over_all_files():
    entries = [pair for corpus in CORPORA.values() for pair in corpus.entries()]
    for things in ([p.name for p in entries], [(p.base, p.tuned) for p in entries]):
        assert [thing for thing, times in Counter(things).items() if times > 1] == []


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_every_pair_is_complete(pair):
    assert HUB.fullmatch(pair.base)
    assert HUB.fullmatch(pair.tuned)
    assert pair.base != pair.tuned
    assert pair.family
    assert pair.stage in ("SFT", "preference", "RL")
    assert pair.algorithm or pair.stage == "RL"
    if pair.reported_sparsity is not None:
        assert pair.source
        assert pair.labels["reported_criterion"] in ("abs:1e-5", "rel:1e-3")
    assert all(0 < float(v) < 1 for k, v in pair.labels.items() if k.startswith("reported_spars"))


def test_one_family_is_in_one_spelling():
    families = {pair.family for pair in PAIRS.values()}
    assert len({family.lower() for family in families}) == len(families)


def test_the_sweep_of_the_paper():
    tolerances = ("1e-8", "1e-7", "1e-6")
    swept = {
        pair.tuned.removeprefix("hf://"): pair
        for pair in CORPORA["paper"].pairs
        if "reported_sparsity_1e-8" in pair.labels
    }
    assert swept.keys() == SWEEP.keys()
    for model, pair in swept.items():
        found = [float(pair.labels[f"reported_sparsity_{t}"]) for t in tolerances]
        assert [*found, pair.reported_sparsity] == pytest.approx([x / 100 for x in SWEEP[model]])
        assert pair.source == "arXiv 2505.11711"
        assert pair.labels["reported_criterion"] == "abs:1e-5"


def test_the_other_figures_of_the_paper():
    reported = {pair.name: pair.reported_sparsity for pair in CORPORA["paper"].pairs}
    assert reported["deepseek-r1-zero"] == 0.86
    assert reported["llama-3-base-8b-kto"] == 0.812
    assert reported["tulu-3-8b-sft"] == 0.068
    assert reported["tulu-3-70b-sft"] == 0.153
    assert reported["eurus-2-7b-sft"] is None


def test_the_figures_of_the_follow_up():
    pairs = CORPORA["follow_up"].pairs
    reported = {p.name: p.reported_sparsity for p in pairs if p.reported_sparsity is not None}
    assert reported == pytest.approx({name: x / 100 for name, x in FOLLOW_UP.items()})
    assert {p.labels["reported_criterion"] for p in pairs if p.name in reported} == {"rel:1e-3"}


def test_a_corpus_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_corpus("paper") == CORPORA["paper"]
    (tmp_path / "paper").write_text("version: 1\npairs:\n  - {name: p, base: /b, tuned: /t}\n")
    assert [pair.name for pair in load_corpus("paper").pairs] == ["p"], "a file goes first"


def test_names_that_mean_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=r"papr: no such file, .* did you mean 'paper'\?"):
        find_corpus("papr")
    with pytest.raises(CorpusError, match=r"zzz: .*: those that ship: follow_up, others, paper, "):
        find_corpus("zzz")
    for path in ("paper.yaml", "./paper", tmp_path / "paper"):
        with pytest.raises(CorpusError, match="cannot be read: No such file"):
            load_corpus(path)


def test_plan_by_name(rlsparse, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = rlsparse("plan", "others")
    assert answer.code == 1
    for pair in CORPORA["others"].pairs:
        assert f"failed: {pair.name}: hf://" in answer.err
    answer = rlsparse("plan", "othrs")
    assert answer.code == 2
    assert "did you mean 'others'?" in answer.err


def test_the_wheel_takes_the_files(pytestconfig):
    """The build takes all of the package but what git ignores."""
    root = pytestconfig.rootpath
    assert 'packages = ["rlsparse_ray"]' in (root / "pyproject.toml").read_text()
    ignored = (root / ".gitignore").read_text().split()
    assert not any("yaml" in pattern or "corpora" in pattern for pattern in ignored)
