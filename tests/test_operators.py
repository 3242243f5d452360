"""What a call of any model reads and multiplies, against counts made by hand."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import made_trial
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from chatbot.errors import UsageError
from chatbot.variants import BASELINE, Workload
from ray_jobs.measure import custom_model
from ray_jobs.measure.operators import Counted, counted
from ray_jobs.measure.roofline import PRECISIONS, Speeds, limits
from ray_jobs.measure.trial import Factory, Inputs
from ray_jobs.process import untimed

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FLAT = Speeds(((1 << 16, 20.0), (1 << 28, 20.0)), {"float32": 100.0})


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@torch.inference_mode()
def of(call: Callable[..., Any], *inputs: Tensor) -> Counted:
    return counted(lambda: call(*inputs), inputs)


@torch.inference_mode()
def of_example(name: str, batch: int) -> Counted:
    model = custom_model.load(name)
    return of(model.module, *custom_model.inputs_of(model, 0, Workload(batch=batch, model=name)))


def test_a_linear_layer() -> None:
    found = of(nn.Linear(5, 7), torch.rand(3, 5))
    assert found == Counted(matrices=35, vectors=7 + 15, others=0, flops=2 * 3 * 5 * 7)


def test_a_gather_reads_each_of_its_rows_once() -> None:
    table = nn.Embedding(100, 8)
    assert of(table, torch.tensor([[3, 4, 3]])) == Counted(matrices=16, vectors=0, others=3 * 8, flops=0)
    chosen = of(lambda which: table.weight[which, 0], torch.tensor([3, 4, 3]))
    assert (chosen.matrices, chosen.others) == (2, 24)


def test_a_tied_weight_and_one_used_twice_are_read_once() -> None:
    table = nn.Embedding(10, 4)
    found = of(lambda words: table(words) @ table.weight.T @ table.weight, torch.tensor([1, 2]))
    assert (found.matrices, found.flops) == (40, 2 * 2 * 2 * 40)


def test_parts_of_one_weight_add_up_to_what_they_cover() -> None:
    whole = torch.rand(6, 4)
    found = of(lambda x: (x @ whole[:3].T) * (x @ whole[2:5].T), torch.rand(2, 4))
    assert found.matrices == 5 * 4
    assert of(lambda x: x + whole.expand(9, 6, 4), torch.rand(9, 6, 4)).vectors == 24 + 9 * 24


def test_what_is_made_in_the_call_is_not_read_again() -> None:
    assert of(lambda x: (x + 1) @ (x + 2).T, torch.rand(3, 3)) == Counted(0, 9, 0, 54)


def test_half_precision_and_masks_keep_their_size() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)
    assert of(lambda x: x.masked_fill(mask, 0.0), torch.rand(4, 4)) == Counted(0, 16, 16, 0)
    half = torch.rand(4, 4).half()
    assert of(lambda x: x * half, torch.rand(4, 4)).others == 32


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_recurrent_layer_that_pytorch_counts_as_nothing(cell: type[nn.Module], gates: int, packed: bool) -> None:
    layer, sequence = cell(5, 6, num_layers=2, bidirectional=True), torch.rand(4, 3, 5)
    lengths = torch.tensor([4, 3, 1])
    given = nn.utils.rnn.pack_padded_sequence(sequence, lengths) if packed else sequence
    positions = 8 if packed else 12
    numbers = 2 * gates * (6 * 5 + 6 * 6) + 2 * gates * (6 * 12 + 6 * 6)
    found = of(layer, given)  # type: ignore[arg-type]
    assert (found.matrices, found.flops, found.unknown) == (numbers, 2 * positions * numbers, None)
    with torch.no_grad():
        again = counted(lambda: layer(sequence), sequence)
    assert (again.matrices, again.flops, again.unknown) == (numbers, 2 * 12 * numbers, None)


@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_are_those_that_pytorch_counts(transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer, images = kind(4, 6, 3, stride=2, groups=2), torch.rand(2, 4, 9, 9)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        layer(images)
    found = of(layer, images)
    assert (found.flops, found.matrices) == (counter.get_total_flops(), layer.weight.numel())


def test_causal_attention_needs_only_the_earlier_keys() -> None:
    q, k = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
    attend = nn.functional.scaled_dot_product_attention
    assert of(lambda q, k: attend(q, k, k), q, k).flops == 2 * 6 * 25 * 8
    assert of(lambda q, k: attend(q, k, k, is_causal=True), q, k).flops == 2 * 6 * 15 * 8
    with torch.no_grad():
        assert counted(lambda: attend(q, k, k, is_causal=True), (q, k)).flops == 2 * 6 * 15 * 8


def test_a_transformer_layer_is_taken_apart() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = of(layer, torch.rand(1, 3, 8))
    numbers = 4 * 8 * 8 + 2 * 8 * 16
    assert (found.matrices, found.flops, found.unknown) == (numbers, 2 * 3 * numbers + 2 * 2 * 9 * 8, None)


@pytest.mark.parametrize(
    ("call", "name"),
    [(torch.fft.rfft, "aten._fft_r2c.default"), (torch.linalg.inv, "aten.linalg_inv_ex.default")],
)
def test_an_operator_that_is_not_known_is_named(call: Callable[[Tensor], Tensor], name: str) -> None:
    assert of(call, torch.rand(4, 4)).unknown == name


def test_an_operator_that_is_not_known_leaves_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untimed, "measure_speeds", lambda device: FLAT)
    for model, lost in [("spectrum", "what aten._fft_r2c.default reads and multiplies is not known"), ("pair", None)]:
        workload = Workload(batch=2, model=f"own_models:{model}")
        trial = made_trial("one", workload=workload, variants=(BASELINE, "int8", "native"))
        found = untimed.run_limits(trial, Inputs(Factory(workload.model), {8: torch.zeros(0, 8).numpy()}))
        assert found.lost == lost
        assert set(found.of) == (set() if lost else {BASELINE, "int8", "native"})


def test_a_limit_follows_for_every_precision() -> None:
    found = limits(Counted(1_000_000, 1000, 80, 2_000_000).phases, [BASELINE, "bf16", "int8"], FLAT)
    assert {name: one.moved_mb for name, one in found.items()} == pytest.approx(
        {BASELINE: 4.00408, "bf16": 2.00208, "int8": 1.00408}
    )
    assert found[BASELINE].ms == pytest.approx(4.00408 / 20)
    assert found[BASELINE].gflop == 0.002


@pytest.mark.parametrize("batch", [1, 3])
def test_the_cnn(batch: int) -> None:
    found = of_example("models.cnn:factory", batch)
    stem, block, head = 3 * 32 * 7 * 7, 2 * 32 * 32 * 3 * 3, 32 * 10
    assert found.matrices == stem + block + head
    assert found.vectors == 32 + 2 * 4 * 32 + 10 + batch * 3 * 64 * 64
    assert found.flops == 2 * batch * (32 * 32 * (stem + block) + head)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_lstm_tagger(batch: int) -> None:
    found = of_example("models.lstm_tagger:factory", batch)
    first, second = 2 * 4 * 256 * (128 + 256), 2 * 4 * 256 * (512 + 256)
    torch.manual_seed(0)
    words = len(set(torch.randint(10_000, (batch, 24)).flatten().tolist()))
    assert found.matrices == first + second + 512 * 17 + words * 128
    assert found.vectors == 2 * 2 * 2 * 4 * 256 + 17
    assert found.flops == 2 * batch * 24 * (first + second + 512 * 17)


def encoder_layers(batch: int, tokens: int, layers: int = 4, wide: int = 256) -> tuple[int, int]:
    """Numbers and FLOPs of transformer layers whose inner width is four times the outer."""
    numbers = layers * 12 * wide * wide
    return numbers, 2 * batch * (tokens * numbers + layers * 2 * tokens * tokens * wide)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_transformers_of_hugging_face(name: str, batch: int) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    from models import hugging_face as models

    found = of_example(f"models.hugging_face:{name}", batch)
    assert found.unknown is None
    tokens = {"bert": 32, "gpt2": 32, "vit": 37}[name]
    numbers, flops = encoder_layers(batch, tokens)
    words = found.others // 8  # (B, T) token ids
    if name == "bert":
        assert words >= batch * tokens
        head = 256 * 256 + 256 * 2
        torch.manual_seed(0)
        rows = (
            len(set(torch.randint(models.BERT["vocab_size"], (batch, 32)).flatten().tolist())) + 32 + 1
        )  # positions and one type
        assert (found.matrices, found.flops) == (numbers + head + 256 * rows, flops + 2 * batch * head)
    if name == "gpt2":  # its head is its table of words, of the next one alone; only the earlier keys count
        table = 50_257 * 256
        spared = 2 * batch * 4 * 2 * 256 * (tokens * tokens - tokens * (tokens + 1) // 2)
        assert found.matrices == numbers + table + 32 * 256
        assert found.flops == flops - spared + 2 * batch * table
    if name == "vit":
        patches, head = 3 * 16 * 16 * 256, 256 * 2
        assert found.matrices == numbers + patches + head
        assert found.flops == flops + 2 * batch * (36 * patches + head)


def test_models_without_transformers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"can't be made: ModuleNotFoundError: .*transformers"):
        custom_model.load("models.hugging_face:bert")


def test_precisions_count_what_they_say() -> None:
    (phase,) = Counted(10, 5, 3, 7).phases(PRECISIONS["int8"])
    assert (phase.reads[0].size, phase.flops, phase.times) == (10 + 20 + 3, 7, 1)
