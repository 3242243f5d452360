"""Every entry of the table: same replies, the kind it declares; and the exported file without this package."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chatbot.__main__ import export
from chatbot.checkpoint import Trained
from chatbot.corpus import Pair
from chatbot.errors import UsageError
from chatbot.training import make_batch
from chatbot.variants import BASELINE, CONTROL, DEVICES, VARIANTS, Variant, Workload, variant_named

ON_CPU = [name for name, variant in VARIANTS.items() if "cpu" in variant.devices]
EXACT = [name for name in ON_CPU if VARIANTS[name].exact]

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
    workload = Workload(batch=prompts.size(0), prompt_tokens=prompts.size(1))
    with torch.inference_mode():
        return VARIANTS[name].prepare(toy.chatbot, workload)(prompts, lengths)


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
    with torch.inference_mode():
        tokens = VARIANTS[name].prepare(toy.chatbot, Workload(reply_tokens=steps))(*ragged)
    assert tokens.shape == (len(ragged[0]), steps)


@pytest.mark.parametrize("name", ON_CPU)
def test_the_timed_program_is_of_the_declared_kind(name: str, toy: Trained, ragged: tuple[Tensor, Tensor]) -> None:
    called: list[nn.Module] = []
    reply = VARIANTS[name].prepare(toy.chatbot, Workload())
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: called.append(module))
    with hook, torch.inference_mode():
        reply(*ragged)
    scripted = [isinstance(module, torch.jit.ScriptModule) for module in called]
    assert called
    assert all(scripted) if VARIANTS[name].kind == "torchscript" else not any(scripted)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_entry_is_found_by_its_own_name_and_is_complete(name: str) -> None:
    variant = variant_named(name)
    assert variant.name == name
    assert len(variant.summary.splitlines()) == 1
    assert set(variant.devices) <= set(DEVICES)
    assert variant.kind in ("eager", "torchscript")


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
