from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from rlsparse_ray.demo import models
from rlsparse_ray.experiments import arithmetic
from rlsparse_ray.experiments.checkpoints import load_model, load_tokenizer
from rlsparse_ray.experiments.rollouts import (
    answer_logps,
    answer_logps_and_states,
    prompt_batches,
    sample,
)
from rlsparse_ray.experiments.tasks import ARITHMETIC

BASE: Path = models.BASES / "tiny-a"
PROMPTS = ["1+2=", "17+25=", "99+99="]  # of three lengths: two are padded


@pytest.fixture(scope="module")
def sampled():
    torch.set_num_threads(1)
    set_seed(0)
    model, tokenizer = load_model(BASE).eval(), load_tokenizer(BASE)
    return model, tokenizer, sample(model, tokenizer, ARITHMETIC, PROMPTS, 8)


def test_samples_are_rewarded_and_end_with_their_end_token(sampled):
    _, tokenizer, rollout = sampled
    prompts = [q for q in PROMPTS for _ in range(8)]
    assert rollout.rewards.tolist() == arithmetic.exact_reward(prompts, rollout.texts)
    assert 0 < rollout.rewards.mean() < 1
    width = rollout.answer.shape[1]
    for text, ids, answer, last in zip(
        rollout.texts, rollout.ids[:, -width:], rollout.answer, rollout.last, strict=True
    ):
        tokens = ids[answer]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in tokens[:-1]
        assert last.nonzero().item() == len(tokens) - 1


def test_log_probabilities_are_those_of_each_sequence_alone(sampled):
    """Against the definition: one sequence at a time, without padding."""
    model, tokenizer, rollout = sampled
    with torch.no_grad():
        together, states = answer_logps_and_states(model, rollout)
        assert torch.equal(together, answer_logps(model, rollout))
    prompts = [q for q in PROMPTS for _ in range(8)]
    width = rollout.answer.shape[1]
    for i, prompt in enumerate(prompts):
        asked = tokenizer(prompt)["input_ids"]
        answered = rollout.ids[i, -width:][rollout.answer[i]].tolist()
        with torch.no_grad():
            out = model(torch.tensor([asked + answered]), output_hidden_states=True)
        before = slice(len(asked) - 1, -1)
        every = out.logits[0, before].log_softmax(-1)
        expected = every[range(len(answered)), answered]
        assert torch.allclose(together[i, : len(answered)], expected, atol=1e-4)
        assert not together[i, len(answered) :].any()
        expected = out.hidden_states[-1][0, before]
        assert torch.allclose(states[i, : len(answered)], expected, atol=1e-3)


def test_every_prompt_comes_once_before_any_comes_again():
    prompts = list("abcdefg")
    rounds = [p for batch in islice(prompt_batches(prompts, 3, 0), 14) for p in batch]
    for i in range(0, 42, 7):
        assert sorted(rounds[i : i + 7]) == prompts
    assert rounds[:7] != rounds[7:14]
    assert next(prompt_batches(prompts, 10, 0)) == rounds[:10]
