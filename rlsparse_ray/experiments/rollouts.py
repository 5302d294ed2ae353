"""Samples of a policy with their rewards, and the log-probabilities of what was sampled."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlsparse_ray.experiments.tasks import Task, Text


@dataclass(frozen=True)
class Rollout:
    """B sequences: prompts of P tokens, padded on the left, and answers of T, padded on the right.

    The samples of one prompt stand beside one another.
    """

    ids: Tensor
    """int64 [B, P + T]."""
    attention: Tensor
    """int64 [B, P + T]: 0 on padding."""
    answer: Tensor
    """bool [B, T]: True on the answer and its end token."""
    rewards: Tensor
    """float32 [B]: the outcome of each sample, 1 for right and 0 for wrong."""
    texts: list[str]
    """The answers without special tokens."""

    @property
    def last(self) -> Tensor:
        """Bool [B, T]: True on the last token of each answer."""
        following = torch.nn.functional.pad(self.answer[:, 1:], (0, 1))
        return self.answer & ~following


def prompt_batches(prompts: Sequence[Text], size: int, seed: int) -> Iterator[list[Text]]:
    """Yield `size` prompts at a time for ever, every prompt once before any comes again.

    A batch that begins near the end of one shuffled round is filled up from the next.
    """
    rng = random.Random(seed)
    pending: list[Text] = []
    while True:
        while len(pending) < size:
            pending += rng.sample(prompts, len(prompts))
        yield pending[:size]
        pending = pending[size:]


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, task: Task, prompts: Sequence[Text], generations: int
) -> Rollout:
    """Sample `generations` answers of each prompt at temperature 1 and reward them.

    Draws from torch's global generator.
    """
    repeated = [prompt for prompt in prompts for _ in range(generations)]
    inputs = _encode(tokenizer, repeated).to(model.device)
    ids = model.generate(
        **inputs,
        max_new_tokens=task.max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    length = inputs["input_ids"].shape[1]
    answer = _up_to_end(ids[:, length:], model.generation_config.eos_token_id)
    texts = tokenizer.batch_decode(
        ids[:, length:].masked_fill(~answer, tokenizer.pad_token_id), skip_special_tokens=True
    )
    rewards = task.reward(prompts=repeated, completions=texts)
    return Rollout(
        ids=ids,
        attention=torch.cat([inputs["attention_mask"], answer.long()], 1),
        answer=answer,
        rewards=torch.tensor(rewards, device=ids.device),
        texts=texts,
    )


def _encode(tokenizer: Any, prompts: Sequence[Text]) -> Any:
    if isinstance(prompts[0], str):
        return tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    return tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )


def _up_to_end(ids: Tensor, end: int | list[int]) -> Tensor:
    """True up to the first end token, that one included; all of a row that has none."""
    ends = torch.isin(ids, torch.as_tensor(end, device=ids.device))
    return ends.cumsum(1) - ends.long() == 0


def answer_logps(model: Any, rollout: Rollout) -> Tensor:
    """Log-probabilities of the sampled tokens under a model: float32 [B, T], 0 on padding."""
    return _logps(_forward(model, rollout), rollout)


def answer_logps_and_states(model: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """As `answer_logps`, with the last hidden state before each token: float32 [B, T, width]."""
    outputs = _forward(model, rollout, output_hidden_states=True)
    width = rollout.answer.shape[1]
    return _logps(outputs, rollout), outputs.hidden_states[-1][:, -width - 1 : -1].float()


def _forward(model: Any, rollout: Rollout, **wanted: bool) -> Any:
    return model(
        input_ids=rollout.ids,
        attention_mask=rollout.attention,
        position_ids=(rollout.attention.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=rollout.answer.shape[1] + 1,
        use_cache=False,
        **wanted,
    )


def _logps(outputs: Any, rollout: Rollout) -> Tensor:
    width = rollout.answer.shape[1]
    every = outputs.logits[:, :-1].float().log_softmax(-1)
    chosen: Tensor = every.gather(-1, rollout.ids[:, -width:, None])[..., 0]
    return chosen.masked_fill(~rollout.answer, 0.0)
