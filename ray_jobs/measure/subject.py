"""The measured model, the chatbot or a user's own: copies it, asks it, and checks its answers."""

import copy
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants import (
    BASELINE,
    VARIANTS,
    Reply,
    Variant,
    Workload,
    load,
    prepared,
    prepared_module,
    variant_named,
)
from chatbot.variants.base import converting
from chatbot.variants.converted_parts import prepared_parts
from chatbot.variants.parts import Call, loop_of, recorded
from chatbot.vocabulary import EOS, FIRST_WORD
from ray_jobs.measure import contract, custom_model, replies
from ray_jobs.measure.answers import comparable, in_form, leaves, mapped
from ray_jobs.measure.replies import LEAST_IDENTICAL, ReplyCheck
from ray_jobs.measure.result import one_line
from ray_jobs.measure.rounds import MOST_WARMUP_CALLS, Prompts, Questions
from ray_jobs.measure.trial import ChatbotSource, Factory, ModelSource

load()  # in the server, before it forks: no variant's preparing is charged with its imports

OF_A_LAUNCH = 100_000  # calls at most: each launch asks others
UNASKED = 2**30  # beyond the inputs of ten thousand launches, and twice that is a seed in 32 bits
RECORDED = (0, 1, 2)  # calls whose inputs show in which forms and sizes parts are called


class Subject(Protocol):
    """The interface of a model to a launch."""

    questions: Questions

    def fresh(self) -> Callable[[Variant], Reply]:
        """Copies the weights; what it returns prepares a variant from them, or raises UnavailableError."""

    def judged(self, answers: Mapping[str, list[Any]]) -> bool:
        """Compares a round's timed answers, by variant, which need not be kept then; False: ``check`` does it."""

    def check(self, name: str, answers: list[Any], baselines: list[Any], shape: tuple[int, int]) -> ReplyCheck:
        """Compares a variant's kept answers with the baseline's; ``shape``: timed calls of a turn, rounds."""

    def compare(self, name: str, answers: list[Any], baselines: list[Any], asked: list[Any]) -> ReplyCheck:
        """Compares a variant's answers with the baseline's to the same inputs, which are the first of ``next``."""

    def unasked(self) -> tuple[Any, Tensor]:
        """The arguments of a call that nobody has asked before, in no launch and no run: as ``questions.next``."""

    def weights(self) -> str:
        """A hash of the weights."""

    def told(self, baselines: list[Any], reply: Reply) -> list[Tensor]:
        """What other sides hold their baseline against: of this one's kept answers, or asked of it anew."""

    def expected(self, told: list[Tensor], reply: Reply) -> tuple[list[Any], str | None]:
        """What ``check`` compares with where another side ``told`` it, and why this side's baseline is another."""


class ChatbotSubject:
    """The chatbot, asked prompts of a pool (N, T) one after the other."""

    def __init__(self, source: ChatbotSource, pool: NDArray[np.int64], workload: Workload) -> None:
        self.workload = workload
        self.questions: Questions = (prompts := Prompts(pool, workload))
        self.prompts = prompts
        self.chatbot = source.load()  # on the CPU: only what is measured takes memory of the GPU

    def fresh(self) -> Callable[[Variant], Reply]:
        bot = self.chatbot.copy().to(self.workload.device)
        return lambda variant: prepared(variant, bot, self.workload)

    def judged(self, answers: Mapping[str, list[Any]]) -> bool:
        """False: replies of tokens are small, and their judge must not run between rounds."""
        return False

    def check(self, name: str, answers: list[Any], baselines: list[Any], shape: tuple[int, int]) -> ReplyCheck:
        return self.compare(name, answers, baselines, self.prompts.asked(*shape))

    def compare(self, name: str, answers: list[Any], baselines: list[Any], asked: list[Any]) -> ReplyCheck:
        return replies.check_replies(name, answers, baselines, asked, self.judge, self.workload)

    def unasked(self) -> tuple[Tensor, Tensor]:
        """Prompts of words that the operating system's own random numbers choose, each ending in EOS."""
        asked, lengths = self.prompts.last()
        words = np.random.default_rng().integers(FIRST_WORD, self.chatbot.config.vocabulary, tuple(asked.shape))
        words[:, -1] = EOS
        return torch.from_numpy(words).to(asked.device), lengths

    def weights(self) -> str:
        """Of both networks."""
        return " ".join(map(contract.hash_of, (self.chatbot.encoder, self.chatbot.decoder)))

    def told(self, baselines: list[Any], reply: Reply) -> list[Tensor]:
        """Every reply, which each variant of another side is compared with."""
        return [one.cpu() for one in baselines]

    def expected(self, told: list[Tensor], reply: Reply) -> tuple[list[Any], str | None]:
        """The replies of the other side; a baseline that gives others is found like any other variant."""
        return [one.to(self.workload.device) for one in told], None

    @cached_property
    def judge(self) -> Chatbot:
        """The networks that decide whether a difference is a tie, made after all timing."""
        return self.chatbot.copy().to(self.workload.device)


