"""Programs that are not what they are called, and calls that do what a timed one must not."""

import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
import torch
from launches import WORKLOAD, enter, prompts, tiny
from torch import Tensor

from chatbot.variants import BASELINE, CONTROL, VARIANTS, Compiled, Reply, eager, torchscript
from chatbot.vocabulary import EOS, Vocabulary
from ray_jobs.measure.program import (
    Program,
    label_fault,
    probe_fault,
    program_of,
    same_program_faults,
)

# What a machine without other packages, a compiler or a GPU can prepare at once; tests/test_engines.py has the others.
QUICK = [name for name, variant in VARIANTS.items() if not variant.needs and "cpu" in variant.devices]


pytestmark = pytest.mark.usefixtures("emulated_bf16")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As a launch runs."""
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Wrapper:
    """A callable dataclass around anything."""

    inner: Any

    def __call__(self, batch: Tensor, lengths: Tensor) -> Tensor:
        tokens: Tensor = self.inner(batch, lengths, 5)[0]
        return tokens


class Plain:
    """A callable object with an attribute."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def reply(self, batch: Tensor, lengths: Tensor) -> Tensor:
        tokens: Tensor = self.inner(batch, lengths, 5)[0]
        return tokens

    __call__ = reply


def ask(search: Any, batch: Tensor, lengths: Tensor) -> Tensor:
    tokens: Tensor = search(batch, lengths, 5)[0]
    return tokens


def ask_last(batch: Tensor, lengths: Tensor, search: Any) -> Tensor:
    return ask(search, batch, lengths)


def in_a_closure(search: Any) -> Reply:
    return lambda batch, lengths: ask(search, batch, lengths)


def in_a_default(search: Any) -> Reply:
    def reply(batch: Tensor, lengths: Tensor, search: Any = search) -> Tensor:
        return ask(search, batch, lengths)

    return reply


def in_containers(search: Any) -> Reply:
    kept = {"searches": [(search,)]}
    return lambda batch, lengths: ask(kept["searches"][0][0], batch, lengths)


def in_a_wrapped_function(search: Any) -> Reply:
    inner = in_a_closure(search)

    @functools.wraps(inner)
    def reply(batch: Tensor, lengths: Tensor) -> Tensor:
        return inner(batch, lengths)

    return reply


