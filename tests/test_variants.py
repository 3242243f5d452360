"""Every entry of the table: same replies, the kind it declares; and the exported file without this package."""

import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chatbot.checkpoint import Trained
from chatbot.cli import export
from chatbot.config import ATTENTIONS, Config
from chatbot.corpus import Pair
from chatbot.errors import UsageError
from chatbot.model import Chatbot
from chatbot.talk import Speaker
from chatbot.training import make_batch
from chatbot.variants import (
    BASELINE,
    CONTROL,
    DEVICES,
    VARIANTS,
    Reply,
    UnavailableError,
    Variant,
    Workload,
    eager,
    prepared,
    prepared_module,
    variant_named,
)
from chatbot.variants.masked import Greedy, MaskedEncoder
from chatbot.vocabulary import EOS, FIRST_WORD, PAD
from ray_jobs.cli import variants as listed
from ray_jobs.measure.program import label_fault, program_of

pytestmark = pytest.mark.usefixtures("emulated_bf16")

COMPILED = [  # which takes half a minute each, if nothing is kept of an earlier time
    pytest.param(name, marks=pytest.mark.slow)
    for name, variant in VARIANTS.items()
    if variant.cached and variant.kind != "native"
]
QUICK = [
    name
    for name, variant in VARIANTS.items()
    if "cpu" in variant.devices and (not variant.cached or variant.kind == "native")
]
ON_CPU = [*QUICK, *(name for name in COMPILED if "cpu" in VARIANTS[str(name.values[0])].devices)]
STOPPING = [*(name for name in QUICK if VARIANTS[name].stops_at_eos), *ON_CPU[len(QUICK) :]]
EXACT = [name for name in QUICK if VARIANTS[name].exact]

# Run where `chatbot` cannot be imported, whether it is installed as a link (as here) or as a copy.
STRANGER = """
import json, sys
sys.modules["chatbot"] = None
try:
    import chatbot
except ImportError:
    pass
else:
    sys.exit("chatbot could be imported")
import torch
path, prompts, lengths = sys.argv[1], *map(json.loads, sys.argv[2:])
extra = {"vocabulary.json": ""}
search = torch.jit.load(path, _extra_files=extra)
tokens, probabilities = search(torch.tensor(prompts), torch.tensor(lengths), 10)
print(json.dumps({"tokens": tokens.tolist(), "probabilities": probabilities.tolist(),
                  "words": json.loads(extra["vocabulary.json"])}))
"""


@pytest.fixture(scope="module")
def ragged(toy: Trained, toy_pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """Prompts of 3 and 4 words in one padded batch, and their lengths."""
    batch = make_batch(toy_pairs[::7], toy.vocabulary)
    assert len(set(batch.lengths.tolist())) > 1
    return batch.prompts, batch.lengths


def answers(name: str, toy: Trained, prompts: Tensor, lengths: Tensor) -> Tensor:
    """The tokens that a variant, newly prepared for this shape, writes."""
    return reply_of(name, toy, batch=prompts.size(0), prompt_tokens=prompts.size(1))(prompts, lengths)


def reply_of(name: str, toy: Trained, **sizes: Any) -> Reply:
    """The variant, newly prepared; the test is skipped where this machine lacks what it needs."""
    own = Chatbot(toy.chatbot.config, *copy.deepcopy((toy.chatbot.encoder, toy.chatbot.decoder)))
    with torch.inference_mode():
        try:
            reply = prepared(VARIANTS[name], own, Workload(**sizes))
        except UnavailableError as error:
            pytest.skip(str(error))

    def answer(prompts: Tensor, lengths: Tensor) -> Tensor:
        with torch.inference_mode():
            return reply(prompts, lengths)

    return answer


def ended(tokens: Tensor) -> list[list[int]]:
    """Replies up to and including their EOS."""
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in tokens.tolist()]


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_variant_gives_the_baselines_reply_to_each_prompt_alone(
    name: str, toy: Trained, ragged: tuple[Tensor, Tensor]
) -> None:
    replies = set()
    for row, length in zip(*ragged, strict=True):
        prompt, lengths = row[:length].unsqueeze(0), length.unsqueeze(0)
        expected = toy.chatbot.search()(prompt, lengths, 10)[0]
        assert torch.equal(answers(name, toy, prompt, lengths), expected)
        replies.add(tuple(expected[0].tolist()))
    assert len(replies) == len(ragged[0])  # every prompt has an answer of its own


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_variant_gives_the_baselines_replies_to_a_ragged_batch(
    name: str, toy: Trained, ragged: tuple[Tensor, Tensor]
) -> None:
    expected = toy.chatbot.search()(*ragged, 10)[0]
    assert torch.equal(answers(name, toy, *ragged), expected)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("steps", [1, 17])