class OwnQuestions:
    """The inputs of an own model's calls, made on demand, outside the timed region."""

    every = False

    def __init__(self, model: custom_model.OwnModel, workload: Workload, first: int) -> None:
        self._model, self._workload, self._first, self._next = model, workload, first, first
        self.lengths = torch.empty(0)
        self.for_warm_up = MOST_WARMUP_CALLS

    def start_rounds(self) -> None:
        self._next = self._first + self.for_warm_up

    def next(self) -> tuple[Any, Tensor]:
        """(inputs, an empty tensor)."""
        self._next += 1
        return self.last()

    def last(self) -> tuple[Any, Tensor]:
        """The last result of ``next`` again."""
        return custom_model.inputs_of(self._model, self._next - 1, self._workload), self.lengths

    def at(self, number: int) -> tuple[Any, Tensor]:
        """(inputs, an empty tensor) of that call after those of the warm-up."""
        index = self._first + self.for_warm_up + number
        return custom_model.inputs_of(self._model, index, self._workload), self.lengths

    def single(self, number: int) -> tuple[Any, Tensor]:
        """(inputs of batch 1, an empty tensor)."""
        index = self._first + self.for_warm_up + number
        return custom_model.inputs_of(self._model, index, replace(self._workload, batch=1)), self.lengths

    def room(self) -> int:
        """Up to the inputs of the next launch."""
        return OF_A_LAUNCH - self.for_warm_up

    def singles(self) -> int:
        """As ``room``: each has a number of its own."""
        return self.room()

    def most_calls(self, calls: int, variants: int) -> int:
        """All: inputs do not run out."""
        return calls

    def most_rounds(self, rounds: int, calls: int, variants: int) -> int:
        """All: inputs do not run out."""
        return rounds


@dataclass
class Tally:
    """How many of a variant's answers were compared with the baseline's, and how many were the same."""

    answers: int = 0
    same: int = 0
    fault: str | None = None


