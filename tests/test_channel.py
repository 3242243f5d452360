"""Messages between the conductor of a launch and the process of a side."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, integer_dtypes
from numpy.typing import NDArray

from ray_jobs.measure.channel import VERSION, Channel

LEAVES = st.none() | st.booleans() | st.integers() | st.text()
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
ARRAYS = st.dictionaries(st.text(), arrays(integer_dtypes(), array_shapes(min_dims=0, min_side=0)), max_size=3)


def sent(*messages: tuple[dict[str, object], dict[str, NDArray[Any]]]) -> bytes:
    written = io.BytesIO()
    for content, given_arrays in messages:
        Channel(io.BytesIO(), written).send(content, given_arrays)
    return written.getvalue()


@given(st.lists(st.tuples(st.dictionaries(st.text(), PLAIN), ARRAYS), max_size=3))
def test_messages_arrive_as_they_were_sent(messages: list[tuple[dict[str, object], dict[str, NDArray[Any]]]]) -> None:
    reading = Channel(io.BytesIO(sent(*messages)), io.BytesIO())
    for content, expected in messages:
        told, found = reading.receive()
        assert told == content
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()
    with pytest.raises(EOFError):
        reading.receive()


@pytest.mark.parametrize("most", [0, 5, 60, -1])
def test_a_message_that_is_cut_off_is_the_end(most: int) -> None:
    whole = sent(({"do": "turn"}, {"a": np.arange(9)}))
    with pytest.raises(EOFError):
        Channel(io.BytesIO(whole[:most]), io.BytesIO()).receive()


def test_another_version_is_not_guessed_at() -> None:
    line = json.dumps({"version": VERSION + 1, "content": {}, "arrays": []}).encode() + b"\n"
    with pytest.raises(ValueError, match=rf"version {VERSION + 1} are not understood, only of {VERSION}"):
        Channel(io.BytesIO(line), io.BytesIO()).receive()
