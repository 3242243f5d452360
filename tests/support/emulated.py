"""The persistent kernel on a CPU: its source compiled as C++, with blocks and barriers of ``emulation.h``."""

import ctypes
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

from chatbot import compiler
from chatbot.model import Chatbot
from chatbot.persistent import build
from chatbot.persistent.engine import Engine, Task
from chatbot.persistent.plan import Card, Plan, plan

THREADS = 64  # of a block, two warps: enough to go wrong
CARD = Card("a made-up GPU", (9, 0), multiprocessors=7, shared_bytes=200 * 1024)
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fPIC", "-shared", f"-DTHREADS={THREADS}")


@cache
def library() -> ctypes.CDLL:
    """Compiles it, once for each process that tests."""
    place = Path(mkdtemp(prefix="emulated-"))
    made, here = place / "reply.so", Path(__file__).parent
    command = [*compiler.command(compiler.COMPILERS), *FLAGS, f"-I{build.SOURCES}", f"-I{here}"]
    done = compiler.run([*command, str(here / "emulation.cpp"), "-o", str(made)], 120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    functions = ctypes.CDLL(str(made))
    made.unlink()
    place.rmdir()
    return functions


class Emulated:
    """Runs the kernel, with blocks, warps and threads in order or ``backwards``; counts the last call's barriers."""

    def __init__(self, backwards: bool = False) -> None:
        self.backwards, self.barriers = backwards, 0

    def __call__(self, task: Task, plan: Plan) -> None:
        assert plan.threads == THREADS
        self.barriers = library().emulate(ctypes.byref(task), plan.blocks, plan.floats, int(self.backwards))


def replies(
    bot: Chatbot, prompts: Tensor, steps: int, card: Card = CARD, stop: bool = False, backwards: bool = False
) -> Tensor:
    """The kernel's replies to prompts (B, T)."""
    batch, tokens = prompts.shape
    made = plan(bot.config, batch, tokens, card, THREADS)
    return Engine(bot, made, Emulated(backwards), steps, stop)(prompts, torch.tensor([]))
