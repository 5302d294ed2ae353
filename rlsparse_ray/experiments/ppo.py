"""PPO (arXiv:1707.06347) as it is used on language models: a token is an action.

The outcome is the reward of an answer's last token; a penalty on every token keeps the policy near
the base (arXiv:2203.02155). A critic gives each token's advantage. It is a linear head on the
policy's own last hidden states, and its gradient stops there: the policy's weights move by the
policy's objective alone, which is what a study of their updates wants to see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlsparse_ray.experiments.estimators import gae, value_loss, whiten
from rlsparse_ray.experiments.optimizers import update
from rlsparse_ray.experiments.rollouts import Rollout, answer_logps, answer_logps_and_states
from rlsparse_ray.experiments.runs import CLIPPED_RATIO, Run

DISCOUNT = 1.0
DECAY = 0.95
"""Lambda of the advantage estimation."""
CRITIC_RATE = 1e-3
CRITIC_STEPS = 4
"""Steps on a rollout. The states are at hand, so a step costs nothing beside the policy's."""


class Critic:
    """The judge of PPO: a value head, and the frozen base if there is a penalty."""

    def __init__(self, run: Run, width: int, reference: Any | None, device: str) -> None:
        """Make a head that gives 0 everywhere; `width` is that of the hidden states."""
        self.run = run
        self.reference = reference
        self.head = torch.nn.Linear(width, 1).to(device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), CRITIC_RATE, weight_decay=0.0)

    def judge(self, policy: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Give log-probabilities and whitened advantages, [B, T]; then train the head."""
        with torch.no_grad():
            logps, states = answer_logps_and_states(policy, rollout)
            rewards = rollout.last * rollout.rewards[:, None] - self._penalty(logps, rollout)
            values = self._values(states, rollout)
            advantages = gae(rewards, values, rollout.answer, DISCOUNT, DECAY)
        self._learn(states, values, advantages + values, rollout)
        return logps, whiten(advantages, rollout.answer)

    def _penalty(self, logps: Tensor, rollout: Rollout) -> Tensor:
        """The sampled estimate of the KL divergence from the base, times beta."""
        if self.reference is None:
            return torch.zeros_like(logps)
        return self.run.kl * (logps - answer_logps(self.reference, rollout))

    def _values(self, states: Tensor, rollout: Rollout) -> Tensor:
        values: Tensor = self.head(states)[..., 0] * rollout.answer
        return values

    def _learn(self, states: Tensor, old: Tensor, returns: Tensor, rollout: Rollout) -> None:
        clip = CLIPPED_RATIO if self.run.clipping else None
        for _ in range(CRITIC_STEPS):
            values = self._values(states, rollout)
            loss = value_loss(values, old, returns, rollout.answer, clip)
            update(self.run, self.head.parameters(), self.optimizer, loss)
