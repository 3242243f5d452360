"""A forked process that leaves nothing behind, whatever it starts and however it ends."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.process import memory

ROOT = Path(__file__).resolve().parent.parent

# A process that forks, as the launch server does; what it finds is its only line. ``sleeper`` starts what lives long.
PROGRAM = """
import json, os, signal, socket, subprocess, sys, time
from ray_jobs.process import fork

def alive(pid):
    try:
        return open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

def told(pid):
    fd = os.open("pids", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{{pid}} ".encode())
    os.close(fd)
    return pid

def sleeper(session=False):
    pid = os.fork()
    if pid == 0:
        if session:
            os.setsid()
        told(os.getpid())
        time.sleep(60)
    return pid

def pids(count=0):
    while True:
        found = open("pids").read().split() if os.path.exists("pids") else []
        if len(found) >= count:
            return [int(pid) for pid in found]
        time.sleep(0.01)

fork.adopt()
ours, theirs = socket.socketpair()

def run(work, timeout_s=20.0, closed=()):
    start = time.monotonic()
    ended = fork.run(work, timeout_s, theirs.fileno(), closed)
    return ended, time.monotonic() - start

{body}
"""


def found(body: str, folder: Path) -> Any:
    """What the body prints, in a process of its own."""
    program = PROGRAM.format(body=textwrap.dedent(body))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.process
def test_a_result_arrives_whole_whatever_its_size(tmp_path: Path) -> None:
    said = found("print(json.dumps([len(run(lambda: b'x' * size)[0].result) for size in (0, 1, 3_000_000)]))", tmp_path)
    assert said == [0, 1, 3_000_000]


@pytest.mark.process
@pytest.mark.parametrize("session", [False, True], ids=["in its group", "in a session of its own"])
def test_a_helper_that_outlives_the_work_is_ended_and_does_not_make_it_late(session: bool, tmp_path: Path) -> None:
    result, seconds, left = found(
        f"""
        ended, seconds = run(lambda: (sleeper({session}), pids(1), b"done")[-1])
        print(json.dumps([ended.result.decode(), seconds, [pid for pid in pids(1) if alive(pid)]]))
        """,
        tmp_path,
    )
    assert result == "done"
    assert seconds < 15
    assert left == []


@pytest.mark.process
def test_at_the_deadline_the_helpers_of_helpers_end_too(tmp_path: Path) -> None:
    late, left = found(
        """
        def work():
            if os.fork() == 0:
                os.setsid()
                told(os.getpid())
                sleeper(session=True)
            pids(2)
            told(os.getpid())
            time.sleep(60)
        ended, _ = run(work, timeout_s=1.0)
        print(json.dumps([ended.late, [pid for pid in pids(3) if alive(pid)]]))
        """,
        tmp_path,
    )
    assert late
    assert left == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("death", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "was killed by signal 40"),
        ("os._exit(7)", "ended with exit code 7 and no result"),
        ("(os.write(5, (99).to_bytes(8, 'little') + b'half'), os._exit(0))", "ended with exit code 0 and no result"),
    ],
    ids=["signal", "signal without a name", "exit", "half a result"],
)
def test_a_death_is_told_at_once_though_a_helper_lives(death: str, text: str, tmp_path: Path) -> None:
    """A helper by fork(2) holds copies of all descriptors, so nobody sees the end of the result's pipe by itself."""
    said, seconds, left = found(
        f"""
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ended, seconds = run(lambda: (sleeper(True), pids(1), {death}))
        said = ended.text if ended.result is None else "a result"
        print(json.dumps([said, seconds, [pid for pid in pids(1) if alive(pid)]]))
        """,
        tmp_path,
    )
    assert said == text
    assert seconds < 15
    assert left == []


@pytest.mark.process
def test_a_caller_that_goes_away_ends_everything(tmp_path: Path) -> None:
    said, left = found(
        """
        signal.signal(signal.SIGALRM, lambda *_: (pids(1), ours.close()))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            run(lambda: (sleeper(True), time.sleep(60)), closed=[ours.fileno()])
        except fork.CallerGoneError:
            print(json.dumps(["gone", [pid for pid in pids(1) if alive(pid)]]))
        """,
        tmp_path,
    )
    assert (said, left) == ("gone", [])


@pytest.mark.process
def test_a_process_has_none_of_the_descriptors_that_are_not_its_own(tmp_path: Path) -> None:
    theirs, helpers = found(
        """
        lease = os.open("lock", os.O_RDWR | os.O_CREAT)
        def open_ones():
            links = [f"/proc/self/fd/{fd}" for fd in range(3, 64)]
            return [os.readlink(link) for link in links if os.path.lexists(link)]
        def work():
            mine = open_ones()
            read, write = os.pipe()
            if os.fork() == 0:
                os.close(read)
                os.write(write, json.dumps(open_ones()).encode())
                os._exit(0)
            os.close(write)
            return json.dumps([mine, json.loads(os.read(read, 10000))]).encode()
        print(run(work, closed=[lease, ours.fileno()])[0].result.decode())
        """,
        tmp_path,
    )
    assert [name for name in theirs if "lock" in name or "socket" in name] == []
    assert len([name for name in theirs if "pipe" in name]) == 1, "the end that it sends its result through"
    assert len([name for name in helpers if "pipe" in name]) == 1, "its own, not the result's"


@pytest.mark.process
def test_it_ends_with_the_process_that_forked_it(tmp_path: Path) -> None:
    (pid,) = found(
        """
        def work():
            told(os.getpid())
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if os.fork() == 0:
            run(work)
        print(json.dumps(pids(1)))
        """,
        tmp_path,
    )
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.process
def test_descriptors_above_1023_are_waited_for_too(tmp_path: Path) -> None:
    said = found(
        """
        import fcntl, resource
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if most < 1100:
            print(json.dumps("too few"))
            sys.exit()
        high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 1050)
        print(json.dumps(fork.run(lambda: b"done", 20.0, high).result.decode()))
        """,
        tmp_path,
    )
    if said == "too few":
        pytest.skip("this user may not open 1100 files")
    assert said == "done"


# Why it was killed


def tree(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root / "proc", root / "cgroup"


VMSTAT = {"proc/vmstat": "nr_free_pages 1\noom_kill 9\n"}


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"proc/self/cgroup": "0::/job\n", "cgroup/job/memory.events": "low 0\noom 5\noom_kill 4\n"} | VMSTAT, 4),
        ({"proc/self/cgroup": "0::/elsewhere\n", "cgroup/memory.events": "oom_kill 3\n"} | VMSTAT, 3),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/a:b\n0::/\n",
                "cgroup/memory/a:b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            }
            | VMSTAT,
            2,
        ),
        ({"proc/self/cgroup": "0::/\n"} | VMSTAT, 9),
        ({"proc/version": ""}, 0),
    ],
    ids=["version 2", "a container", "version 1", "the machine's", "untold"],
)
def test_kills_for_want_of_memory_are_counted_where_the_group_tells(
    files: dict[str, str], count: int, tmp_path: Path
) -> None:
    assert memory.kills(*tree(tmp_path, files)) == count
