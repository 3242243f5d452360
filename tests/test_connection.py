"""Joining and leaving Ray: without a cluster."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from launches import made_trial, prompts

from chatbot.errors import UsageError
from ray_jobs.cluster import connection
from ray_jobs.cluster.connection import TOO_SLOW, connected
from ray_jobs.cluster.job import host_and_port, ray_address
from ray_jobs.cluster.session_folder import KEEP_S, KEPT, SessionFolder, session_folder
from ray_jobs.cluster.signals import Terminated, terminable
from ray_jobs.cluster.tasks import _measure
from ray_jobs.cluster.worker_path import SEARCHED, search_as_driver
from ray_jobs.measure.trial import Preset
from ray_jobs.process.untimed import Alive

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def hangups_are_heard() -> Iterator[None]:
    """A test run that was started by nohup ignores them, and a program that finds them ignored leaves them so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


SOCKET_BYTES = 107
SOCKET = "ray/session_2026-11-29_23-12-01_123456_1234567/sockets/plasma_store"


def told_to_end(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def told_inside_a_call_of_ray(number: int) -> None:
    """Its calls catch what a signal handler raised, and raise a KeyboardInterrupt of their own."""
    try:
        told_to_end(number)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


def told_twice(number: int) -> None:
    try:
        told_to_end(number)
    finally:
        os.kill(os.getpid(), number)
        time.sleep(0.05)


@SIGNALS
def test_a_signal_is_told_from_ctrl_c(number: int) -> None:
    with pytest.raises(Terminated), terminable():
        told_to_end(number)
    with pytest.raises(KeyboardInterrupt) as raised, terminable():
        raise KeyboardInterrupt
    assert raised.type is KeyboardInterrupt


@SIGNALS
def test_a_signal_inside_a_call_of_ray_is_that_signal_still(number: int) -> None:
    with pytest.raises(Terminated), terminable():
        told_inside_a_call_of_ray(number)


@SIGNALS
def test_a_second_signal_does_not_disturb_the_clean_up_and_afterwards_all_is_as_before(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Terminated), terminable():
        told_twice(number)
    assert signal.getsignal(number) is before


def test_handlers_that_ray_replaced_are_put_back() -> None:
    with terminable() as arm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        arm()
        with pytest.raises(Terminated):
            told_to_end(signal.SIGTERM)


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("given", "variable", "message"),
    [
        (None, "http://127.0.0.1:8265", "RAY_ADDRESS=http://127.0.0.1:8265 is a dashboard"),
        ("https://head", None, "--address https://head is a dashboard"),
        (None, "ray://head:10001", "RAY_ADDRESS=ray://head:10001 keeps the driver off the cluster"),
        ("::1:6379", None, "--address ::1:6379 is no address: give local, auto or HOST:PORT, IPv6 as [ADDRESS]:PORT"),
        ("head", None, "--address head is no address"),
        ("head:99999", None, "--address head:99999 is no address"),
    ],
)
def test_an_address_that_no_driver_can_join_is_told_with_where_it_comes_from(
    given: str | None, variable: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(UsageError) as refused:
        ray_address(given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_addresses_that_can_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_address(None) == "local"
    assert [ray_address(one) for one in ("auto", "[::1]:6379", "head:6379")] == ["auto", "[::1]:6379", "head:6379"]
    assert host_and_port("[::1]:6379") == ("::1", 6379)


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.59.0
    Python: 3.12.1
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""
FAILURES = {
    "validate_socket_filename failed": OSError("validate_socket_filename failed: AF_UNIX path\nand more"),
    "PermissionError: [Errno 13]": PermissionError(13, "Permission denied", "/home/nobody/.ray"),
    "has Ray 2.59.0 and Python 3.12.1, this process Ray 2.60.0 and Python 3.11.7": RuntimeError(MISMATCH),
    "The current node timed out during startup": Exception("The current node timed out during startup."),
    "wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN": ray.exceptions.AuthenticationError("no token"),
}


def failing(error: Exception) -> Any:
    def init(**options: Any) -> None:
        raise error

    return init


@pytest.mark.parametrize("message", FAILURES)
def test_what_ray_raises_as_it_starts_is_one_line(
    message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray, "init", failing(FAILURES[message]))
    monkeypatch.setattr(connection, "session_folder", lambda: session_folder([str(tmp_path)]))
    with pytest.raises(UsageError) as refused, connected("local"):
        pass
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    (kept,) = tmp_path.iterdir()
    assert str(refused.value).endswith(f"its logs are in {kept}")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What Ray was asked for, and what it found there, without a Ray."""
    seen: dict[str, Any] = {}

    def init(**options: Any) -> None:
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        seen.update(options, token=token.read_text(), token_mode=token.stat().st_mode & 0o777)
        made = Path(options["_temp_dir"])
        made.mkdir(exist_ok=True)
        made.chmod(0o777)  # as Ray does, whatever was there
        seen["reachable"] = all(
            path.stat().st_mode & 0o001 for path in (made, *made.parents) if tmp_path in path.parents
        )

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(connection, "session_folder", lambda: session_folder([str(tmp_path)]))
    return seen


def test_a_local_run_has_a_private_folder_and_token_and_leaves_nothing(started: dict[str, Any], tmp_path: Path) -> None:
    with connected("local"):
        assert tmp_path in Path(started["_temp_dir"]).parents
        assert (started["reachable"], started["token_mode"]) == (False, 0o600)
        assert len(started["token"]) == 64
    assert list(tmp_path.iterdir()) == []
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


@pytest.mark.process
def test_a_ray_that_starts_too_slowly_is_started_once_more_without_what_is_left_of_it(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[subprocess.Popen[bytes]] = []

    def init(start: Callable[..., None] = ray.init, **options: Any) -> None:
        if not parts:
            sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
            parts.extend(subprocess.Popen(words) for words in (sleep, [*sleep, f"--log={options['_temp_dir']}/logs"]))
            raise Exception(f"The current node {TOO_SLOW}. This could happen because ...")
        start(**options)

    monkeypatch.setattr(ray, "init", init)
    with connected("local"):
        assert started["_temp_dir"]
        other, part = parts
        assert part.wait(10) == -signal.SIGKILL
        assert other.poll() is None, "it is none of that Ray's"
        other.kill()
        other.wait()


def test_workers_of_a_local_ray_search_where_the_driver_does_and_in_its_folder_last(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setattr(sys, "path", ["/sources", "/here"])
    with connected("local"):
        assert os.environ["PYTHONPATH"].split(os.pathsep)[1:] == ["/mine"]  # after this program's own
        monkeypatch.setattr(sys, "path", ["/ray", "/sources"])  # of a worker, which inherits the environment
        search_as_driver()
        assert sys.path == ["/ray", "/sources", "/here"]
    assert os.environ["PYTHONPATH"] == "/mine"
    job = started["job_config"]
    assert job._runtime_env_has_working_dir(), "Ray would put the folder that one stands in first"
    assert "working_dir" not in job.runtime_env


def test_workers_of_a_joined_cluster_search_the_drivers_folders_last(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "_reach", lambda *_: None)
    monkeypatch.setattr(ray, "init", lambda **options: started.update(options))
    monkeypatch.setattr(sys, "path", ["/sources", os.path.join(sys.prefix, "site-packages"), sys.base_prefix, ""])
    with connected("127.0.0.1:6379"):
        assert started["job_config"]._runtime_env_has_working_dir(), "Ray would put the folder first"
    for name, value in started["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", ["/ray", "/py_modules"])  # of a worker
    search_as_driver()
    assert sys.path == ["/ray", "/py_modules", "/sources", str(tmp_path)]


def test_a_worker_searches_as_its_driver_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEARCHED, "/sources")
    monkeypatch.setattr(sys, "path", ["/ray"])
    assert next(_measure(made_trial(), Preset("tiny"), prompts(1), (), (), False)) == Alive()
    assert sys.path == ["/ray", "/sources"]


def test_a_users_token_is_used(started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_text("secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with connected("local"):
        assert started["token"] == "secret"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file)


def fail(error: BaseException) -> None:
    with connected("local"):
        raise error


@pytest.mark.parametrize(
    ("error", "kept"), [(RuntimeError("x"), 1), (Terminated(), 0), (SystemExit(1), 0), (UsageError("x"), 0)]
)
def test_a_run_that_fails_unexpectedly_keeps_its_folder_and_names_it(
    started: dict[str, Any], tmp_path: Path, error: BaseException, kept: int
) -> None:
    with pytest.raises(type(error)) as raised:
        fail(error)
    assert len(list(tmp_path.iterdir())) == kept
    assert getattr(raised.value, "__notes__", []) == [f"Ray's logs are in {Path(started['_temp_dir']).parent}"] * kept


def test_the_folder_is_short_enough_for_sockets_whatever_tmpdir_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 30)))
    with session_folder() as folder:
        assert len(str(folder.path / SOCKET).encode()) <= SOCKET_BYTES
    with session_folder(["/proc/none", "/var/tmp"]) as folder:
        assert len(str(folder.path / SOCKET).encode()) <= SOCKET_BYTES
    with pytest.raises(UsageError, match="none can be made in /proc/none"), session_folder(["/proc/none"]):
        pass


def left_behind(parent: Path, kept: bool = False, age_s: float = 0.0) -> Path:
    """The folder of a process that was killed: its lock is gone with it."""
    with session_folder([str(parent)]) as folder:
        SessionFolder.keep(folder)
    if kept:
        os.utime(folder.path / KEPT, (time.time() - age_s,) * 2)
    else:
        (folder.path / KEPT).unlink()
    return folder.path


def test_what_is_written_while_a_folder_is_removed_is_left_to_a_later_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent of Ray's may write for a moment longer than Ray itself."""
    with monkeypatch.context() as late, session_folder([str(tmp_path)]) as folder:
        log = folder.path / "ray" / "logs"
        log.mkdir(parents=True)
        remove = shutil.rmtree

        def remove_and_write(place: Path, ignore_errors: bool = False) -> None:
            remove(place, ignore_errors=ignore_errors)
            log.mkdir(parents=True)

        late.setattr(shutil, "rmtree", remove_and_write)
    assert list(tmp_path.iterdir()) == [folder.path]
    with session_folder([str(tmp_path)]):
        assert not folder.path.exists()


def test_leftovers_of_the_dead_are_swept_and_nothing_else(tmp_path: Path) -> None:
    week_old = left_behind(tmp_path, kept=True, age_s=KEEP_S + 60)
    kept = left_behind(tmp_path, kept=True)
    dead = left_behind(tmp_path)
    others = tmp_path / "lm-somebodys"
    others.mkdir()
    (tmp_path / "lm-link").symlink_to(others)
    with session_folder([str(tmp_path)]) as alive, session_folder([str(tmp_path)]):
        there = [path for path in (week_old, kept, dead, others, tmp_path / "lm-link", alive.path) if path.exists()]
    assert there == [kept, others, tmp_path / "lm-link", alive.path]