HIDING: dict[str, Callable[[Any], Reply]] = {
    "closure": in_a_closure,
    "default": in_a_default,
    "containers": in_containers,
    "wrapped function": in_a_wrapped_function,
    "partial argument": lambda search: functools.partial(ask, search),
    "partial keyword": lambda search: functools.partial(ask_last, search=search),
    "partial of a closure": lambda search: functools.partial(in_a_closure(search)),
    "bound method": lambda search: Plain(search).reply,
    "bound method of the module": lambda search: search.__call__,
    "callable object": Plain,
    "dataclass": Wrapper,
    "dataclass in a dataclass": lambda search: Wrapper(Wrapper(search)),
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_program_finds_eager_modules_wherever_they_are(hide: Callable[[Any], Reply]) -> None:
    search = tiny().search()
    program = program_of(hide(search))
    assert program.kind == "eager"
    assert program.devices == {"cpu"}
    assert program.dtypes == {"float32"}
    assert program.objects == {id(search)}
    assert not program.training


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_program_finds_scripts_wherever_they_are(hide: Callable[[Any], Reply]) -> None:
    search = torchscript.script(tiny(), "cpu")
    program = program_of(hide(search))
    assert program.kind == "torchscript"
    assert program.devices == {"cpu"}
    assert program.dtypes == {"float32"}
    assert program.objects == {id(search)}


def test_a_search_over_traced_networks_is_of_both_kinds() -> None:
    script, search = torchscript.script(tiny(), "cpu"), tiny().search()
    search.encoder = script.encoder
    assert program_of(in_a_closure(search)).kind == "eager+torchscript"


def test_two_networks_side_by_side_are_both_found() -> None:
    bot, script = tiny(), torchscript.script(tiny(), "cpu")
    program = program_of(functools.partial(ask, [bot, script]))
    assert program.kind == "eager+torchscript"
    assert program.objects == {id(bot.encoder), id(bot.decoder), id(script)}


def test_a_script_in_a_plain_list_of_an_eager_module_is_found() -> None:
    search = tiny().search()
    search.spare = [torchscript.script(tiny(), "cpu")]  # type: ignore[assignment]
    assert program_of(in_a_closure(search)).kind == "eager+torchscript"


class Engine:
    """A program that is not made of PyTorch's modules, and shows what it executes."""

    def __init__(self, identity: str = "graph-1", weights: int = 1, dtype: str = "float32") -> None:
        self.compiled = Compiled("native", frozenset({"cpu"}), frozenset({dtype}), identity, frozenset({weights}))

    def __call__(self, batch: Tensor, lengths: Tensor, steps: int) -> tuple[Tensor]:
        return (torch.zeros(len(batch), steps, dtype=torch.long),)


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_program_finds_compiled_programs_wherever_they_are(hide: Callable[[Any], Reply]) -> None:
    program = program_of(hide(Engine()))
    assert program.kind == "native"
    assert program.devices == {"cpu"}
    assert program.dtypes == {"float32"}
    assert label_fault(BASELINE, program, WORKLOAD) == "it is labelled eager but runs native"


def test_a_compiled_program_beside_modules_is_both() -> None:
    engine, search = Engine(dtype="qint8"), tiny().search()
    program = program_of(lambda batch, lengths: ask(engine, batch, lengths) + ask(search, batch, lengths))
    assert program.kind == "eager+native"
    assert program.dtypes == {"float32", "qint8"}


@pytest.mark.parametrize("other", [Engine("graph-1", weights=2), Engine("graph-2", weights=1)])
def test_two_compiled_programs_of_one_code_or_one_memory_are_the_same_program(other: Engine) -> None:
    programs = {"eager": program_of(in_a_closure(Engine())), "torchscript": program_of(in_a_closure(other))}
    assert same_program_faults(programs)["torchscript"] == "it is the same program as eager"
    apart = {**programs, "torchscript": program_of(in_a_closure(Engine("graph-2", weights=2)))}
    assert not same_program_faults(apart)


def test_a_callable_without_modules_is_unknown() -> None:
    program = program_of(lambda batch, lengths: batch)
    assert program.kind == "unknown"
    assert not program.objects
    assert label_fault(BASELINE, program, WORKLOAD) == "it is labelled eager but runs unknown"


def test_callables_without_modules_are_told_apart_by_their_code() -> None:
    programs = [program_of(f) for f in (lambda b, n: b, lambda b, n: b + n, lambda x, y: x)]
    assert programs[0].identity != programs[1].identity
    assert programs[0].identity == programs[2].identity


# Labels


def fault_of(label: str, reply: Reply) -> str | None:
    return label_fault(label, program_of(reply), WORKLOAD)


@pytest.mark.parametrize("name", QUICK)
def test_every_entry_of_the_table_is_what_its_label_says(name: str) -> None:
    assert fault_of(name, VARIANTS[name].prepare(tiny(), WORKLOAD)) is None


def test_a_script_labelled_eager_is_a_fault() -> None:
    reply = torchscript.prepare(tiny(), WORKLOAD)
    assert fault_of("eager", reply) == "it is labelled eager but runs torchscript"


def test_an_eager_program_labelled_torchscript_is_a_fault() -> None:
    assert fault_of("torchscript", eager.prepare(tiny(), WORKLOAD)) == "it is labelled torchscript but runs eager"


def test_traced_networks_under_an_eager_search_are_neither() -> None:
    search = tiny().search()
    search.decoder = torchscript.script(tiny(), "cpu").decoder
    for label in ("eager", "torchscript"):
        assert fault_of(label, in_a_closure(search)) == f"it is labelled {label} but runs eager+torchscript"


def test_half_weights_labelled_float32_are_a_fault() -> None:
    bot = tiny()
    bot.decoder.out.half()  # one layer is enough
    assert fault_of("eager", eager.prepare(bot, WORKLOAD)) == "it is labelled float32 but holds float16, float32"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_int8_weights_labelled_float32_are_a_fault() -> None:
    layers = {torch.nn.GRU, torch.nn.Linear}
    search = torch.ao.quantization.quantize_dynamic(tiny().search(), layers, dtype=torch.qint8).eval()  # type: ignore[no-untyped-call]
    assert fault_of("eager", in_a_closure(search)) is not None


def test_float32_weights_labelled_half_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, "half", eager.prepare, like="eager", dtype="float16")
    assert fault_of("half", eager.prepare(tiny(), WORKLOAD)) == "it is labelled float16 but holds float32"


