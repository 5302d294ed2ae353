"""What names and cards hint at: known words alone, and never an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsparse_ray.corpus import load_corpus, packaged_corpora
from rlsparse_ray.discovery.guesses import ALGORITHMS, clean, copy_kind, guess_labels, has_words
from rlsparse_ray.weights.hub_tree import Descendant

BASE = "acme/Base-7B-SFT"


def model(repository: str = "x/m", *tags: str, library: str = "transformers") -> Descendant:
    return Descendant(repository, tags, library, 0, 0, None, None, gated=False, private=False)


def algorithm(repository: str, *tags: str, base: str = BASE) -> str | None:
    return guess_labels(model(repository, *tags), base).get("guessed_algorithm")


@pytest.mark.parametrize(
    ("repository", "tags", "expected"),
    [
        ("x/m", ("trl", "dpo"), "DPO"),
        ("x/m", ("trl", "GRPO", "generated_from_trainer"), "GRPO"),
        ("x/Base-7B-SFT-DPO", (), "DPO"),  # the base's own word says nothing
        ("x/Base-7B-SFT", (), None),
        ("x/Other-SFT", ("sft",), "SFT"),
        ("x/m", ("sft", "dpo"), "DPO"),
        ("x/m-GRPO", ("sft",), "GRPO"),
        ("x/m-dpo", ("grpo",), None),  # the name says one thing, the card another
        ("x/m", ("dpo", "grpo"), None),
        ("x/m-grpo", ("dpo", "grpo"), "GRPO"),
        ("x/m-ppo", ("dpo", "grpo"), None),
        ("x/Llama-3-SimPO", (), "SimPO"),
        ("x/m_online_dpo", (), "Online-DPO"),  # and not DPO
        ("x/m-Dr.GRPO", (), "Dr-GRPO"),
        ("x/m-REINFORCE++-baseline", (), "REINFORCE++"),
        ("x/m-reinforce", (), "REINFORCE"),
        ("x/m-slic-hf", (), "SLiC-HF"),
        ("x/m-DPO2", (), None),  # another word
        ("dpo/m", (), None),  # an owner is no hint
        ("x/m", ("dataset:acme/dpo-mix", "license:ppo"), None),
        ("x/m", (), None),
    ],
)
def test_algorithms(repository, tags, expected):
    assert algorithm(repository, *tags) == expected


def test_everything_that_a_card_says():
    found = model(
        "x/Base-7B-SFT-GRPO_seed-07", "dataset:b/z", "dataset:a/y", "license:mit", "arxiv:1", "en"
    )
    assert guess_labels(found, BASE) == {
        "guessed_family": "Base-7B-SFT",
        "guessed_algorithm": "GRPO",
        "guessed_stage": "RL",
        "guessed_dataset": "a/y, b/z",
        "guessed_seed": "7",
        "card_license": "mit",
        "card_library": "transformers",
    }


def test_nothing_is_made_up():
    assert guess_labels(model(library=""), "gpt2") == {"guessed_family": "gpt2"}


@pytest.mark.parametrize(
    ("repository", "tags", "stage"),
    [
        ("x/m", ("kto",), "preference"),
        ("x/m", ("rlhf",), "RL"),
        ("x/m-RLVR", (), "RL"),
        ("x/m", ("rlhf", "dpo"), "preference"),
        ("x/m-world", (), None),
    ],
)
def test_stages(repository, tags, stage):
    assert guess_labels(model(repository, *tags), BASE).get("guessed_stage") == stage


def test_words_of_the_corpora_that_ship_are_known_or_new():
    """A guess is spelled as people spell it there."""
    pairs = [pair for path in packaged_corpora().values() for pair in load_corpus(path).entries()]
    said = {(pair.algorithm, pair.stage) for pair in pairs if pair.algorithm}
    known = {name.lower(): (name, stage) for name, stage in ALGORITHMS.items()}
    assert {name for name, _ in said} <= set(ALGORITHMS)
    assert all(known[name.lower()] == (name, stage) for name, stage in said)


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (model("x/m-GGUF"), "quantized"),
        (model("x/m", "4-bit"), "quantized"),
        (model("x/m", "AWQ"), "quantized"),
        (model("x/m", library="mlx"), "quantized"),
        (model("x/m", library="peft"), "adapter"),
        (model("x/m", "Merge"), "merge"),
        (model("x/m-merged", "lora"), None),
        (model("gguf/m", "dataset:x/awq", "merged"), None),
    ],
)
def test_copies(found, kind):
    assert copy_kind(found) == kind


def test_an_empty_phrase_is_nowhere():
    assert not has_words("a-b", "")
    assert not has_words("a-b", "...")


HINTS = st.sampled_from([*ALGORITHMS, "seed", "seed-3", "rl", "dataset:", "base_model:", "-", "++"])
TEXT = st.lists(HINTS | st.text(max_size=8), max_size=6).map("-".join)


@given(repository=TEXT, tags=st.lists(TEXT, max_size=5), library=TEXT, base=TEXT)
def test_any_card(repository, tags, library, base):
    found = model(repository, *tags, library=library)
    labels = guess_labels(found, base)
    assert labels == guess_labels(model(repository, *reversed(tags), library=library), base)
    guessed = labels.get("guessed_algorithm")
    assert guessed is None or guessed in ALGORITHMS
    if guessed:
        assert labels["guessed_stage"] == ALGORITHMS[guessed]
        # every letter and plus of it is said somewhere
        said = "".join([repository, *tags]).lower().replace("plus", "+")
        assert all(c in said for c in guessed.lower() if c.isalnum() or c == "+")
    assert labels.get("guessed_stage") in (None, "SFT", "preference", "RL")
    assert copy_kind(found) in (None, "quantized", "adapter", "merge")
    assert all(text and clean(text) == text and text.encode() for text in labels.values())


@given(st.text())
def test_clean_texts_are_one_line_and_stay(text):
    found = clean(text)
    assert len(found.splitlines()) <= 1
    assert clean(found) == found
    assert [c for c in found if c != " "] == [c for c in text if c.isprintable() and c != " "]
