"""``python -m chatbot`` as a person uses it: in a process, through a pipe and at a terminal."""

import io
import json
import math
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

import chatbot
from chatbot import corpus
from chatbot.checkpoint import Trained, load
from chatbot.cli import held_out_pairs, main
from chatbot.config import split
from chatbot.talk import Speaker

RunChatbot = Callable[..., subprocess.CompletedProcess[str]]
Line = tuple[str, ...]

WEIGHTS = Path(chatbot.__file__).with_name("weights")
TRAIN = ("train", "--out", "OUT/bot.pt", "--size", "tiny", "--corpus", "TOY", "--min-count", "1", "--iterations", "1")

# A command line (OUT: an empty folder, TOY: the toy corpus, BOT: a trained checkpoint, ODD: a malformed TSV) -> a part
# of the one line that answers it.
REFUSED: dict[Line, str] = {
    ("chat", "--model", "large"): "no model 'large'; give small, tutorial, or the path of a checkpoint",
    ("chat", "--model", "tutorial"): "model 'tutorial' has random weights",
    ("chat", "--model", "ODD"): "odd.tsv is truncated or not a checkpoint",
    ("chat", "--model", "BOT", "--variant", "warp"): "unknown variant 'warp'; choose from: eager",
    ("evaluate", "--model", "tutorial"): "model 'tutorial' has random weights",
    ("evaluate", "--model", "BOT", "--corpus", "OUT"): "holds neither utterances.jsonl nor movie_lines.txt",
    ("export", "--model", "BOT"): "nothing to do; give --out FILE, --graph, or both",
    ("export", "--model", "BOT", "--out", "OUT/search.pt", "--device", "tpu"): "unknown device 'tpu'",
    ("export", "--model", "BOT", "--out", "OUT/gone/search.pt"): "the folder of --out does not exist",
    ("export", "--model", "BOT", "--out", "OUT"): "OUT",
    (*TRAIN, "--size", "huge"): "unknown size 'huge'; choose from: tutorial, small, tiny",
    (*TRAIN, "--attention", "more"): "unknown attention 'more'; choose from: dot, general, concat",
    (*TRAIN, "--dropout", "1"): "dropout is 1.0",
    (*TRAIN, "--device", "tpu"): "unknown device 'tpu'; choose from: cpu, cuda",
    (*TRAIN, "--clip", "0"): "clip is 0.0, which zeroes every gradient; give a positive number or none",
    (*TRAIN, "--clip", "some"): "'some' is neither a number nor 'none'",
    (*TRAIN, "--batch", "-64"): "batch is -64; it must be above 0",
    (*TRAIN, "--iterations", "-1"): "iterations is -1; it must be above 0",
    (*TRAIN, "--patience", "inf"): "patience",
    (*TRAIN, "--patience", "nan"): "patience",
    (*TRAIN, "--min-count", "1000"): "vocabulary is 3",
    (*TRAIN, "--corpus", "OUT/gone.tsv"): "no corpus ",
    (*TRAIN, "--corpus", "ODD"): "odd.tsv line 2: 1 columns where two were expected",
    (*TRAIN, "--out", "OUT/gone/bot.pt"): "the folder of --out does not exist",
    (*TRAIN, "--out", "OUT"): "OUT",
}
REFUSED_IN_A_PROCESS: tuple[Line, ...] = (("chat", "--model", "tutorial"), (*TRAIN, "--clip", "0"))
COMMANDS = ("train", "chat", "evaluate", "export")


