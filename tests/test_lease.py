"""Who holds a core or a GPU: real locks of real processes."""

import errno
import fcntl
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from locks import holder_of
from profiles import examples

from chatbot.errors import UsageError
from ray_jobs.measure.result import one_line
from ray_jobs.process import lease
from ray_jobs.process.lease import Lease, LeaseError, describe, locks_for, take_within

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
CORES = ("core-0", "core-1", "core-2", "core-3")

# Takes its arguments' names and says how that went; lets go when its input ends. "child" first: a child of its own
# inherits the lease, "alone": it does not; either is told by its process id, and lives until it is killed.
HOLDER = """
import subprocess, sys
from ray_jobs.process.lease import Lease
kind, holder, *names = sys.argv[1:]
with Lease(names, holder) as lease:
    print(lease.take(), flush=True)
    if kind != "plain":
        inherited = lease.descriptors if kind == "child" else ()
        sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(sleep, pass_fds=inherited, close_fds=kind == "child", stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the locks are, which nobody has made yet."""
    path = tmp_path / "locks"
    monkeypatch.setenv(lease.FOLDER, str(path))
    return path


class Other:
    """Another process that takes some names."""

    def __init__(self, *names: str, holder: str = "the other one", kind: str = "plain", umask: int = -1) -> None:
        command = [sys.executable, "-c", HOLDER, kind, holder, *names]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, umask=umask
        )
        self.said = self._line()
        self.child = None if kind == "plain" else int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Lets it end of itself."""
        self.process.communicate()
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def kill_child(self) -> None:
        if self.child is not None:
            os.kill(self.child, signal.SIGKILL)
        self.child = None  # its number may be another's soon


Start = Callable[..., Other]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts others; they, and their children, are gone when the test ends."""
    others: list[Other] = []

    def begin(*names: str, **more: object) -> Other:
        others.append(Other(*names, **more))  # type: ignore[arg-type]
        return others[-1]

    yield begin
    for other in others:
        other.kill_child()
        other.kill()


def taken(*names: str, holder: str = "me") -> Lease:
    """A lease that is ours."""
    mine = Lease(names, holder)
    assert mine.take() is None
    return mine


# Who may have it


def test_what_another_process_holds_is_not_ours_until_it_ends(start: Start) -> None:
    other = start("core-1")
    assert other.said == "None"
    mine = Lease(["core-1"], "me")
    assert mine.take() == "core-1 is held by the other one"
    other.end()
    assert mine.take() is None
    assert start("core-1").said == "core-1 is held by me"
    mine.release()
    assert start("core-1").said == "None"


def test_one_process_holds_a_name_once() -> None:
    with taken("core-0", holder="the first"):
        assert Lease(["core-0"], "the second").take() == "core-0 is held by the first"
    with taken("core-0"):
        pass


def test_different_names_are_held_at_the_same_time(start: Start) -> None:
    assert start("core-0", "gpu-0").said == "None"
    with taken("core-1", "gpu-1"):
        pass


