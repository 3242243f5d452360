"""Are a variant's replies right? Each is compared with the baseline's for the same prompt."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants import Workload, variant_named
from chatbot.vocabulary import EOS, PAD, SOS

TIE_TOLERANCE = 1e-4  # logits: fp32 sums taken in another order differ by about 1e-6 of values near 10
LEAST_IDENTICAL = 0.5  # share of replies; an approximate variant below it is another chatbot
LEAST_COMPARED = 500  # prompts that an approximate variant is judged on
LEAST_TAILS = 3  # replies that must go on otherwise after their end before a variant is said to stop there


def first_difference(reply: Tensor, baseline: Tensor) -> int | None:
    """The first step at which two replies (S,) differ, up to and including the baseline's first EOS; None: the same."""
    ends = (baseline == EOS).nonzero()
    end = int(ends[0]) + 1 if len(ends) else len(baseline)
    differing = (reply[:end] != baseline[:end]).nonzero()
    return int(differing[0]) if len(differing) else None


@dataclass(frozen=True)
class ReplyCheck:
    """The result of comparing a variant's timed replies with the baseline's."""

    replies: int
    identical: int
    fault: str | None  # why the variant is invalid
    differing: tuple[int, ...] = ()  # the first step that differs, of each reply that is not identical
    tokens: int = 0  # written in all replies: what the workload asks, or up to and including EOS where it stops there


@dataclass(frozen=True)
class ReplyComparison:
    """The result of comparing a variant's untimed replies to distinct prompts with the baseline's."""

    replies: int
    identical: int
    differing: tuple[int, ...]  # the first step that differs, of each reply that is not identical


def check_replies(
    name: str,
    replies: list[Tensor],
    baselines: list[Tensor],
    prompts: list[Tensor],
    judge: Chatbot,
    workload: Workload,
) -> ReplyCheck:
    """Compares every reply with the baseline's for the same prompts: lists of (B, S), (B, S) and (B, T) tensors.

    B may differ from pair to pair.

    An exact variant may differ only at a tie: where the baseline's networks (``judge``, on the workload's device)
    give its token and theirs logits within ``TIE_TOLERANCE``. Either must go on after its end as the baseline does.
    """
    identical = tokens_written = 0
    differing: list[int] = []
    exact = variant_named(name).exact
    tails: list[tuple[Tensor, Tensor]] = []
    for tokens, expected, batch in zip(replies, baselines, prompts, strict=True):
        if not isinstance(tokens, Tensor):
            return ReplyCheck(0, 0, f"a reply is a {type(tokens).__name__} instead of a tensor of tokens")
        shape = (len(batch), workload.reply_tokens)
        if tuple(tokens.shape) != shape:
            return ReplyCheck(0, 0, f"a reply has shape {tuple(tokens.shape)} instead of {shape}")
        if tokens.device.type != workload.device:
            return ReplyCheck(0, 0, f"its replies are on {tokens.device.type}, not on {workload.device}")
        if workload.stop_at_eos and (fault := _goes_on(tokens)) is not None:
            return ReplyCheck(0, 0, fault)
        tokens_written += int(written(tokens).sum()) if workload.stop_at_eos else tokens.numel()
        if torch.equal(tokens, expected):
            identical += len(batch)
            continue
        for row in range(len(batch)):
            step = first_difference(tokens[row].cpu(), expected[row].cpu())
            if step is None:
                identical += 1
                tails.append((_tail(tokens[row], expected[row]), _tail(expected[row], expected[row])))
            elif exact and not _is_tie(judge, batch[row], expected[row], int(tokens[row, step]), step):
                return ReplyCheck(0, 0, f"it promises the baseline's replies but one differs at step {step + 1}")
            else:
                differing.append(step)
    count = sum(map(len, prompts))
    fault = None if workload.stop_at_eos else _early_stop(tails, count)
    if count and identical / count < LEAST_IDENTICAL:
        fault = f"only {identical} of its {count} replies are the baseline's"
    return ReplyCheck(count, identical, fault, tuple(differing), tokens_written)


def compare_replies(tokens: NDArray[np.int64], baseline: NDArray[np.int64]) -> ReplyComparison:
    """Compares replies (N, S) to N distinct prompts with the baseline's."""
    pairs = zip(torch.from_numpy(tokens), torch.from_numpy(baseline), strict=True)
    steps = [step for reply, expected in pairs if (step := first_difference(reply, expected)) is not None]
    return ReplyComparison(len(baseline), len(baseline) - len(steps), tuple(steps))


def written(tokens: Tensor) -> Tensor:
    """(B,): the number of tokens (B, S) up to and including the first EOS; all of them if there is none."""
    ends = tokens == EOS
    return tokens.size(1) - (ends.cumsum(1) - ends.long() > 0).sum(1)


def _goes_on(tokens: Tensor) -> str | None:
    """A sentence if a reply (B, S) has words after its EOS, although the workload stops there."""
    ends = tokens == EOS
    behind = ends.cumsum(1) - ends.long() > 0
    if bool((behind & (tokens != PAD) & (tokens != EOS)).any()):
        return "it continues after the end of a reply, where the workload stops"
    return None


def _tail(reply: Tensor, baseline: Tensor) -> Tensor:
    """The tokens of a reply (S,) after the baseline's first EOS."""
    ends = (baseline == EOS).nonzero()
    return reply[int(ends[0]) + 1 :].cpu() if len(ends) else reply[:0].cpu()


def _early_stop(tails: list[tuple[Tensor, Tensor]], replies: int) -> str | None:
    """A sentence if a variant stops at EOS and pads, while the workload demands every step of the others.

    Recognised by tails of two words or more that differ from the baseline's: a variant that has stopped repeats one
    token in each of them and never produces the baseline's words.
    """
    long = [(tail, expected) for tail, expected in tails if len(tail) > 1]
    if any(torch.equal(tail, expected) and bool((tail != tail[0]).any()) for tail, expected in long):
        return None
    other = [tail for tail, expected in long if not torch.equal(tail, expected)]
    if len(other) < LEAST_TAILS or any(bool((tail != tail[0]).any()) for tail in other):
        return None
    return f"it stops at the end of the sentence: {len(other)} of {replies} replies are filled up, not computed"


def _is_tie(judge: Chatbot, prompt: Tensor, baseline: Tensor, token: int, step: int) -> bool:
    """Tells whether only numerical noise separates ``token`` from the choice of the baseline's logits at ``step``."""
    if not 0 <= token < judge.config.vocabulary:
        return False
    length = torch.tensor([prompt.numel()])
    outputs, hidden = judge.encoder(prompt.unsqueeze(1), length)
    blocked = (prompt == PAD).unsqueeze(1)
    first = torch.full((1, 1), SOS, device=prompt.device)
    tokens = torch.cat((first, baseline[:step].unsqueeze(1)))
    logits = judge.decoder.teacher_forced(tokens, hidden[: judge.config.decoder_layers], outputs, blocked)[-1, 0]
    return bool((logits[int(baseline[step])] - logits[token]).abs() <= TIE_TOLERANCE)
