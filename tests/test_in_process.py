"""One launch in this very process: what a breakpoint in a variant needs."""

import os
import re
import sys
from pathlib import Path

import pytest

from ray_jobs.cli.app import main

SEEN: list[tuple[int, str]] = []

VARIANT = """
import os
from chatbot.variants import Variant, torchscript
from test_in_process import SEEN

def prepare(chatbot, workload):
    SEEN.append((os.getpid(), "prepared"))
    inner = torchscript.prepare(chatbot, workload)
    def reply(prompts, lengths):
        SEEN.append((os.getpid(), "asked"))
        return inner(prompts, lengths)
    return reply

def broken(chatbot, workload):
    raise KeyError("no such layer")

MINE = Variant("mine", "the script, seen", prepare, exact=True, kind="torchscript")
BROKEN = Variant("broken", "it fails", broken, exact=True, kind="eager")
"""


def test_a_variant_runs_in_this_process_and_nothing_is_kept(
    toy_checkpoint: Path,
    toy_tsv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "seen_here.py").write_text(VARIANT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = "seen_here:MINE,seen_here:BROKEN"
    asked = ["--model", toy_checkpoint, "--corpus", toy_tsv, "--prompt-tokens", "5,4", "--reply-tokens", "3"]
    monkeypatch.setattr(sys, "argv", ["ray_jobs", "matrix", *map(str, asked), "--variants", names, "--in-process"])
    SEEN.clear()
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert {pid for pid, _ in SEEN} == {os.getpid()}
    assert [what for _, what in SEEN].count("prepared") == 1
    assert "1 other workload" in said[0]
    outcome = dict(line.split(": ", 1) for line in said[1:-1] if ":BROKEN" not in line)
    assert list(outcome) == ["eager", "eager-again", "seen_here:MINE"]
    assert all(
        re.match(r"median \d+\.\d{3} ms of \d+ calls .*, (\d+) of \1 replies identical$", line)
        for line in outcome.values()
    )
    assert "seen_here:BROKEN: failed: could not be prepared: KeyError: 'no such layer'" in said
    assert said[-1].startswith("do not believe these numbers")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"] == []