def test_of_many_who_ask_at_the_same_moment_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        monkeypatch.setenv(lease.FOLDER, str(tmp_path / str(number) / "deep"))  # which all of them want to make
        leases = [Lease(CORES, str(i)) for i in range(8)]
        together = threading.Barrier(len(leases))
        answers: list[str | None] = []

        def ask(mine: Lease, together: threading.Barrier = together, answers: list[str | None] = answers) -> None:
            together.wait()
            answers.append(mine.take())

        threads = [threading.Thread(target=ask, args=(mine,)) for mine in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == len(leases)
        assert answers.count(None) == 1
        assert [bool(mine.descriptors) for mine in leases].count(True) == 1
        for mine in leases:
            mine.release()


# All or nothing


def test_a_lease_that_gets_not_everything_holds_nothing(start: Start) -> None:
    start("core-2")
    mine = Lease(CORES, "me")
    assert mine.take() == "core-2 is held by the other one"
    assert mine.descriptors == ()
    assert start("core-0", "core-1", "core-3").said == "None"


def test_one_that_meets_a_lock_it_cant_use_holds_nothing(folder: Path, start: Start) -> None:
    (folder / "core-2.lock").mkdir(parents=True)
    mine = Lease(CORES, "me")
    with pytest.raises(LeaseError):
        mine.take()
    assert mine.descriptors == ()
    assert start("core-0", "core-1").said == "None"


ASKED = st.lists(st.sampled_from(CORES), min_size=1, max_size=4, unique=True)


@examples(60)
@given(st.lists(st.tuples(st.integers(0, 3), ASKED | st.none()), min_size=1, max_size=12))
def test_a_lease_is_granted_when_all_its_names_are_free_and_never_else(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[str] | None]]
) -> None:
    """Four holders ask for some names, or let go (None), in any order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(lease.FOLDER, str(tmp_path_factory.mktemp("locks")))
        held: dict[int, tuple[Lease, list[str]]] = {}
        for who, names in steps:
            if who in held:
                held.pop(who)[0].release()
            if names is None:
                continue
            mine = Lease(names, f"holder {who}")
            owners = {name: other for other, (_, theirs) in held.items() for name in theirs}
            first = next((name for name in names if name in owners), None)
            said = mine.take()
            if first is None:
                assert said is None
                assert len(mine.descriptors) == len(names)
                held[who] = mine, names
            else:
                assert said == f"{first} is held by holder {owners[first]}"
                assert mine.descriptors == ()
        for mine, _ in held.values():
            mine.release()


def test_a_lease_ends_with_its_block_whatever_happens_in_it() -> None:
    def fail() -> None:
        with Lease(CORES, "me") as mine:
            assert mine.take() is None
            raise RuntimeError("a launch failed")

    with pytest.raises(RuntimeError, match="a launch failed"):
        fail()
    assert holder_of(CORES) is None


def test_letting_go_twice_takes_nothing_from_the_next_holder() -> None:
    mine = taken("core-0")
    mine.release()
    with taken("core-0", holder="the next"):
        mine.release()
        assert holder_of(["core-0"]) == "core-0 is held by the next"


# Who is told


def test_a_look_at_the_holder_leaves_everything_as_it_is(start: Start) -> None:
    assert holder_of(CORES) is None
    assert holder_of(CORES) is None, "the look itself is over"
    start("core-3")
    assert holder_of(CORES) == "core-3 is held by the other one"
    assert holder_of(CORES[:3]) is None


def test_a_holder_is_told_by_run_trial_user_process_and_time() -> None:
    told = describe("20260102-030405-ab", "cpu-b1@host")
    form = r"run 20260102-030405-ab, trial cpu-b1@host \(user (.+), process (\d+), since \d\d:\d\d:\d\d UTC\)"
    found = re.fullmatch(form, told)
    assert found is not None
    assert found[2] == str(os.getpid())
    with taken("core-0", holder=told):
        assert holder_of(["core-0"]) == f"core-0 is held by {told}"


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no entry")])
def test_a_user_without_a_name_is_told_by_number(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", nobody)
    assert f"(user {os.getuid()}, process" in describe("r", "t")


def test_an_earlier_holder_with_a_longer_name_is_not_told() -> None:
    with taken("core-0", holder="an earlier one " * 9):
        pass
    with taken("core-0", holder="the next"):
        assert holder_of(["core-0"]) == "core-0 is held by the next"


def test_every_name_of_a_lease_tells_its_holder() -> None:
    with taken(*CORES):
        assert [holder_of([name]) for name in CORES] == [f"{name} is held by me" for name in CORES]


@pytest.mark.parametrize("text", [b"", b" \n"])
def test_a_holder_that_could_not_write_its_name_still_holds(text: bytes, folder: Path) -> None:
    with taken("core-0"):
        (folder / "core-0.lock").write_bytes(text)
        assert holder_of(["core-0"]) == "core-0 is held by another run"


def test_a_full_disk_keeps_nobody_from_holding(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with taken("core-0"):
        assert holder_of(["core-0"]) == "core-0 is held by another run"


def test_a_name_that_is_no_text_is_told_somehow_in_one_piece(folder: Path) -> None:
    with taken("core-0"):
        (folder / "core-0.lock").write_bytes(b"\xff\xfe" + b"x" * 5000)
        told = holder_of(["core-0"])
    assert told is not None
    assert told.startswith("core-0 is held by \N{REPLACEMENT CHARACTER}")
    assert len(told) < 1100


def test_a_trial_takes_each_core_and_each_gpu_in_order() -> None:
    assert locks_for([10, 2], ["1", "0"]) == ["core-2", "core-10", "gpu-0", "gpu-1"]
    assert locks_for([0]) == ["core-0"]


# How a lease ends


def test_a_killed_holder_lets_go(start: Start) -> None:
    other = start(*CORES)
    assert holder_of(CORES) is not None
    other.kill()
    assert holder_of(CORES) is None


def test_a_child_that_inherits_the_lease_keeps_it_until_it_ends(start: Start) -> None:
    other = start(*CORES, kind="child")
    other.kill()
    mine = Lease(CORES, "me")
    assert mine.take() == "core-0 is held by the other one"
    other.kill_child()
    assert take_within(mine, 30) is None
    mine.release()


def test_a_child_that_was_given_nothing_keeps_nothing(start: Start) -> None:
    other = start(*CORES, kind="alone")
    other.kill()
    assert holder_of(CORES) is None
    assert other.child is not None
    os.kill(other.child, 0)  # it lives


# Waiting


class Clock:
    """A clock that sleeping alone advances; at some time something happens."""

    def __init__(self, when: float, what: Callable[[], None]) -> None:
        self.now, self.when, self.what = 100.0, 100.0 + when, what

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        before, self.now = self.now, self.now + seconds
        if before < self.when <= self.now:
            self.what()


def test_waiting_ends_when_the_holder_lets_go(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(2.0, start("core-1").end)
    monkeypatch.setattr(lease, "time", clock)
    mine = Lease(CORES, "me")
    assert take_within(mine, 5.0) is None
    assert 2.0 <= clock.now - 100 < 2.2
    assert len(mine.descriptors) == len(CORES)
    mine.release()


def test_waiting_ends_with_its_time_and_tells_the_holder(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(5.5, start("core-1").end)
    monkeypatch.setattr(lease, "time", clock)
    mine = Lease(CORES, "me")
    assert take_within(mine, 5.0) == "core-1 is held by the other one"
    assert 5.0 <= clock.now - 100 < 5.2
    assert mine.descriptors == ()


def test_without_time_to_wait_it_is_tried_once() -> None:
    with taken("core-0") as mine:
        assert take_within(Lease(["core-0"], "another"), 0) == "core-0 is held by me"
        mine.release()
        assert take_within(mine, 0) is None


# The files


def test_the_locks_lie_where_the_environment_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken("core-0", "gpu-GPU-1234"):
        assert sorted(os.listdir(folder)) == ["core-0.lock", "gpu-GPU-1234.lock"]
        monkeypatch.setenv(lease.FOLDER, str(tmp_path / "elsewhere"))
        assert holder_of(["core-0"]) is None, "in another folder it is another lock"
        assert os.listdir(tmp_path / "elsewhere") == ["core-0.lock"]


@pytest.mark.parametrize("said", [None, ""])
@pytest.mark.parametrize("unsafe", [0o755, 0o777], ids=["is not for all users", "is not sticky"])
def test_without_a_word_they_lie_in_a_folder_of_roots_that_every_user_knows(
    said: str | None, unsafe: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, mode in (("first", unsafe), ("second", 0o1777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    monkeypatch.setattr(lease, "SHARED_FOLDERS", (tmp_path / "nowhere", tmp_path / "first", tmp_path / "second"))
    if said is None:
        monkeypatch.delenv(lease.FOLDER)
    else:
        monkeypatch.setenv(lease.FOLDER, said)
    with taken("core-0"):
        assert os.listdir(tmp_path / "second") == ["latency-matrix-core-0.lock"]
        assert holder_of(["core-0"]) == "core-0 is held by me"
    (tmp_path / "second").chmod(0o777)
    if unsafe == 0o777:
        assert "others may remove files from its folder" in refusal()
    else:
        with taken("core-0"):
            assert os.listdir(tmp_path / "first") == ["latency-matrix-core-0.lock"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_every_user_may_lock_whatever_the_umask(umask: int, folder: Path, start: Start) -> None:
    assert start("core-0", umask=umask).said == "None"
    assert mode(folder) == 0o1777
    assert mode(folder / "core-0.lock") == 0o666


def test_a_folder_that_is_there_is_taken_as_it_is(folder: Path) -> None:
    folder.mkdir(mode=0o750)
    with taken("core-0"):
        assert mode(folder) == 0o750


def refusal(*names: str) -> str:
    """The line that a folder is refused with, which says what to do."""
    with pytest.raises(LeaseError) as refused, Lease(names or ["core-0"], "me") as mine:
        mine.take()
    assert isinstance(refused.value, UsageError)
    (line,) = str(refused.value).splitlines()
    assert line.endswith("; let LATENCY_MATRIX_LOCKS name a folder that all users may write")
    assert one_line(refused.value) == line, "a row's reason is the sentence, without the name of a class"
    return line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: folder.chmod(0o777), "others may remove files from its folder (chmod +t)"),
        (lambda folder: folder.chmod(0o775), "others may remove files from its folder (chmod +t)"),
        (lambda folder: (folder.rename(f"{folder}2"), folder.symlink_to(f"{folder}2")), "Not a directory"),
        pytest.param(
            lambda folder: os.chown(folder, 65534, 65534),
            "its folder belongs to user 65534",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away"),
        ),
    ],
    ids=["everybody's", "a group's", "a link", "another user's"],
)
def test_a_folder_where_others_may_remove_a_lock_is_refused(
    change: Callable[[Path], object], said: str, folder: Path
) -> None:
    with taken("core-0"):
        pass
    change(folder)
    assert f"core-0.lock can't be used: {said}" in refusal()


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking: the file that would be locked is one that nobody else opens any more."""
    flock = fcntl.flock
    removed: list[str] = []

    def slow(descriptor: int, how: int) -> None:
        if not removed:
            (folder / "core-0.lock").unlink()
            removed.append("core-0")
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with taken("core-0"):
        assert holder_of(["core-0"]) == "core-0 is held by me"


