"""The launch server where things are not as usual: an agent's thread, anybody's files about it, its own sudden end."""

import importlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatbot.variants import Workload
from ray_jobs.measure import busy
from ray_jobs.process import fork, memory
from ray_jobs.process.server import LaunchServer, Loss, LossKind, Request, TrialError, _launched
from ray_jobs.sides import Side

AGENT = "import threading, time\nthreading.Thread(target=lambda: time.sleep(60), daemon=True, name='agent').start()\n"


CORES = tuple(sorted(os.sched_getaffinity(0))[:1])


def where_json_is() -> str:
    return str(importlib.import_module("mine").json.__file__)


@pytest.mark.process
def test_a_thread_that_an_agent_starts_in_every_python_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(AGENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with LaunchServer(Workload()) as server, pytest.raises(TrialError, match="agent of module sitecustomize") as caught:
        server.run(Request(where_json_is, CORES, 1, 30.0))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.process
def test_a_file_where_one_stands_is_imported_in_no_launch_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of one's own is found there all the same; what it stands beside is not."""
    for name in ("chatbot", "json", "gc"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "mine.py").write_text("import json\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*filter(None, sys.path), str(tmp_path)])
    with LaunchServer(Workload(model="mine:make")) as server:
        place = server.run(Request(where_json_is, CORES, 1, 30.0))
    assert Path(place).parent.name == "json"


@pytest.mark.parametrize(
    ("kills", "how"), [((3, 4), "ran out of memory: the kernel killed it"), ((3, 3), "was killed by SIGKILL")]
)
def test_a_launch_that_the_kernel_killed_for_want_of_memory_says_so(
    kills: tuple[int, int], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> fork.Ended:
        busy.enter(["eager", "torchscript"])
        busy.at(1)
        return fork.Ended(signal=signal.SIGKILL)

    counted = iter(kills)
    monkeypatch.setattr(memory, "kills", lambda: next(counted))
    monkeypatch.setattr(fork, "run", killed)
    loss = pickle.loads(_launched(Request(where_json_is, CORES, 1, 30.0), caller=-1, leases=()))
    busy.at(None)
    assert loss == Loss(LossKind.DIED, f"it {how} in torchscript", "torchscript")


@pytest.mark.process
@pytest.mark.parametrize(
    ("told", "said"),
    [("3.9", "its Python is 3.9, at least 3.11 is needed"), ("3.11", "the launch server died: Try `python -h'")],
)
def test_an_interpreter_that_is_too_old_is_named(told: str, said: str, tmp_path: Path) -> None:
    """It knows no option -P, and says how to ask for help."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ $1 = -c ] && echo {told} && exit\necho "Try \\`python -h\'" >&2\nexit 2\n')
    python.chmod(0o755)
    with LaunchServer(Workload(), side=Side("old", str(python))) as server, pytest.raises(TrialError) as caught:
        server.run(Request(where_json_is, CORES, 1, 30.0))
    assert str(caught.value) == said


@pytest.mark.process
def test_helpers_with_a_session_of_their_own_end_with_a_server_that_is_killed() -> None:
    """A launch ends by itself then; what it had started is known by its environment alone."""
    with LaunchServer(Workload()) as server:
        server.wait()  # else its environment may not be there yet to be read
        of_the_server = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
        env = dict(one.split(b"=", 1) for one in of_the_server if b"=" in one)
        command = ["sleep", "60"]
        helper = subprocess.Popen(command, env=env, start_new_session=True)
        stranger = subprocess.Popen(command, start_new_session=True)
        os.kill(server.pid, signal.SIGKILL)
    try:
        assert helper.wait(5) == -signal.SIGKILL
        assert stranger.poll() is None
    finally:
        for one in (helper, stranger):
            one.kill()
            one.wait()
