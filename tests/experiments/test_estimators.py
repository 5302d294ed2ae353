"""The formulas against their definitions, one token at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_ray.experiments import estimators as e

ANY = st.integers(1, 6)


@st.composite
def tokens(draw, fields=1, samples=ANY):
    """(answer [B, T], then `fields` token values [B, T] that are 0 where the answer has ended)."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=(n := draw(samples)), max_size=n))
    width = max(lengths)
    answer = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    rng = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    return answer, *(torch.randn(answer.shape, generator=rng) * answer for _ in range(fields))


FRACTION = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def close(made, expected):
    assert torch.allclose(made, torch.as_tensor(expected, dtype=made.dtype), atol=1e-5)


@given(tokens(2), FRACTION, FRACTION)
@settings(max_examples=50, deadline=None)
def test_gae_is_the_sum_of_its_definition(drawn, discount, decay):
    answer, rewards, values = drawn
    expected = torch.zeros_like(rewards)
    for i, t in answer.nonzero().tolist():
        length = int(answer[i].sum())
        for s in range(t, length):
            after = values[i, s + 1].item() if s + 1 < length else 0.0
            delta = rewards[i, s].item() + discount * after - values[i, s].item()
            expected[i, t] += (discount * decay) ** (s - t) * delta
    close(e.gae(rewards, values, answer, discount, decay) * answer, expected)


def test_gae_without_decay_is_one_step_and_with_all_of_it_the_return_less_the_value():
    answer = torch.ones(1, 3, dtype=torch.bool)
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.75]])
    close(e.gae(rewards, values, answer, 1.0, 0.0), [[-0.25, 0.5, 0.25]])
    close(e.gae(rewards, values, answer, 1.0, 1.0), [[0.5, 0.75, 0.25]])


def test_the_mean_of_others_leaves_out_oneself_and_other_prompts():
    close(
        e.mean_of_others(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 9.0]), 3),
        [4, 3.5, 1.5, 4.5, 4.5, 0],
    )


def test_implicit_rewards_are_log_ratios_and_sum_to_the_logit_of_the_answer():
    tuned, base = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -1.0]])
    close(e.implicit_rewards(tuned, base, 0.5), [[1.0, -0.5]])


@given(tokens(1, st.sampled_from([2, 4, 6])), FRACTION)
@settings(max_examples=50, deadline=None)
def test_the_advantages_of_prime_are_equation_5(drawn, discount):
    answer, process = drawn
    outcomes = torch.arange(len(process)).float() % 2
    lengths = answer.sum(1).tolist()
    expected = torch.zeros_like(process)
    for i, t in answer.nonzero().tolist():
        j = i ^ 1  # the other sample of the prompt
        baseline = process[j].sum().item() / lengths[j]
        expected[i, t] = (outcomes[i] - outcomes[j]).item() + sum(
            discount ** (s - t) * (process[i, s].item() - baseline) for s in range(t, lengths[i])
        )
    close(e.prime_advantages(process, outcomes, answer, 2, discount), expected)


@given(tokens(1))
@settings(max_examples=30, deadline=None)
def test_whitened_values_have_mean_0_and_deviation_1_over_answers_alone(drawn):
    answer, values = drawn
    whitened = e.whiten(values, answer)
    assert not whitened[~answer].any()
    close(whitened[answer].mean(), 0.0)
    if len(values[answer]) > 1:
        close(whitened[answer].std(correction=0), 1.0)


@given(tokens(3), st.sampled_from([None, 0.2]))
@settings(max_examples=50, deadline=None)
def test_the_policy_loss_is_the_clipped_objective(drawn, clip):
    answer, logps, sampled, advantages = drawn
    gains = []
    for i, t in answer.nonzero().tolist():
        ratio, advantage = math.exp(logps[i, t] - sampled[i, t]), advantages[i, t].item()
        held = ratio if clip is None else min(max(ratio, 1 - clip), 1 + clip)
        gains.append(min(ratio * advantage, held * advantage))
    made = e.policy_loss(logps, sampled, advantages, answer, clip)
    close(made, -sum(gains) / len(gains))


def test_a_clipped_ratio_has_no_gradient_where_it_would_go_on():
    answer = torch.ones(1, 2, dtype=torch.bool)
    logps = torch.tensor([[1.0, -1.0]], requires_grad=True)
    e.policy_loss(logps, torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]), answer, 0.2).backward()
    assert logps.grad[0, 0] == 0
    assert logps.grad[0, 1] == pytest.approx(-math.exp(-1) / 2)


@given(tokens(3), st.sampled_from([None, 0.2]))
@settings(max_examples=50, deadline=None)
def test_the_value_loss_is_the_larger_error(drawn, clip):
    answer, values, old, returns = drawn
    errors = []
    for i, t in answer.nonzero().tolist():
        v, o, r = (x[i, t].item() for x in (values, old, returns))
        held = v if clip is None else min(max(v, o - clip), o + clip)
        errors.append(0.5 * max((v - r) ** 2, (held - r) ** 2))
    close(e.value_loss(values, old, returns, answer, clip), sum(errors) / len(errors))