def test_a_lock_that_is_removed_while_it_is_held_is_noticed(folder: Path) -> None:
    with taken(*CORES) as mine:
        assert mine.renew() is None
        (folder / "core-1.lock").unlink()
        assert mine.renew() is None
        assert holder_of(["core-1"]) == "core-1 is held by me"
        (folder / "core-2.lock").unlink()
        with taken("core-2", holder="the quick one"):
            assert mine.renew() == "core-2 is held by the quick one"


def test_a_pipe_in_place_of_a_lock_is_not_waited_for(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "core-0.lock")
    assert "it is no plain file of its own" in refusal()


def test_another_name_of_a_file_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "precious").write_text("precious")
    os.link(tmp_path / "precious", folder / "core-0.lock")
    assert "it is no plain file of its own" in refusal()
    assert (tmp_path / "precious").read_text() == "precious"


def test_what_a_holder_wrote_moves_nothing_on_a_terminal(folder: Path) -> None:
    with taken("core-0"):
        (folder / "core-0.lock").write_text("run \x1b[2J\u202e7\tx\nsecond line\n")
        assert holder_of(["core-0"]) == r"core-0 is held by run \x1b[2J\u202e7\tx\nsecond line"


def test_one_that_has_let_go_is_not_told_any_more(folder: Path) -> None:
    with taken("core-0", holder="the one before"):
        pass
    assert (folder / "core-0.lock").read_text() == ""


def test_a_folder_that_is_a_file_is_refused_in_one_line(folder: Path) -> None:
    folder.write_text("not a folder")
    assert refusal().startswith(f"the lock {folder}/core-0.lock can't be used: Not a directory")
    assert folder.read_text() == "not a folder"


def test_a_folder_below_a_file_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(lease.FOLDER, str(tmp_path / "file" / "locks"))
    assert "Not a directory" in refusal()


def test_a_folder_that_may_not_be_written_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)  # a superuser may write anywhere
    assert "Permission denied" in refusal()


def test_a_file_system_without_locks_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert "No locks available" in refusal()


def test_a_folder_in_place_of_a_lock_is_refused_in_one_line(folder: Path) -> None:
    (folder / "core-0.lock").mkdir(parents=True)
    assert "Is a directory" in refusal()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_place_of_a_lock_is_not_followed(there: bool, folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    if there:
        precious.write_text("precious")
        precious.chmod(0o600)
    folder.mkdir()
    (folder / "core-1.lock").symlink_to(precious)
    assert "core-1.lock can't be used: " in refusal(*CORES)
    assert precious.exists() == there
    if there:
        assert (precious.read_text(), mode(precious)) == ("precious", 0o600)
