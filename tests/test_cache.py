"""Where compiled artefacts lie: in a folder of this user's alone, or in none that anybody can foresee."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from disk import WHOLE, steps_of
from launches import WORKLOAD, tiny
from torch.export import ExportedProgram

from chatbot import cache
from chatbot.cache import CACHE, CacheError, folder
from chatbot.variants import UnavailableError, export_aoti, inductor


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, and a temporary folder to fall back to."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    cache._temporary.cache_clear()
    yield
    cache._temporary.cache_clear()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_a_new_folder_is_its_owners_alone_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        made = folder("aoti")
    finally:
        os.umask(before)
    assert made == tmp_path / "cache" / "aoti"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)] == [0o700, 0o700]


def linked(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to(place.parent / "elsewhere")


def others(place: Path) -> None:
    place.mkdir()
    os.chown(place, 65534, 65534)


def open_to_all(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (linked, "is a link or no folder"),
        (Path.touch, "File exists"),
        (open_to_all, "may be written by others (mode 777)"),
        pytest.param(
            others,
            "belongs to user 65534, not to you",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away"),
        ),
    ],
)
def test_a_folder_that_others_may_write_is_not_used(
    make: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "cache")
    first, second = folder("aoti"), folder("inductor")
    assert first.parent == second.parent, "one folder for this process"
    assert first.parent.parent == tmp_path / "temporary"
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(first.parent) in line
    assert not (tmp_path / "elsewhere" / "aoti").exists()


def test_nobody_can_foresee_where_code_is_compiled_instead(tmp_path: Path) -> None:
    """Who could would put something there before."""
    open_to_all(tmp_path / "cache")
    first = folder()
    cache._temporary.cache_clear()  # as in another process
    assert folder() != first


def test_a_folder_within_it_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / "aoti").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="aoti is a link or no folder"):
        folder("aoti")


def test_a_user_without_a_home_compiles_in_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(CACHE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert folder("aoti").parent.parent == tmp_path / "temporary"
    assert cache.fault() == "this user has no home folder"


def test_what_cant_be_executed_where_it_lies_is_skipped_and_says_noexec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_NOSUID))
    with pytest.raises(UnavailableError, match=f"is mounted noexec; set {CACHE} to a folder"):
        inductor.require_compiler("cpu")


def test_half_a_package_is_built_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BuiltError(Exception):
        pass

    def build(path: Path, *_: object) -> None:
        assert not path.exists(), "what can't be loaded is gone"
        raise BuiltError

    monkeypatch.setattr(export_aoti, "_build", build)
    monkeypatch.setattr(export_aoti, "_key", lambda *_: "key")
    monkeypatch.setattr(export_aoti, "require_compiler", lambda _: None)
    (folder("aoti") / "encoder-key.pt2").write_bytes(b"PK half of a package")
    with pytest.raises(BuiltError):
        export_aoti.prepare(tiny(), WORKLOAD)


def test_a_package_and_its_name_are_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(program: Any, package_path: str, **_: Any) -> str:
        Path(package_path).write_bytes(b"a package")
        return package_path

    monkeypatch.setattr(export_aoti, "compiling", lambda _: nullcontext())
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compiled)
    steps, program = steps_of(monkeypatch), cast("ExportedProgram", None)
    export_aoti._package(folder("aoti") / "encoder-key.pt2", program, WORKLOAD)
    assert steps == WHOLE


def test_inductor_gets_a_compiler_of_two_words_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Path(inductor._as_one_file(("/usr/bin/ccache", "g++", "-m64")))
    assert made.read_text() == '#!/bin/sh\nexec /usr/bin/ccache g++ -m64 "$@"\n'
    assert os.access(made, os.X_OK)
    assert made.name.endswith("-ccache-g++")
    assert inductor._as_one_file(("/usr/bin/ccache", "g++", "-m64")) == str(made)
    assert inductor._as_one_file(("/usr/bin/g++",)) == "/usr/bin/g++"


def test_what_nobody_has_used_for_a_month_goes_at_the_next_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version of a source, a compiler or PyTorch leaves a library, a package and a tree of Inductor's."""
    month, names = 31 * 86400, ("engine-{}.so", "aoti/{}.pt2", "inductor-{}", "notes-{}")
    for state in ("old", "used", "new"):
        for name in names:
            place = folder("aoti").parent / name.format(state)
            place.mkdir() if name == "inductor-{}" else place.write_bytes(b"")
            if state != "new":
                os.utime(place, (time.time() - month, time.time() - month))
            if state == "used":
                cache.used(place)
    (folder() / "inductor-old" / "graph.py").write_text("")
    os.utime(folder() / "inductor-old", (time.time() - month, time.time() - month))
    monkeypatch.delenv(inductor.FOLDER, raising=False)
    monkeypatch.setattr(inductor, "machine", lambda: "new")
    monkeypatch.setattr(inductor, "_compiler", lambda: ("/usr/bin/g++",))
    with inductor.compiling(WORKLOAD):
        pass
    left = {str(path.relative_to(folder())) for path in folder().rglob("*") if path != folder("aoti")}
    assert left == {name.format(state) for name in names for state in ("used", "new")} | {"notes-old"}