def test_training_mode_is_a_fault() -> None:
    bot = tiny()
    reply = eager.prepare(bot, WORKLOAD)
    bot.decoder.embedding_dropout.train()
    assert fault_of("eager", reply) == "it runs in training mode, with dropout on"


def test_weights_on_another_device_are_a_fault() -> None:
    assert (
        fault_of("eager", eager.prepare(tiny().to("meta"), WORKLOAD)) == "it is labelled cpu but holds weights on meta"
    )


def test_one_network_on_another_device_is_a_fault() -> None:
    bot = tiny()
    bot.encoder.gru.to("meta")
    assert fault_of("eager", eager.prepare(bot, WORKLOAD)) == "it is labelled cpu but holds weights on cpu, meta"


def test_a_buffer_on_another_device_is_a_fault() -> None:
    search = tiny().search()
    search.register_buffer("mask", torch.zeros(1, device="meta"))
    assert fault_of("eager", in_a_closure(search)) == "it is labelled cpu but holds weights on cpu, meta"


# The same program twice


def prepared(name: str) -> Program:
    return program_of(VARIANTS[name].prepare(tiny(), WORKLOAD))


def test_the_tables_variants_are_different_programs_and_a_declared_control() -> None:
    replies = {name: VARIANTS[name].prepare(tiny(), WORKLOAD) for name in QUICK}
    assert same_program_faults({name: program_of(reply) for name, reply in replies.items()}) == {}


def test_one_callable_under_two_names_is_a_fault_of_both() -> None:
    program = prepared("torchscript")
    faults = same_program_faults({"eager": program, "torchscript": program})
    assert faults == {
        "eager": "it is the same program as torchscript",
        "torchscript": "it is the same program as eager",
    }


def test_one_callable_as_baseline_and_control_is_a_fault_though_declared() -> None:
    program = prepared(BASELINE)
    assert same_program_faults({BASELINE: program, CONTROL: program}).keys() == {BASELINE, CONTROL}


def test_one_module_in_two_callables_is_a_fault_though_declared() -> None:
    search = tiny().search()
    programs = {BASELINE: program_of(in_a_closure(search)), CONTROL: program_of(Wrapper(search))}
    assert same_program_faults(programs).keys() == {BASELINE, CONTROL}


def test_baseline_and_control_on_one_copy_of_the_weights_are_a_fault() -> None:
    bot = tiny()  # each gets a search of its own, but both time the same networks
    replies = {name: eager.prepare(bot, WORKLOAD) for name in (BASELINE, CONTROL)}
    faults = same_program_faults({name: program_of(reply) for name, reply in replies.items()})
    assert faults.keys() == {BASELINE, CONTROL}


@pytest.mark.parametrize("kind", ["eager", "torchscript"])
def test_the_same_program_prepared_twice_under_undeclared_names_is_a_fault(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, "other", VARIANTS[kind].prepare, like=kind, control_of=None)
    replies = {name: VARIANTS[name].prepare(tiny(), WORKLOAD) for name in (kind, "other")}
    faults = same_program_faults({name: program_of(reply) for name, reply in replies.items()})
    assert faults == {kind: "it is the same program as other", "other": f"it is the same program as {kind}"}


