"""PRIME: process reinforcement through implicit rewards (arXiv:2502.01456).

A process reward model says how much each token helped, though nobody ever labels tokens: it is a
language model, a copy of the base, trained online to tell right answers from wrong ones by the sum
of its log-ratios to the base. Each log-ratio is then the reward of its token.

As in the paper, the process reward model learns from a rollout before it judges it, its learning
rate is twice the policy's, and both kinds of reward have their own leave-one-out baseline. Left
out is the filter for prompts whose samples are all right or all wrong.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlsparse_ray.experiments.estimators import implicit_rewards, prime_advantages
from rlsparse_ray.experiments.optimizers import make_optimizer, update
from rlsparse_ray.experiments.rollouts import Rollout, answer_logps
from rlsparse_ray.experiments.runs import Run

DISCOUNT = 1.0
BETA = 0.05
RATE_FACTOR = 2.0


class ProcessRewardModel:
    """The judge of PRIME. The frozen base is the reference of its rewards and of the KL penalty."""

    def __init__(self, run: Run, model: Any, reference: Any) -> None:
        """Train `model`, a copy of the base, in the run's precision; all its weights, always."""
        self.run = run
        self.model = model.train()
        self.reference = reference
        own = replace(run, learning_rate=RATE_FACTOR * run.learning_rate, optimizer="adamw")
        self.optimizer = make_optimizer(own, model, None)

    def judge(self, policy: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Train on the outcomes; then give log-probabilities and advantages, [B, T]."""
        with torch.no_grad():
            reference = answer_logps(self.reference, rollout)
            logps = answer_logps(policy, rollout)
        self._learn(rollout, reference)
        with torch.no_grad():
            process = implicit_rewards(answer_logps(self.model, rollout), reference, BETA)
        process -= self.run.kl * (logps - reference)
        group = self.run.generations
        return logps, prime_advantages(process, rollout.rewards, rollout.answer, group, DISCOUNT)

    def _learn(self, rollout: Rollout, reference: Tensor) -> None:
        """Cross-entropy of the outcome under the model's logit, the sum of an answer's rewards."""
        logits = implicit_rewards(answer_logps(self.model, rollout), reference, BETA).sum(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, rollout.rewards)
        update(self.run, self.model.parameters(), self.optimizer, loss)
