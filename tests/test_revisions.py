"""Revisions: which commit one names, what is packed of it, and that the work tree is left alone."""

from pathlib import Path

import pytest
from repositories import commit, git

from chatbot.errors import UsageError
from ray_jobs import provenance
from ray_jobs.driver import revisions
from ray_jobs.driver.sides import commits_of
from ray_jobs.process.revisions import unpack
from ray_jobs.sides import AGAIN, BASE, Side, sides_of

pytestmark = pytest.mark.process

CHATBOT = {"chatbot/__init__.py": "ONE = 1\n", "notes/one.txt": "1"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two commits, one with ``chatbot`` and one without; this process stands in a folder of it."""
    place = tmp_path / "project"
    commit(place, CHATBOT)
    git(place, "rm", "--quiet", "-r", "chatbot")
    commit(place, {"src/mine/__init__.py": "", "src/mine/model.py": ""})
    monkeypatch.chdir(place / "src")
    return place


def resolved(*asked: str, model: str = "small") -> tuple[Side, ...]:
    return revisions.resolved(sides_of(asked), model)


def test_a_revision_names_a_commit_and_its_files_are_packed(home: Path, tmp_path: Path) -> None:
    (home / "src" / "mine" / "model.py").write_text("changed")
    (home / "untracked").touch()
    (home / "notes" / "link").symlink_to("/etc/passwd")
    before = git(home, "status", "--porcelain"), git(home, "worktree", "list"), git(home, "stash", "list")
    sides = resolved("rev=HEAD~1", "rev=main~1,env=A=1", "env=A=1")
    assert [side.commit for side in sides[2:]] == [git(home, "rev-parse", "HEAD~1")] * 2 + [None]
    ((name, archive),) = revisions.packed(sides).items()
    assert name == sides[2].commit
    unpack(tmp_path / "there", archive)
    found = {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert found == set(CHATBOT)
    assert before == (git(home, "status", "--porcelain"), git(home, "worktree", "list"), git(home, "stash", "list"))


def test_base_stands_at_the_commit_of_this_program(home: Path) -> None:
    base, again, _ = resolved("rev=HEAD~1")
    assert (base.name, base.commit) == (BASE, provenance.git_commit())
    assert (again.name, again.commit) == (AGAIN, None)


def test_an_own_model_comes_from_where_it_lies_in_the_repository(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(home / "src"))
    base, _, side = resolved("rev=HEAD", model="mine.model:make")
    assert side.roots == ("src",)
    assert base.commit == side.commit == git(home, "rev-parse", "HEAD")
    (home / "src" / "mine" / "model.py").write_text("changed")
    assert resolved("rev=HEAD", model="mine.model:make")[0].commit == f"{side.commit}+"
    with pytest.raises(UsageError, match=r"rev=HEAD~1: it has no src/mine, which model 'mine.model:make' comes from"):
        resolved("rev=HEAD~1", model="mine.model:make")


def test_an_own_model_from_elsewhere_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "theirs.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match=r"elsewhere, which is not in the repository .*project of rev="):
        resolved("rev=HEAD", model="theirs:make")
    with pytest.raises(UsageError, match="model 'absent:make' can't be found"):
        resolved("rev=HEAD", model="absent:make")


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("nosuch", "project has no such revision; give a commit, a branch or a tag"),
        ("HEAD:notes", "has no such revision"),
        ("HEAD", "it has no chatbot/__init__.py; stand in a repository of this program, or name a model of your own"),
    ],
)
def test_a_revision_that_can_not_be_measured_is_refused_in_one_line(home: Path, revision: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        resolved(f"rev={revision}")
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"--against rev={revision}: ")
    assert "\n" not in str(refused.value)


def test_a_folder_outside_of_any_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UsageError, match=r"rev=HEAD: not a git repository .*; stand in the repository"):
        resolved("rev=HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs git, which is not installed here"):
        resolved("rev=HEAD")
    assert resolved("env=A=1") == sides_of(["env=A=1"])


def test_a_branch_that_moved_is_another_identity(home: Path) -> None:
    git(home, "branch", "old", "HEAD~1")
    before = commits_of(resolved("rev=old"))
    assert commits_of(resolved("rev=old")) == before
    commit(home, CHATBOT)
    git(home, "branch", "--force", "old", "main")
    assert commits_of(resolved("rev=old")).keys() == before.keys()
    assert commits_of(resolved("rev=old")) != before
    assert commits_of(resolved("env=A=1")) == {}


def test_a_link_that_leads_out_is_left_out(home: Path, tmp_path: Path) -> None:
    (home / "chatbot").mkdir()
    (home / "out").symlink_to("/etc")
    (home / "within").symlink_to("notes/one.txt")
    commit(home, CHATBOT)
    (archive,) = revisions.packed(resolved("rev=HEAD")).values()
    unpack(tmp_path / "there", archive)
    assert not (tmp_path / "there" / "out").is_symlink()
    assert (tmp_path / "there" / "within").read_text() == "1"