def test_a_variant_writes_as_many_tokens_as_the_workload_asks(
    name: str, steps: int, toy: Trained, ragged: tuple[Tensor, Tensor]
) -> None:
    batch, width = ragged[0].shape
    tokens = reply_of(name, toy, batch=batch, prompt_tokens=width, reply_tokens=steps)(*ragged)
    assert tokens.shape == (len(ragged[0]), steps)


@pytest.mark.parametrize("name", STOPPING)
def test_replies_that_stop_are_those_that_go_on_up_to_their_end(
    name: str, toy: Trained, ragged: tuple[Tensor, Tensor]
) -> None:
    batch, width = ragged[0].shape
    sizes = {"batch": batch, "prompt_tokens": width, "reply_tokens": 12}
    whole, stopped = (reply_of(name, toy, stop_at_eos=stop, **sizes)(*ragged) for stop in (False, True))
    assert stopped.shape == (batch, 12)
    assert ended(stopped) == ended(whole)
    assert any(len(reply) < 12 for reply in ended(whole))
    behind = [row[len(kept) :] for row, kept in zip(stopped.tolist(), ended(stopped), strict=True)]
    assert {token for tail in behind for token in tail} == {PAD}


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_variant_gives_the_baselines_replies(name: str, toy: Trained, ragged: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(answers(name, toy, *ragged), toy.chatbot.search()(*ragged, 10)[0])


@pytest.mark.parametrize("name", [name for name in QUICK if not VARIANTS[name].exact])
def test_an_approximate_variant_gives_nearly_the_baselines_replies(
    name: str, toy: Trained, ragged: tuple[Tensor, Tensor]
) -> None:
    expected = ended(toy.chatbot.search()(*ragged, 10)[0])
    same = [found == reply for found, reply in zip(ended(answers(name, toy, *ragged)), expected, strict=True)]
    assert sum(same) >= 0.7 * len(same)


@pytest.mark.parametrize("name", ON_CPU)
def test_the_timed_program_is_what_its_entry_says(name: str, toy: Trained, ragged: tuple[Tensor, Tensor]) -> None:
    batch, width = ragged[0].shape
    workload = Workload(batch=batch, prompt_tokens=width)
    reply = reply_of(name, toy, batch=batch, prompt_tokens=width)
    reply(*ragged)
    program = program_of(reply)
    assert label_fault(name, program, workload) is None
    assert (program.kind, set(program.dtypes)) == (VARIANTS[name].kind, set(VARIANTS[name].dtype.split("+")))
    others = [other for other in VARIANTS.values() if (other.kind, other.dtype) != (program.kind, VARIANTS[name].dtype)]
    assert all(label_fault(other.name, program, workload) for other in others)


@pytest.mark.parametrize("name", [name for name in QUICK if "torchscript" in VARIANTS[name].kind])
def test_what_torch_says_of_its_jit_is_not_repeated_to_users(name: str, toy: Trained) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        reply_of(name, toy)
        if VARIANTS[name].prepare_module is not None:
            with suppress(UnavailableError):  # nothing to rewrite in one layer
                prepared_module(VARIANTS[name], nn.Linear(2, 2).eval(), (torch.ones(1, 2),), Workload())
    assert [str(one.message) for one in said if "torch.jit" in str(one.message)] == []


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.any_shape])
def test_what_is_made_for_one_length_is_not_for_talking(name: str, toy: Trained) -> None:
    with pytest.raises(UsageError, match="takes only prompts of one length"):
        Speaker(toy, name)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.devices == ("cuda",)])
