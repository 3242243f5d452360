"""Narrow arithmetic on CPUs of every instruction set: replies stay right, or a reason says why it can't run."""

import numpy as np
import pytest
import torch
from torch import Tensor

from chatbot.checkpoint import SHIPPED, Trained, load
from chatbot.config import ATTENTIONS, PRESETS, Config
from chatbot.corpus import words_of
from chatbot.model import Chatbot
from chatbot.variants import BASELINE, VARIANTS, UnavailableError, Workload, prepared
from ray_jobs.measure.replies import first_difference

ASKED = [
    f"{start} {verb} {what} {end}"
    for start in ("do you", "i don t", "why do we", "what kind of people")
    for verb in ("like", "watch")
    for what in ("movies", "the dog", "music")
    for end in ("?", "at home .")
]
RIGHT = 0.9  # of the replies


@pytest.fixture(scope="module")
def small() -> Trained:
    return load(SHIPPED)


@pytest.fixture(scope="module")
def expected(small: Trained) -> list[Tensor]:
    return replies(BASELINE, small)


def replies(name: str, trained: Trained) -> list[Tensor]:
    """The reply (S,) to each prompt; the test is skipped where this machine lacks what the variant needs."""
    with torch.inference_mode():
        try:
            reply = prepared(VARIANTS[name], trained.chatbot, Workload())
        except UnavailableError as error:
            pytest.skip(str(error))
        prompts = [torch.tensor([trained.vocabulary.encode(words_of(text))]) for text in ASKED]
        return [reply(prompt, torch.tensor([prompt.size(1)]))[0].clone() for prompt in prompts]


@pytest.mark.parametrize("name", ["int8", "int8-torchscript", "onnx-int8"])
def test_nine_of_ten_replies_of_the_shipped_chatbot_stay_right(
    name: str, small: Trained, expected: list[Tensor]
) -> None:
    pairs = zip(replies(name, small), expected, strict=True)
    assert sum(first_difference(*pair) is None for pair in pairs) >= RIGHT * len(ASKED)


@pytest.mark.parametrize(
    "config", [*(Config(hidden=24, attention=a, vocabulary=50) for a in ATTENTIONS), PRESETS["small"]]
)
def test_no_two_products_of_the_int8_graph_leave_16_bits(config: Config) -> None:
    """A CPU without VNNI adds two of an activation (at most 255) and a weight in 16 bits, which saturate."""
    onnx = pytest.importorskip("onnx")
    from chatbot.variants.onnx_graph import greedy_graph

    model = greedy_graph(Chatbot.random(config), int8=True)
    weights = [onnx.numpy_helper.to_array(w) for w in model.graph.initializer if w.data_type == onnx.TensorProto.INT8]
    assert len(weights) >= 2 * (2 * config.encoder_layers + config.decoder_layers) + 2
    for weight in weights:  # (in, out)
        largest = np.sort(np.abs(weight.astype(np.int64)), axis=0)[-2:]
        assert 255 * largest.sum(0).max() <= np.iinfo(np.int16).max
        assert largest.max() >= 60, "most of the bits that are left are used"
