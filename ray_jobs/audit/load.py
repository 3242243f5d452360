"""A background load that is the same every time: bursts of copying memory on every core, by a seeded timetable.

``python -m ray_jobs.audit.load SEED CORE SHARE`` is one core's load; it ends with the process that started it.
"""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray_jobs.provenance import python_path

SHARE = 0.2  # of the time it wants each core; next to a launch it gets less
BURST_S = (0.02, 0.2)
BYTES = 8_000_000


@contextmanager
def background_load(seed: int, cores: Sequence[int], share: float = SHARE) -> Iterator[list[int]]:
    """Runs the load on each of these cores while the block lasts; gives the process ids."""
    command = [sys.executable, "-P", "-m", "ray_jobs.audit.load"]
    env, own = {**os.environ, "PYTHONPATH": python_path()}, str(os.getpid())
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for core in cores:
            arguments = [str(seed + core), str(core), str(share), own]
            # In a session of its own: an interrupt is for the audit, which ends the load.
            processes.append(subprocess.Popen([*command, *arguments], env=env, start_new_session=True))
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def timetable(seed: int, share: float) -> Iterator[tuple[float, float]]:
    """(seconds busy, seconds idle) for ever; ``share`` of the time is busy."""
    draw = random.Random(seed)
    while True:
        busy = draw.uniform(*BURST_S)
        yield busy, busy * (1 - share) / share * draw.uniform(0.5, 1.5)


def _work(seed: int, core: int, share: float, parent: int) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before we asked
        return
    os.sched_setaffinity(0, {core})
    block = bytearray(BYTES)
    for busy, idle in timetable(seed, share):
        until = time.perf_counter() + busy
        while time.perf_counter() < until:
            bytes(block)
        time.sleep(idle)


if __name__ == "__main__":
    _work(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
