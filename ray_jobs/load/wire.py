"""The few bytes between who sends requests and who answers them: a number there, that and two times back.

The inputs of a window were handed out before it. Messages are shorter than what a pipe writes in one piece.
"""

import os
from struct import Struct

ASK = Struct("<q")  # the number of a request; or when to begin, in offline
ANSWER = Struct("<qqq")  # its number, and when its replica began and ended it
OVER = -1  # instead of a number: no more requests; in an answer: so many of them could not be answered, then 0
READY = ASK.pack(0)
PIECE = 4096  # bytes that a pipe writes in one piece (PIPE_BUF)
MOST_ANSWERS = PIECE // ANSWER.size  # that are written in one piece


def read(descriptor: int, size: int) -> bytes:
    """One message. Raises EOFError where the other end has gone."""
    message = os.read(descriptor, size)
    if len(message) < size:
        raise EOFError
    return message
