"""The formulas of PPO and PRIME, on tensors alone.

B samples of at most T tokens; `answer` is bool [B, T], True on the tokens of an answer. Where it is
False, token values that come in are 0, and so are those that go out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, answer: Tensor, discount: float, decay: float) -> Tensor:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16).

    Args:
        rewards: [B, T], of each token.
        values: [B, T], of the state before each token; 0 after the end.
        answer: [B, T].
        discount: gamma.
        decay: lambda.

    Returns:
        [B, T] advantages: the sum over l of (gamma lambda)^l delta_(t+l) with
        delta_t = r_t + gamma V_(t+1) - V_t.
    """
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = (rewards + discount * following - values) * answer
    return discounted_returns(deltas, discount * decay)


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    """Sum of discount^(s - t) r_s over s >= t, for each t: [B, T] to [B, T]."""
    running = torch.zeros_like(rewards[:, 0])
    sums = torch.empty_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        running = rewards[:, t] + discount * running
        sums[:, t] = running
    return sums


def mean_of_others(values: Tensor, group: int) -> Tensor:
    """The mean of the other values of each group (REINFORCE leave-one-out, arXiv:2402.14740).

    Args:
        values: [B], the `group` samples of one prompt beside one another.
        group: samples of a prompt, at least 2.
    """
    groups = values.view(-1, group)
    return ((groups.sum(1, keepdim=True) - groups) / (group - 1)).flatten()


def implicit_rewards(logps: Tensor, reference_logps: Tensor, beta: float) -> Tensor:
    """Token rewards of an implicit process reward model: beta log(pi_prm / pi_ref), [B, T].

    Their sum over an answer is the model's logit that the answer is right (arXiv:2412.01981).
    """
    return beta * (logps - reference_logps)


def prime_advantages(
    process: Tensor, outcomes: Tensor, answer: Tensor, group: int, discount: float
) -> Tensor:
    """The advantages of PRIME (arXiv:2502.01456, eq. 5).

    Returns of the token rewards, each less the mean of the other samples' mean token reward, plus
    the outcome less the mean of the others' outcomes.

    Args:
        process: [B, T] token rewards.
        outcomes: [B].
        answer: [B, T].
        group: samples of a prompt, beside one another.
        discount: gamma.
    """
    baseline = mean_of_others(process.sum(1) / answer.sum(1), group)
    returns = discounted_returns((process - baseline[:, None]) * answer, discount)
    return (returns + (outcomes - mean_of_others(outcomes, group))[:, None]) * answer


def whiten(values: Tensor, answer: Tensor) -> Tensor:
    """Scale token values to mean 0 and standard deviation 1 over all answers."""
    chosen = values[answer]
    scaled = (values - chosen.mean()) / (chosen.std(correction=0) + 1e-8)
    return scaled * answer


def policy_loss(
    logps: Tensor, sampled_logps: Tensor, advantages: Tensor, answer: Tensor, clip: float | None
) -> Tensor:
    """PPO's clipped objective, negated (arXiv:1707.06347, eq. 7); the mean over all tokens.

    Args:
        logps: [B, T] under the policy that is trained.
        sampled_logps: [B, T] under the policy that sampled, without gradient.
        advantages: [B, T].
        answer: [B, T].
        clip: epsilon; None leaves the ratio as it is.
    """
    ratio = (logps - sampled_logps).exp()
    gain = ratio * advantages
    if clip is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -gain[answer].mean()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, answer: Tensor, clip: float | None
) -> Tensor:
    """Half the squared error of the values; with `clip`, the larger of two errors.

    The other error is that of the value held within `clip` of what it was when sampled
    (as in OpenAI's baselines and InstructGPT).
    """
    error = (values - returns).square()
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return 0.5 * error[answer].mean()
