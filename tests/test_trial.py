"""Fresh pinned processes: what a launch is, how it is lost, and that nothing stays behind."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from launches import made_trial
from numpy.typing import NDArray

from chatbot import cache, compiler
from chatbot.variants import BASELINE, CONTROL, Workload
from chatbot.vocabulary import EOS
from ray_jobs.measure.replies import LEAST_COMPARED
from ray_jobs.measure.result import TIMED, WARMUP, Launch, LaunchResult, Limits, Memory, Samples
from ray_jobs.measure.trial import Checkpoint, Inputs, ModelSource, Preset
from ray_jobs.process import lease
from ray_jobs.process import server as launch_server
from ray_jobs.process import trial as launch
from ray_jobs.process.cores import choose_cores, topology
from ray_jobs.process.lease import Lease
from ray_jobs.process.server import LaunchServer, Loss, LossKind, Request, TrialError, dumps
from ray_jobs.process.trial import (
    ATTEMPTS,
    WHOLE,
    Committed,
    Failure,
    TrialOutcome,
    run_trial,
)
from ray_jobs.process.untimed import Alive

pytestmark = pytest.mark.process

WORKLOAD = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
NAMES = (BASELINE, CONTROL, "torchscript")
CORES = choose_cores(os.sched_getaffinity(0), 1, topology()).cpus
TRIAL, TINY = made_trial(workload=WORKLOAD, variants=NAMES), Preset("tiny")


def prompts(count: int = 1000) -> NDArray[np.int64]:
    pool = np.random.default_rng(0).integers(3, 50, (count, 4))
    pool[:, -1] = EOS
    return pool


def request(model: ModelSource = TINY, timeout_s: float = 60.0, index: int = 0) -> Request:
    asked = Launch(index, seed=1, rounds=3, calls=2)
    return Request(partial(launch._launch, TRIAL, inputs(model), WHOLE, asked, CORES, {}), CORES, 1, timeout_s)


def inputs(model: ModelSource = TINY) -> Inputs:
    return Inputs(model, {WORKLOAD.prompt_tokens: prompts()})


@pytest.fixture(scope="module")
def server() -> Iterator[LaunchServer]:
    with LaunchServer(WORKLOAD) as running:
        yield running


@pytest.fixture
def endless(tmp_path: Path) -> Checkpoint:
    """Weights that are never done being read: a launch that hangs."""
    path = tmp_path / "endless.pt"
    os.mkfifo(path)
    return Checkpoint(str(path))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def success(outcome: object) -> LaunchResult:
    assert isinstance(outcome, LaunchResult), outcome
    return outcome


def test_launches_are_fresh_processes_pinned_to_the_asked_cores(server: LaunchServer) -> None:
    first, second = success(server.run(request())), success(server.run(request(index=1)))
    assert first.machine["pid"] != second.machine["pid"]
    assert os.getpid() not in (first.machine["pid"], second.machine["pid"])
    for result in (first, second):
        assert tuple(result.machine["cores"]) == CORES
        assert result.machine["threads"] == 1
        assert result.rounds == 3


# For each line on its input a fork of it, as a launch is one of its server's, tells how long its replies took.
LOOP = """
import os, statistics, sys, time, torch
os.sched_setaffinity(0, {int(sys.argv[1])})
torch.set_num_threads(1)
from chatbot.config import PRESETS
from chatbot.model import Chatbot
def median_ns():
    search = Chatbot.random(PRESETS["tiny"]).search()
    prompts, lengths, times = torch.tensor([[5, 6, 7, 2]]), torch.tensor([4]), []
    with torch.inference_mode():
        for _ in range(300):
            start = time.perf_counter()
            search(prompts, lengths, 3)
            times.append(time.perf_counter() - start)
    return statistics.median(times[100:]) * 1e9
for _ in sys.stdin:
    if os.fork() == 0:
        print(median_ns(), flush=True)
        os._exit(0)
    os.wait()
"""


def median_ns(samples: Samples) -> float:
    """Of the baseline's timed replies."""
    return float(np.median(samples.wall_ns[(samples.phase == TIMED) & (samples.variant == NAMES.index(BASELINE))]))


