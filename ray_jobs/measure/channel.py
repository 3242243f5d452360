"""Plain data between the conductor of a launch and the process of a side: a line of JSON, then the bytes of arrays.

A side may run another Python, PyTorch and NumPy, so nothing is pickled.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1  # of the messages; another one's are not understood

Content = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]
NO_ARRAYS: Arrays = MappingProxyType({})


class Channel:
    """One end of two pipes."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self.incoming, self.outgoing = incoming, outgoing

    def send(self, content: Content, arrays: Arrays = NO_ARRAYS) -> None:
        """Sends plain values and arrays of numbers. Raises OSError where the other end has gone."""
        whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        shapes = [[name, array.dtype.str, list(array.shape)] for name, array in whole.items()]
        self.outgoing.write(json.dumps({"version": VERSION, "content": content, "arrays": shapes}).encode() + b"\n")
        for array in whole.values():
            self.outgoing.write(array.tobytes())
        self.outgoing.flush()

    def receive(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The other end's next message.

        Raises:
            EOFError: it has gone.
            ValueError: it speaks another version.
        """
        line = self.incoming.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        told = json.loads(line)
        if told["version"] != VERSION:
            raise ValueError(f"messages of version {told['version']} are not understood, only of {VERSION}")
        return told["content"], {name: self._array(dtype, shape) for name, dtype, shape in told["arrays"]}

    def _array(self, dtype: str, shape: list[int]) -> NDArray[Any]:
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        content = self.incoming.read(count)
        if len(content) < count:
            raise EOFError
        return np.frombuffer(content, kind).reshape(shape).copy()

    def close(self) -> None:
        """Hangs up."""
        for end in (self.outgoing, self.incoming):
            with suppress(OSError):  # what was not sent yet reaches nobody
                end.close()