class OwnSubject:
    """A user's own model; no two launches, identified by their index ``launch``, get the same inputs."""

    def __init__(self, factory: Factory, workload: Workload, launch: int) -> None:
        self.workload, self._factory = workload, factory
        self.model = custom_model.ready(factory.load(workload), workload)
        self.questions: Questions = OwnQuestions(self.model, workload, launch * OF_A_LAUNCH)
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)

    def fresh(self) -> Callable[[Variant], Reply]:
        module = self._another().to(self.workload.device)
        example = custom_model.inputs_of(self.model, 0, self.workload)
        if not self.model.parts:
            return lambda variant: self._asked_once(variant, prepared_module, module, example)
        loop, donor = (loop_of(one, self.model.parts) for one in (module, self._another().to(self.workload.device)))
        return lambda variant: self._asked_once(variant, prepared_parts, loop, donor, self.calls)

    @cached_property
    def calls(self) -> dict[str, list[Call]]:
        """The calls of each part in the baseline's calls of ``RECORDED`` inputs."""
        loop = loop_of(self._another().to(self.workload.device), self.model.parts)
        return recorded(loop, [custom_model.inputs_of(self.model, index, self.workload) for index in RECORDED])

    def _asked_once(self, variant: Variant, prepare: Callable[..., Reply], *given: Any) -> Reply:
        """The prepared variant. One of the table that can't prepare or answer this model is unavailable, not broken."""
        if variant not in VARIANTS.values():
            return prepare(variant, *given, self.workload)
        with converting(variant.name):
            reply = prepare(variant, *given, self.workload)
            asked: Any = custom_model.inputs_of(self.model, 0, self.workload)
            reply(asked, self.questions.lengths)
        return reply

    def _another(self) -> nn.Module:
        """A copy of the module, made anew by the factory where it can't be copied."""
        try:
            return copy.deepcopy(self.model.module)
        except Exception:
            return custom_model.ready(self._factory.load(self.workload), self.workload).module

    def judged(self, answers: Mapping[str, list[Any]]) -> bool:
        """See ``Subject.judged``; an exact variant's answers must all be ``same``."""
        for name, given in answers.items():
            if BASELINE in answers and self._tallies[name].fault is None:
                self._compare(name, given, answers[BASELINE])
        return True

    def _compare(self, name: str, answers: list[Any], baselines: list[Any]) -> None:
        tally = self._tallies[name]
        for answer, expected in zip(answers, baselines, strict=True):
            tally.answers += 1
            try:
                wanted = comparable(expected)
                same = bool(self.model.same(in_form(comparable(answer), wanted), wanted))
            except Exception as error:
                tally.fault = f"its answer can't be compared with the baseline's: {one_line(error)}"
                return
            if variant_named(name).exact and not same:
                whose = "its own" if name == BASELINE else "the baseline's"
                promise = f"it promises the baseline's answers but same(answer, {whose}) is False"
                tally.fault = f"{promise} at timed call {tally.answers} of a launch"
                return
            tally.same += same

    def check(self, name: str, answers: list[Any], baselines: list[Any], shape: tuple[int, int]) -> ReplyCheck:
        """What ``judged`` found, which left nothing to compare."""
        tally = self._tallies[name]
        if tally.fault is not None:
            return ReplyCheck(0, 0, tally.fault)
        few = tally.answers and tally.same / tally.answers < LEAST_IDENTICAL
        fault = f"only {tally.same} of its {tally.answers} answers are the baseline's" if few else None
        return ReplyCheck(tally.answers, tally.same, fault)

    def compare(self, name: str, answers: list[Any], baselines: list[Any], asked: list[Any]) -> ReplyCheck:
        self._compare(name, answers, baselines)
        return self.check(name, answers, baselines, (0, 0))

    def unasked(self) -> tuple[Any, Tensor]:
        """The inputs of a number that no launch comes to, chosen by the operating system's own random numbers."""
        index = UNASKED + secrets.randbelow(UNASKED)
        return custom_model.inputs_of(self.model, index, self.workload), self.questions.lengths

    def weights(self) -> str:
        """Of the module."""
        return contract.hash_of(self.model.module)

    def told(self, baselines: list[Any], reply: Reply) -> list[Tensor]:
        """The tensors of one answer: those of the rounds may be large, and are forgotten."""
        return [leaf for leaf in leaves(self._answer(reply)) if isinstance(leaf, Tensor)]

    def expected(self, told: list[Tensor], reply: Reply) -> tuple[list[Any], str | None]:
        """Nothing, as ``judged`` has compared; and whether this side's answer to the same inputs is the other's."""
        answer = self._answer(reply)
        own = [leaf for leaf in leaves(answer) if isinstance(leaf, Tensor)]
        if [one.shape for one in own] != [one.shape for one in told]:
            return [], "its answer has another structure than base's"
        others = iter(told)
        wanted = mapped(lambda leaf: next(others) if isinstance(leaf, Tensor) else leaf, answer)
        same = bool(self.model.same(answer, wanted))
        return [], None if same else "same(answer, base's) is False of its answer to the same inputs"

    def _answer(self, reply: Reply) -> Any:
        """The answer to the last inputs."""
        return comparable(reply(*self.questions.last()))


def subject_of(source: ModelSource, pool: NDArray[np.int64], workload: Workload, launch: int = 0) -> Subject:
    """An own model where a factory makes it, else the chatbot, asked the prompts of ``pool`` in order."""
    if isinstance(source, Factory):
        return OwnSubject(source, workload, launch)
    return ChatbotSubject(source, pool, workload)
