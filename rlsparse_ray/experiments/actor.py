"""The loop that PPO and PRIME share: sample, judge, update the policy.

TRL 1.16 has neither of them. What tells the two apart is the judge: it turns a rollout into
advantages, and learns from it.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from transformers import set_seed

from rlsparse_ray.experiments.assignment import Assignment
from rlsparse_ray.experiments.estimators import policy_loss
from rlsparse_ray.experiments.optimizers import make_optimizer, update
from rlsparse_ray.experiments.ppo import Critic
from rlsparse_ray.experiments.prime import ProcessRewardModel
from rlsparse_ray.experiments.rollouts import Rollout, answer_logps, prompt_batches, sample
from rlsparse_ray.experiments.runs import CLIPPED_RATIO


class Judge(Protocol):
    """What an algorithm adds to the loop."""

    def judge(self, policy: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Learn from a rollout of the policy as it is, and say what its tokens were worth.

        Returns:
            (log-probabilities, advantages) of the sampled tokens, [B, T], without gradient.
        """


def train(given: Assignment) -> Any:
    """Train with PPO or PRIME and give the model."""
    run = given.run
    set_seed(run.seed)
    tokenizer = given.load_tokenizer()
    policy = given.load_base()
    judge = _make_judge(given, policy)
    optimizer = make_optimizer(run, policy, given.subnetwork)
    prompts = [row["prompt"] for row in given.rows()]
    batches = prompt_batches(prompts, run.batch // run.generations, run.seed)
    clip = CLIPPED_RATIO if run.clipping else None
    for step in range(run.steps):
        if step % run.updates_per_sample == 0:
            rollout = sample(policy.eval(), tokenizer, given.task, next(batches), run.generations)
            sampled_logps, advantages = judge.judge(policy, rollout)
        logps = answer_logps(policy.train(), rollout)
        loss = policy_loss(logps, sampled_logps, advantages, rollout.answer, clip)
        update(run, policy.parameters(), optimizer, loss)
        given.after_step(step + 1, policy)
    return policy


def _make_judge(given: Assignment, policy: Any) -> Judge:
    needed = given.run.algorithm == "PRIME" or given.run.kl
    reference = given.load_base().requires_grad_(False) if needed else None
    if given.run.algorithm == "PRIME":
        return ProcessRewardModel(given.run, given.load_base(), reference)
    return Critic(given.run, policy.config.hidden_size, reference, given.device)
