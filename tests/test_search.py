"""Where the process of a side looks for code: a revision takes the place of what it is one of, and of that alone."""

import importlib
import os
import sys
from functools import partial
from pathlib import Path

import pytest

import ray_jobs
from chatbot.variants import Workload
from ray_jobs.measure.environment import environment
from ray_jobs.process.search import search_of
from ray_jobs.process.server import LaunchServer, Request
from ray_jobs.sides import Side

MODEL = Workload(model="searched_model:make")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose model is found through PYTHONPATH, and a revision of it beside."""
    for place, text in (("work", "one"), ("revision", "two")):
        folder = tmp_path / place / "src"
        folder.mkdir(parents=True)
        (folder / "searched_helper.py").write_text(f"TEXT = {text!r}\n")
        (folder / "searched_model.py").write_text("import searched_helper\ndef make(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path / "work" / "src"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/elsewhere", str(tmp_path / "work" / "src")]))
    importlib.invalidate_caches()
    return tmp_path


def test_base_searches_as_its_caller_does(project: Path) -> None:
    search = search_of(MODEL, None)
    home = str(Path(ray_jobs.__path__[0]).resolve().parent)
    assert search.first == (home, home, "/elsewhere", str(project / "work" / "src"))
    assert search.last[0] == str(project / "work" / "src")
    assert search == search_of(MODEL, Side("env A=1", variables=(("A", "1"),)))


def test_a_revision_of_an_own_model_takes_its_place_wherever_it_is_searched(project: Path) -> None:
    side = Side("rev x", revision="x", sources=str(project / "revision"), roots=("src",))
    search = search_of(MODEL, side)
    ours, theirs = (str(project / name / "src") for name in ("work", "revision"))
    assert search.first[1:] == ("/elsewhere", theirs)
    assert theirs in search.last
    assert ours not in (*search.first, *search.last)
    assert search.instead == {ours: theirs}
    assert search.links is not None
    with search.links as links:
        assert Path(links, "chatbot").resolve() == Path(ray_jobs.__path__[0]).resolve().parent / "chatbot"


def test_a_revision_of_the_chatbot_leaves_what_measures_in_place(project: Path) -> None:
    search = search_of(Workload(), Side("rev x", revision="x", sources=str(project / "revision")))
    assert search.links is not None
    with search.links as links:
        assert search.first[0] == links
        assert Path(links, "chatbot").readlink() == project / "revision" / "chatbot"
        assert Path(links, "ray_jobs").resolve() == Path(ray_jobs.__path__[0]).resolve()


@pytest.mark.process
def test_the_process_of_a_revision_imports_its_model_with_its_helpers(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the interpreter itself searches what base does: a development install has a .pth file."""
    monkeypatch.delenv("PYTHONPATH")
    python = project / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{project}/work/src" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    side = Side("rev x", str(python), revision="x", sources=str(project / "revision"), roots=("src",))
    cores = tuple(sorted(os.sched_getaffinity(0)))
    with LaunchServer(MODEL, side=side) as server:
        told = server.run(Request(partial(environment, (), MODEL), cores, 1, 60.0))
    here = environment((), MODEL)
    assert told["sources_in"] == str(project / "revision" / "src")
    assert here["sources_in"] == str(project / "work" / "src")
    assert told["sources"] != here["sources"], "they differ in a helper alone"