@pytest.fixture
def places(toy_tsv: Path, toy_checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    """What OUT, TOY, BOT and ODD stand for in a command line."""
    odd, out = tmp_path / "odd.tsv", tmp_path / "out"
    odd.write_text("a\tb\nonly one column\n", encoding="ascii")
    out.mkdir()
    return {"OUT": str(out), "TOY": str(toy_tsv), "BOT": str(toy_checkpoint), "ODD": str(odd)}


def filled(text: str, places: dict[str, str]) -> str:
    return re.sub("OUT|TOY|BOT|ODD", lambda match: places[match[0]], text)


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Runs a command line within this process, which spares the import of torch; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["chatbot", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer replaces it
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


@pytest.mark.parametrize("line", REFUSED, ids=" ".join)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_no_file(
    line: Line, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run_here(monkeypatch, *(filled(word, places) for word in line))
    shown = capfd.readouterr()
    assert shown.err.startswith("chatbot: ")
    assert filled(REFUSED[line], places) in shown.err
    assert len(shown.err.splitlines()) == 1
    assert (code, shown.out) == (2, "")
    out = Path(places["OUT"])
    assert sorted(out.parent.rglob("*")) == [Path(places["ODD"]), out]


@pytest.mark.process
@pytest.mark.parametrize("line", REFUSED_IN_A_PROCESS, ids=" ".join)
def test_a_mistake_is_one_line_and_exit_code_2_of_the_process(
    line: Line, places: dict[str, str], run_chatbot: RunChatbot
) -> None:
    run = run_chatbot(*(filled(word, places) for word in line))
    assert run.stderr.startswith("chatbot: ")
    assert filled(REFUSED[line], places) in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert (run.returncode, run.stdout) == (2, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_a_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run_here(monkeypatch, command, "--help") == 0
    shown = capfd.readouterr()
    assert f"Usage: python -m chatbot {command} " in shown.out
    assert ("--out" if command in ("train", "export") else "--model") in shown.out
    assert shown.err == ""


@pytest.mark.process
def test_help_lists_the_commands(run_chatbot: RunChatbot) -> None:
    run = run_chatbot("--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert all(re.search(rf"^\W*{command} ", run.stdout, re.MULTILINE) for command in COMMANDS)


@pytest.fixture(scope="module")
def bot(run_chatbot: RunChatbot, toy_tsv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained from the command line."""
    path = tmp_path_factory.mktemp("trained") / "bot.pt"
    options = ("--iterations", 200, "--batch", 32, "--learning-rate", 0.01, "--validate-every", 50, "--clip", "none")
    run = run_chatbot("train", "--size", "tiny", "--corpus", toy_tsv, "--min-count", 1, "--out", path, *options)
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(rf"{path}: validation loss \d\.\d+, perplexity \d\.\d+, at iteration \d+\n", run.stdout)
    assert "72 of 72 short pairs, 17 tokens" in run.stderr
    assert run.stderr.count("perplexity") == 4
    assert [file.name for file in path.parent.iterdir()] == ["bot.pt"]
    return path


@pytest.mark.process
def test_chat_answers_lines_from_a_pipe_until_q(run_chatbot: RunChatbot, bot: Path) -> None:
    talk = "I like tea!\nwe REALLY want unicorns\n\n42\nq\nthey see rain\n"
    run = run_chatbot("chat", "--model", bot, "--time", stdin=talk)
    assert run.returncode == 0, run.stderr
    replies = run.stdout.splitlines()
    assert len(replies) == 3  # the empty line is passed over, the line after q is not read
    assert all(re.fullmatch(r"Bot: .+  \(\d+\.\d ms\)", reply) for reply in replies)
    assert replies[0].startswith("Bot: why do i like tea?  (")
    assert replies[2].startswith("Bot: ...")
    assert run.stderr == "(unknown: !)\n(unknown: unicorns)\n(unknown: no words)\n"


@pytest.mark.process
def test_chat_with_torchscript_gives_the_same_replies(
    run_chatbot: RunChatbot, bot: Path, toy_pairs: list[corpus.Pair]
) -> None:
    prompts = [pair.prompt for pair in toy_pairs[::6]]
    run = run_chatbot("chat", "--model", bot, "--variant", "torchscript", stdin="\n".join(prompts))
    eager = Speaker(load(bot))
    assert run.stdout.splitlines() == [f"Bot: {eager.answer(prompt).text}" for prompt in prompts]
    assert (run.returncode, run.stderr) == (0, "")


def test_chat_survives_a_line_that_is_not_utf_8(
    toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    typed = io.BytesIO("café\n".encode("iso-8859-1") + b"i like tea\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, encoding="utf-8"))
    assert run_here(monkeypatch, "chat", "--model", str(toy_checkpoint)) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "Bot: why do i like tea?"


def test_training_that_explodes_ends_without_a_traceback(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rates = ("--optimizer", "sgd", "--learning-rate", "1e5", "--clip", "none", "--validate-every", "1")
    line = (filled(word, places) for word in (*TRAIN, *rates, "--iterations", "5"))
    assert run_here(monkeypatch, *line) in (0, 2)
    assert capfd.readouterr().err


class Terminal:
    """A person's side of a pseudo-terminal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.seen, self.unread = descriptor, "", ""

    def read_until(self, expected: str, limit_s: float = 60) -> None:
        """Reads on from where the last call's text ended, to the end of ``expected``."""
        end = monotonic() + limit_s
        while expected not in self.unread:
            readable, _, _ = select.select([self.descriptor], [], [], max(0, end - monotonic()))
            assert readable, f"no {expected!r} in {self.unread!r}"
            shown = os.read(self.descriptor, 1024).decode()
            self.seen, self.unread = self.seen + shown, self.unread + shown
        self.unread = self.unread.partition(expected)[2]

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())


@contextmanager
def at_terminal(*arguments: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """``python -m chatbot`` with a terminal for its input and output."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "chatbot", *arguments]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            yield Terminal(ours), process
        finally:
            process.kill()
            os.close(ours)


@pytest.mark.process
@pytest.mark.parametrize("farewell", ["q\n", "\x04"], ids=["q", "Ctrl-D"])
def test_chat_at_a_terminal_prompts_answers_and_leaves(farewell: str, toy_checkpoint: Path) -> None:
    with at_terminal("chat", "--model", str(toy_checkpoint)) as (terminal, process):
        terminal.read_until("> ")
        terminal.type("they see cats\n")
        terminal.read_until("Bot: why do they see cats?")
        terminal.read_until("> ")
        terminal.type(farewell)
        assert process.wait(60) == 0
    assert "q leaves" in terminal.seen


@pytest.mark.parametrize(("own", "seed"), [(("--split-seed", "3"), 3), ((), 7)])
def test_what_is_held_out_follows_from_its_own_seed_or_else_from_that_of_training(
    own: tuple[str, ...],
    seed: int,
    toy_tsv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path, places = tmp_path / "bot.pt", ("--corpus", str(toy_tsv))
    options = ("--size", "tiny", "--min-count", "1", "--iterations", "1", "--seed", "7", *own)
    assert run_here(monkeypatch, "train", "--out", str(path), *places, *options) == 0
    assert run_here(monkeypatch, "evaluate", "--model", str(path), *places, "--json") == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    held_out = split(list(corpus.load(str(toy_tsv)).pairs), 0.05, seed)[1]
    assert {prompt for prompt, _ in result["samples"]} == {pair.prompt for pair in held_out}
    assert load(path).notes["options"]["seed"] == 7


@pytest.mark.process
def test_evaluate_judges_the_pairs_that_training_held_out(run_chatbot: RunChatbot, bot: Path, toy_tsv: Path) -> None:
    run = run_chatbot("evaluate", "--model", bot, "--corpus", toy_tsv, "--json")
    assert (run.returncode, run.stderr) == (0, "")
    result = json.loads(run.stdout.splitlines()[-1])
    held_out = split(list(corpus.load(str(toy_tsv)).pairs), 0.05, 0)[1]
    assert (result["pairs"], result["held_out"]) == (len(held_out), True)
    assert result["loss"] == pytest.approx(load(bot).notes["validation_loss"])
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert {prompt for prompt, _ in result["samples"]} == {pair.prompt for pair in held_out}
    assert f"{len(held_out)} held-out pairs of {toy_tsv}" in run.stdout


@pytest.mark.process
def test_export_writes_the_search_and_prints_only_its_graph(
    run_chatbot: RunChatbot, toy_checkpoint: Path, tmp_path: Path
) -> None:
    run = run_chatbot("export", "--model", toy_checkpoint, "--out", tmp_path / "search.pt", "--graph")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("graph(%self")
    assert str(tmp_path / "search.pt") in run.stderr
    assert str(tmp_path / "search.pt") not in run.stdout
    assert "vocabulary.json" in run.stderr
    assert (tmp_path / "search.pt").stat().st_size > 0


@pytest.mark.process
def test_the_shipped_chatbot_answers(run_chatbot: RunChatbot) -> None:
    run = run_chatbot("chat", stdin="hello\n")
    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(r"Bot: [a-z][a-z .!?]*\n", run.stdout)


def test_the_shipped_weights_are_small_and_described() -> None:
    assert (WEIGHTS / "small.pt").stat().st_size <= 10_000_000
    assert (WEIGHTS / "small.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("notes", [{}, {"options": {}}, {"options": 3}, {"options": {"seed": 1}}])
def test_a_checkpoint_that_does_not_say_what_it_held_out_is_judged_on_all(
    notes: dict[str, object], toy: Trained, toy_pairs: list[corpus.Pair]
) -> None:
    told = replace(toy, notes={"corpus": "toy", **notes})
    assert held_out_pairs(told, "toy", toy_pairs) == []
    whole = replace(toy, notes={"corpus": "toy", "options": {"seed": 1, "validation_share": 0.2}})
    assert held_out_pairs(whole, "toy", toy_pairs) == split(toy_pairs, 0.2, 1)[1]
    assert held_out_pairs(whole, "other", toy_pairs) == []
