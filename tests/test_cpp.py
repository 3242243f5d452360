"""The C++ program of ``examples/cpp``: built as ``make cpp`` does, against the installed PyTorch, and compared."""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SOURCES = Path(__file__).resolve().parent.parent / "examples" / "cpp"
LACKING = [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(bool(LACKING), reason=f"no {' and no '.join(LACKING)} here"),
]

PROMPTS = (
    *(
        "hello",
        "Hello, how are you?",
        "what do you like to do?",
        "where are you from",
        "i am tired.",
        "do you like cats?",
    ),
    *("WHAT IS YOUR NAME", "goodbye!", "thanks!!!", "do you have any pets ?", "how old are you?", "it's late..."),
    *("what is zzyzx?", "42", "   ", "tell me a joke; please"),
)
LATENCY = re.compile(r"  \(\d+\.\d ms\)$")


@pytest.fixture(scope="module")
def program(pytestconfig: pytest.Config) -> Path:
    """Built once for these sources and this PyTorch; kept in pytest's cache."""
    content = "".join(path.read_text() for path in sorted(SOURCES.iterdir()))
    key = hashlib.sha256((content + torch.__version__ + torch.__file__).encode()).hexdigest()[:12]
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(f"cpp-{key}")
    if not (folder / "chat").is_file():
        where = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
        for command in (["cmake", "-S", str(SOURCES), "-B", str(folder), where], ["cmake", "--build", str(folder)]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "chat"


@pytest.fixture(scope="module")
def exported(
    run_chatbot: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("export") / "bot.pt"
    done = run_chatbot("export", "--out", path)
    assert done.returncode == 0, done.stderr
    return path


def ask(program: Path, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_it_answers_as_chatbot_chat_does(
    program: Path, exported: Path, run_chatbot: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    lines = "".join(f"{prompt}\n" for prompt in PROMPTS)
    there = ask(program, exported, stdin=lines)
    here = run_chatbot("chat", "--variant", "torchscript", stdin=lines)
    assert there.returncode == here.returncode == 0, there.stderr
    replies = [LATENCY.sub("", line) for line in there.stdout.splitlines()]
    assert replies == here.stdout.splitlines()
    assert len(replies) == len(PROMPTS) - 1  # all but the empty line
    assert len(set(replies)) > 8
    assert "(unknown: zzyzx)" in there.stderr
    timed = [line for line in there.stdout.splitlines() if LATENCY.search(line)]
    assert len(timed) == len(replies) - 1  # all but the one without a word that it knows


def test_q_leaves(program: Path, exported: Path) -> None:
    done = ask(program, exported, stdin="hello\nq\nhello\n")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)


@pytest.mark.parametrize("content", [None, b"this is no archive"])
def test_a_file_that_can_not_be_loaded_is_one_line(program: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bot.pt"
    if content is not None:
        path.write_bytes(content)
    done = ask(program, path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"chat: {path}: ")
    assert done.stderr.count("\n") == 1


def test_an_archive_without_a_vocabulary_is_one_line(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "bot.pt"
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(path))
    done = ask(program, path)
    assert done.returncode == 1
    assert "holds no vocabulary.json; make it with chatbot export" in done.stderr


def test_without_a_file_it_says_how_it_is_used(program: Path) -> None:
    done = ask(program)
    assert done.returncode == 2
    assert "usage: chat bot.pt" in done.stderr
