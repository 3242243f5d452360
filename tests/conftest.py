"""Shared fixtures: a toy corpus, a tiny chatbot trained on it, and the command line in a process of its own."""

import gc
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import profiles
import pytest
import torch
from skips import SkipList

from chatbot import corpus, training
from chatbot.checkpoint import Trained, load
from chatbot.config import Config, Options
from chatbot.variants import VARIANTS, bf16
from chatbot.vocabulary import Vocabulary

torch.set_num_threads(1)
profiles.load()

LONGEST = (
    *("test_sweep.py", "test_trial.py", "test_trace_cli.py", "test_cluster_faults.py", "test_matrix_failures.py"),
    *("test_launch.py", "test_wandb_sink.py", "test_simulated.py", "test_cpp.py"),
)
TOY_WORDS = (("i", "we", "they"), ("", "really "), ("like", "want", "see"), ("cats", "dogs", "tea", "rain"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--allowed-skips", type=Path, help="Fail on a skip that is not listed in this file")


def pytest_configure(config: pytest.Config) -> None:
    """Puts back torch's own filter for what tracing says of torch's modules; pytest's filters replace it.

    Two workers of one test run do not wait for each other's stations.
    """
    if profiles.QUICK:
        profiles.keep_in_memory()
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ["LATENCY_MATRIX_LOCKS"] = os.path.join(tempfile.gettempdir(), f"latency-matrix-tests-{worker}")
    elif allowed := config.getoption("allowed_skips"):
        config.pluginmanager.register(SkipList(allowed))
    config.addinivalue_line("filterwarnings", r"ignore::torch.jit.TracerWarning:torch\.(?!jit)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run of what runs alone imports only the files that hold some of it: the others cost it half a minute."""
    alone = "and alone" in config.option.markexpr and collection_path.name.startswith("test_")
    return True if alone and "mark.alone" not in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one at the end.

    A case of a native variant starts the compiler, if only to ask for its version.
    """
    items.sort(key=lambda item: item.path.name not in LONGEST)
    native = {name for name, variant in VARIANTS.items() if variant.kind == "native"}
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and hasattr(item, "callspec")
            and item.callspec.params.get("name") in native
        ):
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect() -> None:
    """A launch collects garbage before its rounds; else among all of the test run's."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_process_unmarked() -> None:
    """In a quick run, which leaves out what is marked so; pytest-xdist has started its workers by then."""
    if profiles.QUICK:
        profiles.forbid_processes()


@pytest.fixture
def emulated_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 is prepared even on a CPU that only emulates it."""
    monkeypatch.setattr(bf16, "require_hardware", lambda device: None)


@pytest.fixture(scope="session")
def toy_tsv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 pairs of 3 or 4 words and their answers: ``i like tea`` is asked ``why do i like tea ?``."""
    prompts = [f"{who} {really}{verb} {what}" for who, really, verb, what in itertools.product(*TOY_WORDS)]
    path = tmp_path_factory.mktemp("corpus") / "toy.tsv"
    path.write_text("".join(f"{prompt}\twhy do {prompt} ?\n" for prompt in prompts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def toy_pairs(toy_tsv: Path) -> list[corpus.Pair]:
    """The toy corpus, read."""
    return list(corpus.load(str(toy_tsv)).pairs)


@pytest.fixture(scope="session")
def toy_checkpoint(toy_tsv: Path, toy_pairs: list[corpus.Pair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny chatbot that has learnt the toy corpus. Read only."""
    words = Vocabulary.of_pairs(toy_pairs, 1)
    config = Config(hidden=16, encoder_layers=1, decoder_layers=1, vocabulary=len(words))
    options = Options(iterations=200, batch=32, learning_rate=1e-2, validate_every=100)
    path = tmp_path_factory.mktemp("model") / "toy.pt"
    training.fit(config, toy_pairs, words, options, path, notes={"corpus": str(toy_tsv), "min_count": 1})
    return path


@pytest.fixture(scope="session")
def toy(toy_checkpoint: Path) -> Trained:
    """The tiny chatbot itself. Read only."""
    return load(toy_checkpoint)


@pytest.fixture(scope="session")
def asking_toy(toy_checkpoint: Path, toy_tsv: Path) -> tuple[str | Path, ...]:
    """What a command measures: the tiny chatbot, with prompts of its corpus, in a budget too short for any launch."""
    inputs = ("--model", toy_checkpoint, "--corpus", toy_tsv)
    return (*inputs, "--prompt-tokens", "5", "--reply-tokens", "3", "--budget", "1")


@pytest.fixture(scope="session")
def run_chatbot() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``python -m chatbot`` with arguments and a text for its input; returns code, output and errors."""

    def run(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "chatbot", *map(str, arguments)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
        return subprocess.run(
            command,
            input=stdin,
            env=env,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
            check=False,
        )

    return run