@pytest.fixture
def by_hand() -> Iterator[Callable[[], float]]:
    """The ns of a reply in a loop written by hand, in a process of its own."""
    command = [sys.executable, "-c", LOOP, str(CORES[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        asks, answers = process.stdin, process.stdout
        assert asks is not None
        assert answers is not None

        def time_it() -> float:
            asks.write("again\n")
            return float(answers.readline())

        yield time_it


@pytest.mark.alone
def test_a_launch_agrees_with_a_loop_written_by_hand(server: LaunchServer, by_hand: Callable[[], float]) -> None:
    """Within a factor of two, and each at its best of five by turns: the machine's speed changes between processes."""
    turns = [(median_ns(success(server.run(request())).samples), by_hand()) for _ in range(5)]
    measured, looped = map(min, zip(*turns, strict=True))
    assert 0.5 < measured / looped < 2


def test_the_same_launch_asks_the_same_prompts_in_the_same_order(server: LaunchServer) -> None:
    first, again = success(server.run(request())), success(server.run(request()))
    other = success(server.run(request(index=1)))
    assert first.built == again.built
    turns = [result.samples.variant[result.samples.phase != WARMUP].tolist() for result in (first, again)]
    assert turns[0] == turns[1]
    assert first.built != other.built


def test_a_launch_that_raises_is_a_failure_with_a_line(server: LaunchServer, tmp_path: Path) -> None:
    outcome = server.run(request(Checkpoint(str(tmp_path / "nowhere.pt"))))
    assert isinstance(outcome, Loss)
    assert outcome.kind == LossKind.RAISED
    assert "nowhere.pt" in outcome.reason
    assert "\n" not in outcome.reason


def test_a_launch_that_hangs_is_ended_at_its_deadline(server: LaunchServer, endless: Checkpoint) -> None:
    outcome = server.run(request(endless, timeout_s=1.0))
    assert isinstance(outcome, Loss)
    assert outcome.kind == LossKind.LATE
    assert "did not finish in its time" in outcome.reason
    assert children(server.pid) == []
    assert isinstance(server.run(request()), LaunchResult), "the server goes on"


def test_a_launch_that_outlasts_its_time_is_told_with_the_way_out(endless: Checkpoint) -> None:
    told = run_trial(replace(TRIAL, launch_timeout_s=1.0), inputs(endless))
    lost = next(outcome for outcome in told if isinstance(outcome, Failure))
    assert lost.reason.endswith(" (1 s; --launch-timeout gives a launch more)")


def test_a_killed_launch_is_named_by_its_signal(server: LaunchServer, endless: Checkpoint) -> None:
    def kill() -> None:
        wait_until(lambda: bool(children(server.pid)))
        os.kill(children(server.pid)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = server.run(request(endless))
    killer.join()
    assert isinstance(outcome, Loss)
    assert outcome.kind == LossKind.DIED
    assert "SIGKILL" in outcome.reason


HALF = """
import os, signal, stat
for fd in range(3, 64):
    try:
        sends = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        continue
    if sends:
        os.write(fd, (1000).to_bytes(8, "little") + b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""
CRASH = """
import os, resource, signal
from ray_jobs.measure import busy
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
busy.enter(["eager", "torchscript"])
busy.at(1)
os.kill(os.getpid(), signal.SIGSEGV)
"""
UNREADABLE = "type('Odd', (), {'__reduce__': lambda self: (int, ('x',))})()"


@pytest.mark.parametrize(
    ("work", "kind", "reason"),
    [
        (partial(exec, HALF), LossKind.DIED, "it was killed by SIGKILL"),
        (partial(exec, CRASH), LossKind.DIED, "it was killed by SIGSEGV in torchscript"),
        (partial(eval, UNREADABLE), LossKind.RAISED, "its result can't be read: ValueError"),
        (partial(eval, "lambda: 0"), LossKind.RAISED, "PicklingError"),
    ],
    ids=["killed while it sends", "crashed in a variant", "can't be unpickled", "can't be pickled"],
)
def test_a_result_that_does_not_arrive_costs_that_launch_only(
    server: LaunchServer, work: Callable[[], object], kind: LossKind, reason: str
) -> None:
    outcome = server.run(replace(request(), work=work))
    assert isinstance(outcome, Loss)
    assert outcome.kind == kind
    assert reason in outcome.reason
    assert server.run(replace(request(), work=partial(int, "7"))) == 7, "the server goes on"


OPEN = "(lambda os: [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')])(__import__('os'))"


def test_a_launch_holds_none_of_its_trials_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launch starts would hold them too, for as long as it lives; its server holds them."""
    monkeypatch.setenv(lease.FOLDER, str(tmp_path / "locks"))
    with Lease(["core-0"], "me") as held:
        assert held.take() is None
        with LaunchServer(WORKLOAD, descriptors=held.descriptors) as holding:
            opened = holding.run(replace(request(), work=partial(eval, OPEN)))
            kept = [os.readlink(path) for path in Path(f"/proc/{holding.pid}/fd").iterdir()]
    assert [name for name in opened if name.endswith(".lock")] == []
    assert str(tmp_path / "locks" / "core-0.lock") in kept


def test_a_launch_leaves_its_compilers_less_time_than_it_has(server: LaunchServer) -> None:
    """One that is too slow costs its variant then, not the launch."""
    assert 0 < server.run(replace(request(timeout_s=20.0), work=compiler.patience_s)) < 20


def test_a_request_leaves_out_what_its_server_was_given(server: LaunchServer) -> None:
    """Prompts and weights go to the server once; a launch that mentions them finds them as they were."""
    asked = Launch(0, seed=1, rounds=3, calls=2)
    given = inputs()
    mentions = Request(partial(launch._launch, TRIAL, given, WHOLE, asked, CORES, {}), CORES, 1, 60.0)
    assert len(dumps(mentions, given)) < 2000 < given.pool(WORKLOAD).nbytes < len(dumps(mentions, None))
    with LaunchServer(WORKLOAD, given=given) as knowing:
        found, told = knowing.run(mentions), server.run(mentions)
    assert isinstance(found, LaunchResult)
    assert isinstance(told, LaunchResult)
    assert found.launch == told.launch == asked
    assert [facts.identical for facts in found.facts.values()] == [facts.identical for facts in told.facts.values()]
    assert found.facts[BASELINE].replies > 0


class Breaks:
    """What can be sent and not be read."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("breaks on arrival",)


def test_what_a_server_can_not_be_given_is_told_when_it_is_asked() -> None:
    with (
        LaunchServer(WORKLOAD, given=Breaks()) as server,
        pytest.raises(TrialError, match=r"died: .*breaks on arrival"),
    ):
        server.run(request())


def test_launches_share_a_cache_of_their_own_where_the_users_cant_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled is found again by the next launch, and is gone with the server."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    with LaunchServer(WORKLOAD) as server:
        (told,) = server.warnings
        assert told.startswith(f"what was compiled is not kept: {tmp_path}/cache may be written by others (mode 777)")
        first, second = (server.run(replace(request(), work=partial(os.getenv, cache.CACHE))) for _ in range(2))
        assert first == second != str(tmp_path / "cache")
        assert Path(first).stat().st_mode & 0o777 == 0o700
    assert not Path(first).exists()


HELPER = """
import os, time
if os.fork() == 0:
    os.setsid()
    os.write(os.open("helper", os.O_WRONLY | os.O_CREAT), str(os.getpid()).encode())
time.sleep(600)
"""
ASKS = """
import sys
from functools import partial
from chatbot.variants import Workload
from ray_jobs.process.server import LaunchServer, Request
with LaunchServer(Workload()) as server:
    server.run(Request(partial(exec, sys.argv[1]), (int(sys.argv[2]),), 1, 60.0))
"""


def test_what_a_launch_started_does_not_survive_a_caller_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ASKS, HELPER, str(CORES[0])]
    told = tmp_path / "helper"
    with subprocess.Popen(command, cwd=tmp_path, env=IMPORTING) as caller:
        try:
            wait_until(lambda: told.exists() and bool(told.read_text()))
        finally:
            caller.kill()
    wait_until(lambda: gone(int(told.read_text())))


def test_after_a_megabyte_of_complaints_the_next_one_is_read_as_it_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile("a+b") as said:
        monkeypatch.setattr(sys, "stderr", said)
        os.write(said.fileno(), b"x" * (launch_server.COMPLAINTS_BYTES + 1))
        launch_server._shorten_complaints()
        os.write(said.fileno(), b"no space left")
        assert os.pread(said.fileno(), 100, 0) == b"no space left"


def test_a_server_that_hangs_is_not_called_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_server, "GRACE_S", 0.1)
    monkeypatch.setattr(launch_server, "START_S", 0.1)
    monkeypatch.setattr(launch_server, "LEAVE_S", 0.1)
    with LaunchServer(WORKLOAD) as server:
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(TrialError, match="the launch server hangs"):
            server.run(request(timeout_s=0.1))


def ask_and_be_refused(server: LaunchServer, asked: Request) -> None:
    with pytest.raises(TrialError, match="the launch server died"):
        server.run(asked)


def test_closing_the_server_ends_the_launch_in_progress(endless: Checkpoint) -> None:
    with LaunchServer(WORKLOAD) as server:
        asking = threading.Thread(target=ask_and_be_refused, args=(server, request(endless)))
        asking.start()
        wait_until(lambda: bool(children(server.pid)))
        pids = [server.pid, *children(server.pid)]
        os.kill(server.pid, signal.SIGKILL)
        asking.join()
    wait_until(lambda: all(gone(pid) for pid in pids))


IMPORTING = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # this file and its helpers
CALLER = """
import os, sys
from test_trial import request, WORKLOAD
from ray_jobs.process.server import LaunchServer
from ray_jobs.measure.trial import Checkpoint, Inputs, ModelSource, Preset
with LaunchServer(WORKLOAD) as server:
    print(server.pid, flush=True)
    server.run(request(Checkpoint(sys.argv[1])))
"""


def test_nothing_survives_a_caller_that_is_killed(endless: Checkpoint) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(endless.path)],
        stdout=subprocess.PIPE,
        text=True,
        env=IMPORTING,
    )
    assert caller.stdout is not None
    server_pid = int(caller.stdout.readline())
    wait_until(lambda: bool(children(server_pid)))
    pids = [server_pid, *children(server_pid)]
    caller.kill()
    caller.wait()
    caller.stdout.close()
    wait_until(lambda: all(gone(pid) for pid in pids))


ALL_DONE = tuple(Committed(i, 3, 2, {}, 1.0) for i in range(12))  # whole blocks that outlasted the budget


def test_variants_of_another_device_lengthen_no_block_and_are_told() -> None:
    trial = replace(TRIAL, variants=(*NAMES, "cuda-graph", "triton-graph"), memory=False)
    outcomes = [outcome for outcome in run_trial(trial, inputs()) if not isinstance(outcome, Alive)]
    results = [success(outcome) for outcome in outcomes]
    assert len(results) == 12, "a block is of the three that can run here"
    for place in range(3):
        assert sorted(result.built[place] for result in results) == sorted(NAMES * 4)
    assert all(result.facts["cuda-graph"].skipped for result in results)
    assert all(sorted(result.built) == sorted(trial.variants) for result in results)


def test_a_trial_runs_whole_blocks_and_then_the_memory_and_limit_of_each_variant() -> None:
    *launches, memory, limits = (outcome for outcome in run_trial(TRIAL, inputs()) if not isinstance(outcome, Alive))
    results = [success(outcome) for outcome in launches]
    assert [result.launch.index for result in results] == list(range(len(results)))
    assert len(results) == 12, "three variants: the least whole blocks of ten launches; the budget is long over"
    for place in range(3):
        assert sorted(result.built[place] for result in results) == sorted(NAMES * 4)
    assert isinstance(memory, Memory)
    assert set(memory.peak_mb) == set(NAMES)
    assert isinstance(limits, Limits)
    assert set(limits.of) == set(NAMES)
    assert len({result.machine["pid"] for result in results}) == len(results)


def test_a_trial_that_leaves_memory_out_leaves_the_limit_out_too() -> None:
    with_both, without = (
        [
            type(one)
            for one in run_trial(replace(TRIAL, memory=asked), inputs(), committed=ALL_DONE)
            if not isinstance(one, Alive)
        ]
        for asked in (True, False)
    )
    assert with_both == [Memory, Limits]
    assert without == []


def test_an_approximate_variant_is_compared_on_distinct_prompts_after_the_launches() -> None:
    asked = replace(TRIAL, variants=(BASELINE, CONTROL, "int8"))
    outcomes = run_trial(asked, inputs(), committed=ALL_DONE)
    memory = next(outcome for outcome in outcomes if isinstance(outcome, Memory))
    assert set(memory.compared) == {"int8"}, "exact ones are held to their promise in every launch"
    assert memory.compared["int8"].replies == LEAST_COMPARED
    assert 0 < memory.compared["int8"].identical <= LEAST_COMPARED


def test_a_trial_gives_up_after_its_attempts(tmp_path: Path) -> None:
    outcomes: list[TrialOutcome] = []

    def take_all() -> None:
        for outcome in run_trial(TRIAL, inputs(Checkpoint(str(tmp_path / "nowhere.pt")))):
            outcomes.append(outcome)

    with pytest.raises(TrialError, match=rf"launch 0 failed {ATTEMPTS} times, last: .*nowhere\.pt"):
        take_all()
    failures = [outcome.launch for outcome in outcomes if isinstance(outcome, Failure)]
    assert [(lost.index, lost.attempt) for lost in failures] == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees a CUDA device")
def test_a_gpu_that_pytorch_does_not_see_fails_the_trial_at_once_in_one_line() -> None:
    on_gpu = replace(TRIAL, workload=replace(WORKLOAD, device="cuda"))
    with pytest.raises(
        TrialError, match=r"^PyTorch \S+ sees no CUDA device here \(install .*, or leave --device cuda out\)$"
    ):
        list(run_trial(on_gpu, inputs()))