def test_the_same_script_in_other_python_is_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, "other", torchscript.prepare)
    scripts = [torchscript.script(tiny(), "cpu") for _ in range(2)]
    programs = {"torchscript": program_of(in_a_closure(scripts[0])), "other": program_of(Wrapper(scripts[1]))}
    assert same_program_faults(programs).keys() == {"torchscript", "other"}


# One more call, to look at how a variant works

BATCH, LENGTHS = torch.from_numpy(prompts(1)), torch.tensor([4])


@pytest.mark.parametrize("name", QUICK)
def test_every_entry_of_the_table_passes_the_probe(name: str) -> None:
    reply = VARIANTS[name].prepare(tiny(), WORKLOAD)
    with torch.inference_mode():
        assert probe_fault(reply, BATCH, LENGTHS) is None


def test_a_variant_that_records_gradients_is_named() -> None:
    reply = eager.prepare(tiny(), WORKLOAD)

    def recording(batch: Tensor, lengths: Tensor) -> Tensor:
        with torch.enable_grad():
            return reply(batch, lengths)

    fault = probe_fault(recording, BATCH, LENGTHS)
    assert re.fullmatch(r"it records gradients: \d+ tensors kept for a backward pass", fault or "")


def test_a_variant_that_has_gradients_off_itself_is_not_accused_where_they_are_on() -> None:
    reply = eager.prepare(tiny(), WORKLOAD)
    with torch.enable_grad():
        assert probe_fault(torch.no_grad()(reply), BATCH, LENGTHS) is None
        assert probe_fault(reply, BATCH, LENGTHS) is not None


def decodes(batch: Tensor, lengths: Tensor) -> Tensor:
    WORDS.decode([EOS])
    return batch


def joins(batch: Tensor, lengths: Tensor) -> Tensor:
    "_".join(["a", "b"])
    return batch


def matches(batch: Tensor, lengths: Tensor) -> Tensor:
    PATTERN.sub("", "a b")
    return batch


PATTERN, WORDS = re.compile("a"), Vocabulary(("a", "b"))


@pytest.mark.parametrize(
    ("reply", "said"),
    [(decodes, "chatbot.vocabulary.decode"), (joins, "str.join"), (matches, "Pattern.sub")],
)
def test_a_variant_that_handles_text_is_named_with_what_it_called(reply: Reply, said: str) -> None:
    assert probe_fault(reply, BATCH, LENGTHS) == f"it handles text inside the timed call: {said}"


def breaks(batch: Tensor, lengths: Tensor) -> Tensor:
    raise NotImplementedError("only while it is timed")


def test_a_variant_that_answers_only_while_it_is_timed_is_named() -> None:
    assert probe_fault(breaks, BATCH, LENGTHS) == "it answers only while it is timed: NotImplementedError"


@pytest.mark.parametrize("reply", [joins, breaks])
def test_who_watched_before_watches_again_after_the_probe(reply: Reply) -> None:
    def profile(frame: FrameType, event: str, arg: Any) -> None:
        pass

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        probe_fault(reply, BATCH, LENGTHS)
        after = sys.getprofile()
    finally:
        sys.setprofile(before)
    assert after is profile


def test_the_probe_leaves_nothing_watching() -> None:
    seen: list[object] = []
    probe_fault(lambda batch, lengths: seen.append(sys.getprofile()) or batch, BATCH, LENGTHS)  # type: ignore[func-returns-value]
    assert seen != [None]
    assert sys.getprofile() is None


class Scaling(torch.nn.Linear):
    """Multiplies by a number of Python's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


def test_a_number_in_a_frozen_script_is_no_weight_in_64_bits() -> None:
    script: Any = torchscript.prepare_module_frozen(Scaling(4, 4).eval(), (torch.rand(2, 4),), WORKLOAD)
    assert program_of(script).dtypes == {"float32"}
