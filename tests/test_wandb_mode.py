"""W&B's own ways of being turned off are heard, and where an upload goes is said."""

import os
from pathlib import Path

import pytest
from pyarrow import fs

from ray_jobs.results.store import RunDirectory
from ray_jobs.wandb_sink.mode import destination, resolve_mode
from ray_jobs.wandb_sink.sink import WandbSink


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user with a key, in an empty folder and home."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: Path, *settings: str) -> None:
    place.parent.mkdir(parents=True)
    place.write_text("\n".join(["[default]", *settings, ""]))


@pytest.mark.parametrize(
    ("said", "mode"), [("true", "off"), ("1", "off"), ("YES", "off"), ("false", "online"), ("0", "online")]
)
def test_wandb_disabled_turns_it_off(said: str, mode: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", said)
    assert resolve_mode("auto") == mode
    assert resolve_mode("online") == "online"


@pytest.mark.parametrize(
    ("said", "mode"), [("ONLINE", "online"), ("Offline", "offline"), ("DryRun", "offline"), (" Disabled ", "off")]
)
def test_a_mode_is_heard_in_any_case(said: str, mode: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", said)
    assert resolve_mode("auto") == mode
    assert resolve_mode("OFF") == "off"


@pytest.mark.parametrize("place", ["wandb/settings", ".wandb/settings", "home/.config/wandb/settings"])
@pytest.mark.parametrize(("said", "mode"), [("disabled", "off"), ("offline", "offline"), ("online", "online")])
def test_what_wandbs_own_commands_wrote_is_heard(place: str, said: str, mode: str, home: Path) -> None:
    write(home / place, f"mode = {said}")
    assert resolve_mode("auto") == mode


def test_the_folders_settings_stand_above_the_users(home: Path) -> None:
    write(home / "wandb/settings", "mode = offline")
    write(home / "home/.config/wandb/settings", "mode = disabled")
    assert resolve_mode("auto") == "offline"


def test_broken_settings_turn_nothing_on_or_off(home: Path) -> None:
    write(home / "wandb/settings")
    (home / "wandb/settings").write_bytes(b"mode\xff = disabled")
    assert resolve_mode("auto") == "online"


def test_one_line_says_where_an_upload_goes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert destination() == (
        "W&B: online, project latency-matrix of the key's own entity at api.wandb.ai; --wandb off keeps the run here"
    )
    write(home / "wandb/settings", "entity = team", "base_url = https://wandb.example.com")
    monkeypatch.setenv("WANDB_PROJECT", "mine\x1b[2J")
    assert r"project mine\x1b[2J of team at wandb.example.com;" in destination()


def test_where_an_upload_goes_is_said_before_it_begins(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    sink = WandbSink("online", RunDirectory(fs._MockFileSystem(), "r1", "store://r1"))
    monkeypatch.setattr(sink, "_begin", lambda: said.append(capsys.readouterr().err))
    monkeypatch.setattr(sink, "_listen", lambda *_: None)
    sink.start()
    assert said == [f"{destination()}\n"]