def test_what_needs_a_gpu_says_so(name: str, toy: Trained) -> None:
    with pytest.raises(UnavailableError, match="it runs on cuda only"):
        prepared(VARIANTS[name], toy.chatbot, Workload())


@pytest.mark.parametrize(
    ("name", "extra"),
    [("onnx", "onnx"), ("onnx-int8", "onnx"), ("openvino", "openvino"), ("openvino-int8", "openvino")],
)
def test_a_missing_package_is_named_with_what_would_help(
    name: str, extra: str, toy: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match=rf"is not installed: pip install 'latency-matrix\[{extra}\]'"):
        prepared(VARIANTS[name], toy.chatbot, Workload())


@pytest.mark.parametrize("name", ["compile", "export-aoti"])
def test_a_missing_compiler_is_named_with_what_would_help(
    name: str, toy: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnavailableError, match=r"no C\+\+ compiler no-such-compiler: apt install g\+\+"):
        prepared(VARIANTS[name], toy.chatbot, Workload())


def test_a_variant_that_knows_nothing_of_stopping_is_not_asked_to(toy: Trained) -> None:
    mine = replace(VARIANTS["torchscript"], stops_at_eos=False)
    with pytest.raises(UnavailableError, match="can't stop at the end of a reply"):
        prepared(mine, toy.chatbot, Workload(stop_at_eos=True))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_masked_networks_compute_what_packed_ones_do(attention: str, layers: int) -> None:
    sizes = {"hidden": 8, "encoder_layers": layers, "decoder_layers": layers, "vocabulary": 30}
    bot = Chatbot.random(Config(attention=attention, **sizes))
    prompts = torch.randint(FIRST_WORD, 30, (3, 6), generator=torch.Generator().manual_seed(0))
    prompts[1, 2:], prompts[2, 5:] = PAD, PAD
    with torch.no_grad():
        outputs, hidden, blocked = MaskedEncoder(bot.encoder)(prompts)
        packed, finals = bot.encoder(prompts.t(), torch.tensor([6, 2, 5]))
        torch.testing.assert_close(outputs, packed)
        torch.testing.assert_close(hidden, finals)
        assert torch.equal(blocked, prompts.t() == PAD)
        expected = bot.search()(prompts, torch.tensor([6, 2, 5]), 7)[0]
        assert torch.equal(Greedy(bot, 7)(prompts), expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("written_out", [False, True])
def test_the_graph_computes_what_the_networks_do(attention: str, written_out: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    from chatbot.variants.onnx_graph import greedy_graph

    bot = Chatbot.random(Config(hidden=8, attention=attention, vocabulary=30))
    prompts = torch.randint(FIRST_WORD, 30, (3, 6), generator=torch.Generator().manual_seed(0))
    prompts[1, 2:], prompts[2, 5:] = PAD, PAD
    model = greedy_graph(bot, written_out=written_out).SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (tokens,) = session.run(None, {"prompts": prompts.numpy(), "steps": np.array(7)})
    with torch.no_grad():
        expected = bot.search()(prompts, torch.tensor([6, 2, 5]), 7)[0]
    assert tokens.T.tolist() == expected.tolist()


@pytest.mark.parametrize("name", VARIANTS)
def test_an_entry_is_found_by_its_own_name_and_is_complete(name: str) -> None:
    variant = variant_named(name)
    assert variant.name == name
    assert len(variant.summary.splitlines()) == 1
    assert set(variant.devices) <= set(DEVICES)
    assert variant.any_shape == (variant.kind not in ("inductor", "aoti", "cuda-graph", "persistent"))


def test_the_control_is_the_baselines_program() -> None:
    assert VARIANTS[CONTROL].control_of == BASELINE
    assert VARIANTS[CONTROL].prepare is VARIANTS[BASELINE].prepare
    assert [name for name, variant in VARIANTS.items() if variant.control_of] == [CONTROL]


def test_an_unknown_variant_is_answered_with_the_valid_names() -> None:
    with pytest.raises(UsageError, match="warp") as caught:
        variant_named("warp")
    assert all(name in str(caught.value) for name in VARIANTS)


MINE = """
from chatbot.variants import VARIANTS, Variant
FAST = Variant("fast", "mine", VARIANTS["torchscript"].prepare, exact=False, kind="torchscript")
number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules that can be imported, with one good and some bad ones."""
    before = set(sys.modules)
    folder = tmp_path / "variants_of_mine"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "good.py").write_text(MINE)
    (folder / "lacks.py").write_text("import there_is_no_such_module")
    (folder / "typo.py").write_text("def (:")
    (folder / "raises.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.usefixtures("mine")
def test_a_variant_of_another_module_is_found_by_its_place() -> None:
    variant = variant_named("variants_of_mine.good:FAST")
    assert isinstance(variant, Variant)
    assert (variant.name, variant.exact, variant.kind) == ("fast", False, "torchscript")
    assert variant_named("variants_of_mine.good:FAST") is variant


def test_an_entry_of_the_table_is_found_before_a_module_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "json:dumps", VARIANTS[BASELINE])
    assert variant_named("json:dumps") is VARIANTS[BASELINE]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("variants_of_mine.good:SLOW", "can't be imported: .*SLOW"),
        ("variants_of_mine.nowhere:FAST", "can't be imported: No module named 'variants_of_mine.nowhere'"),
        ("variants_of_mine.lacks:FAST", "can't be imported: No module named 'there_is_no_such_module'"),
        ("variants_of_mine.good:number", "is a int, not a chatbot.variants.Variant"),
        ("variants_of_mine.good:", "can't be imported: "),
        (":FAST", "can't be imported: "),
        ("a:b:c", "can't be imported: "),
        ("variants_of_mine.typo:FAST", "can't be imported: "),
        ("variants_of_mine.raises:FAST", "can't be imported: "),
        (".good:FAST", "can't be imported: "),
    ],
)
@pytest.mark.usefixtures("mine")
def test_a_place_without_a_variant_is_answered_in_one_line(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"^variant {name!r} {said}") as refused:
        variant_named(name)
    assert len(str(refused.value).splitlines()) == 1


