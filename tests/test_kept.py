"""What runs build and find again: built once, held while it is used, removed by nobody meanwhile."""

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from commands import run_here

from chatbot.cache import CACHE, CacheError
from ray_jobs.process import kept
from ray_jobs.process.kept import CONTENT, ENVIRONMENTS, RECORD, REVISIONS, Kept, hold, remove


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made() -> list[Path]:
    """The folders that were built."""
    return []


@pytest.fixture
def build(made: list[Path]) -> Callable[[Path], None]:
    def build(place: Path) -> None:
        made.append(place)
        place.mkdir()
        (place / "file").write_text("12345678")

    return build


def release(one: Kept) -> None:
    os.close(one.lock)


def test_what_is_there_is_not_built_again(build: Callable[[Path], None], made: list[Path]) -> None:
    first = hold(ENVIRONMENTS, "a", "pip x", build)
    second = hold(ENVIRONMENTS, "a", "pip x", build)
    assert first.content == second.content == made[0]
    assert len(made) == 1
    assert first.seconds is not None
    assert second.seconds is None
    assert first.since == second.since
    for one in (first, second):
        release(one)


def test_what_failed_leaves_nothing(cache: Path) -> None:
    def fails(place: Path) -> None:
        (place / "half").mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hold(ENVIRONMENTS, "a", "pip x", fails)
    assert list((cache / ENVIRONMENTS).iterdir()) == []


def test_what_was_never_finished_is_built_anew(build: Callable[[Path], None], cache: Path) -> None:
    """As a killed build leaves it."""
    half = cache / ENVIRONMENTS / "a" / CONTENT
    half.mkdir(parents=True)
    (half / "half").touch()
    cache.chmod(0o700)
    half.parent.parent.chmod(0o700)
    one = hold(ENVIRONMENTS, "a", "pip x", build)
    assert os.listdir(one.content) == ["file"]
    release(one)


def test_two_at_once_build_once(
    made: list[Path], build: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen that it is missing before either begins."""
    both, looked, is_built = threading.Barrier(2, timeout=30), threading.local(), kept._is_built

    def together(place: Path) -> bool:
        found = is_built(place)
        if not hasattr(looked, "once"):
            looked.once = both.wait()
        return found

    monkeypatch.setattr(kept, "_is_built", together)
    held: list[Kept] = []
    threads = [threading.Thread(target=lambda: held.append(hold(REVISIONS, "a", "a", build))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1
    assert sorted(one.seconds is None for one in held) == [False, True]
    for one in held:
        release(one)


def test_what_is_in_use_is_not_removed(build: Callable[[Path], None], cache: Path) -> None:
    first, second = (hold(REVISIONS, "a", "a", build) for _ in range(2))
    place = first.content.parent
    release(first)
    assert not remove(place)
    assert (second.content / "file").exists()
    release(second)
    assert remove(place)
    assert list((cache / REVISIONS).iterdir()) == []


def test_a_removal_that_is_cut_off_leaves_what_counts_as_never_finished(
    build: Callable[[Path], None], made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    release(one := hold(REVISIONS, "a", "a", build))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove(one.content.parent)
    assert not (one.content.parent / RECORD).exists()
    release(hold(REVISIONS, "a", "a", build))
    assert len(made) == 2


def test_where_others_may_write_nothing_is_kept(build: Callable[[Path], None], cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(CacheError, match=r"nothing can be kept: .* may be written by others"):
        hold(REVISIONS, "a", "a", build)


def test_clean_lists_all_and_removes_what_no_run_uses(
    build: Callable[[Path], None], cache: Path, tmp_path: Path
) -> None:
    release(hold(ENVIRONMENTS, "a", "pip x==1", build))
    used = hold(REVISIONS, "b", "b", build)
    (cache / ENVIRONMENTS / "c").mkdir()
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    planned = run_here(tmp_path, "clean", "--dry-run").out.splitlines()
    assert planned[0].startswith(f"environment pip x==1: 0.0 MB, last used {today}")
    assert planned[1].startswith("environment c, never finished: ")
    assert [line.rpartition(", ")[2] for line in planned[:3]] == [
        "would be removed",
        "would be removed",
        "in use: kept",
    ]
    assert planned[3] == "2 would be removed, 0.0 MB"
    assert len(list(kept.found())) == 3
    done = run_here(tmp_path, "clean").out.splitlines()
    assert [line.rpartition(", ")[2] for line in done[:3]] == ["removed", "removed", "in use: kept"]
    assert [one.name for one in kept.found()] == ["b"]
    release(used)
    assert run_here(tmp_path, "clean").out.splitlines()[-1].startswith("1 removed")
    assert run_here(tmp_path, "clean").out == "0 removed, 0.0 MB\n"
