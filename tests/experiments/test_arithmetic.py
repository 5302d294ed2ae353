import random

import pytest

from rlsparse_ray.demo import models
from rlsparse_ray.experiments import arithmetic


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

    tokenizer = AutoTokenizer.from_pretrained(models.BASES / "tiny-a")
    model = AutoModelForCausalLM.from_pretrained(
        models.BASES / "tiny-a", dtype=torch.float32
    ).eval()
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