def test_the_valid_names_tell_of_variants_elsewhere() -> None:
    with pytest.raises(UsageError, match=r"package\.module:NAME"):
        variant_named("warp")


def run_as_a_stranger(path: Path, prompts: Tensor, lengths: Tensor, folder: Path) -> dict[str, Any]:
    """Loads and calls an exported search in a process that has PyTorch and no ``chatbot``."""
    arguments = [str(path), json.dumps(prompts.tolist()), json.dumps(lengths.tolist())]
    command = [sys.executable, "-I", "-c", STRANGER, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_exporting_repeats_nothing_that_torch_says_of_its_jit(toy_checkpoint: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        export(model=str(toy_checkpoint), out=tmp_path / "search.pt")
    assert [str(one.message) for one in said if "torch.jit" in str(one.message)] == []


@pytest.mark.process
def test_the_exported_file_answers_alike_where_this_package_is_absent(
    toy: Trained, toy_checkpoint: Path, ragged: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    out, empty = tmp_path / "search.pt", tmp_path / "empty"
    empty.mkdir()
    export(model=str(toy_checkpoint), out=out)
    read = run_as_a_stranger(out, *ragged, empty)
    tokens, probabilities = toy.chatbot.search()(*ragged, 10)
    assert read["tokens"] == tokens.tolist()
    torch.testing.assert_close(torch.tensor(read["probabilities"]), probabilities, rtol=1e-5, atol=1e-6)
    assert tuple(read["words"]) == toy.vocabulary.words


def test_the_list_tells_what_was_never_run_on_its_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed, "available", lambda variant: "yes")
    listed.variants()
    lines = capsys.readouterr().out.splitlines()
    told = dict(zip((line.split()[0] for line in lines[::2]), lines[1::2], strict=True))
    untried = {name for name, line in told.items() if "never run on a device" in line}
    assert untried == {"tf32", "cuda-graph", "triton-graph", "persistent", "compile-cudagraph"}


def test_what_needs_a_gpu_is_tried_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a CPU, where all that it could say is that it runs on a GPU."""
    devices: list[str] = []

    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        devices.append(workload.device)
        return eager.prepare(chatbot, workload)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Chatbot, "to", lambda bot, device: bot)
    assert listed.available(replace(VARIANTS["cuda-graph"], prepare=prepare)) == listed.HERE
    assert devices == ["cuda"]
