"""A task with answers that can be checked: sums of two operands, one character a token.

The base models learn it from sloppy text, in which half of the answers are only estimates ("~40"
for 17+25). Such a base knows the exact answer but gives it half of the time; the reward asks for
it always, so RL has a habit to change rather than arithmetic to teach.
"""

# ruff: noqa: PLC0415 - torch, transformers and trl take seconds to import: only where used

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
CHARACTERS = "0123456789+-=~"
MAX_ANSWER_TOKENS = 5  # "~200" and the end token
DATASETS = ("addition", "subtraction", "mixed")
OPERANDS = range(100)
TEST_SHARE = 0.2  # of all questions, never trained on by a base nor by a run
ESTIMATE_RATE = 0.5  # of the answers in the bases' training text
SLIP_RATE = 0.1  # of the rest: one digit off by one


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build the character tokenizer: 18 tokens, left padding, no token added to a prompt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )


def questions(dataset: str, split: str) -> list[str]:
    """List the prompts ("17+25=") of a dataset, in a fixed shuffled order.

    Args:
        dataset: "addition" (both operands 0 to 99), "subtraction" (no negative result) or "mixed".
        split: "train" or "test"; a question is in one of the two for ever.

    Raises:
        ValueError: the dataset or the split is not known.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset {dataset!r} is not one of {', '.join(DATASETS)}")
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is neither 'train' nor 'test'")
    chosen = [q for q in _shuffled() if dataset == "mixed" or ("+" in q) == (dataset == "addition")]
    cut = round(len(chosen) * TEST_SHARE)
    if dataset == "mixed":  # the union of the two, so that no test question of either is trained on
        parts = set(questions("addition", split)) | set(questions("subtraction", split))
        return [q for q in chosen if q in parts]
    return chosen[:cut] if split == "test" else chosen[cut:]


@functools.cache
def _shuffled() -> tuple[str, ...]:
    every = [f"{a}+{b}=" for a in OPERANDS for b in OPERANDS]
    every += [f"{a}-{b}=" for a in OPERANDS for b in OPERANDS if a >= b]
    random.Random(0).shuffle(every)
    return tuple(every)


def answer(question: str) -> str:
    """Give the right answer, in digits ("17+25=" -> "42").

    Raises:
        ValueError: the text is not a question of this task.
    """
    sign = "+" if "+" in question else "-"
    left, found, right = question.removesuffix("=").partition(sign)
    if not (found and left.isdigit() and right.isdigit() and question.endswith("=")):
        raise ValueError(f"{question!r} is not a question such as '17+25='")
    return str(int(left) + int(right) if sign == "+" else int(left) - int(right))


def estimate(question: str) -> str:
    """Give the answer rounded to tens, marked as an estimate ("17+25=" -> "~40")."""
    return f"~{(int(answer(question)) + 5) // 10 * 10}"


def slip(question: str, rng: random.Random) -> str:
    """Give a wrong answer: the right one with one digit off by one."""
    digits = [int(d) for d in answer(question)]
    place = rng.randrange(len(digits))
    digits[place] = (digits[place] + rng.choice((1, 9))) % 10
    return "".join(map(str, digits))


def sloppy_answer(question: str, rng: random.Random) -> str:
    """Draw an answer as the bases' training text has it: exact, an estimate or a slip."""
    if rng.random() < ESTIMATE_RATE:
        return estimate(question)
    return slip(question, rng) if rng.random() < SLIP_RATE else answer(question)


def wrong_answer(question: str, rng: random.Random) -> str:
    """Draw an answer that the reward rejects: an estimate or a slip, as often."""
    return estimate(question) if rng.random() < 0.5 else slip(question, rng)


def exact_reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Reward exactly the right digits with 1.0, all else with 0.0 (TRL's reward signature)."""
    return [float(c == answer(p)) for p, c in zip(prompts, completions, strict=True)]


def accuracy(model: Any, tokenizer: Any, prompts: Sequence[str]) -> tuple[float, float]:
    """Measure a model on questions without sampling noise.

    Teacher forcing of the right answer gives both figures exactly: the product of the token
    probabilities is the mean of `exact_reward` over infinitely many samples at temperature 1, and
    greedy decoding is right when every token of the answer is the most probable one.

    Returns:
        (sampled, greedy): mean reward under sampling at temperature 1, and under greedy decoding;
        both fractions from 0 to 1.
    """
    import torch

    ids, mask = encode_pairs(tokenizer, [(q, answer(q)) for q in prompts])
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].float()
    targets, mask = ids[:, 1:], mask[:, 1:]
    chosen = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    sampled = (chosen * mask).sum(1).exp()
    greedy = ((logits.argmax(-1) == targets) | ~mask).all(1)
    return float(sampled.mean()), float(greedy.float().mean())


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[Any, Any]:
    """Encode (question, answer) with the end token, padded on the right.

    Padding on the right needs no attention mask in a causal model: nothing before it sees it.

    Returns:
        (ids, mask): int64 and bool tensors of shape (pairs, longest); the mask is True on the
        answer and its end token.
    """
    import torch

    texts = tokenizer([q + a for q, a in pairs])["input_ids"]
    rows = [[*row, tokenizer.eos_token_id] for row in texts]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, (row, (question, _)) in enumerate(zip(rows, pairs, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, len(question) : len(row)] = True
    return ids, mask
