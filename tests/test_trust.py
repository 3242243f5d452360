"""A run directory and a plan run no code unasked."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launches import ALL, made_launch
from runs import finished_run, trial_at

from chatbot.errors import UsageError
from ray_jobs.cli.app import main
from ray_jobs.measure import custom_model
from ray_jobs.results.store import RunDirectory

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
"""

Invoke = Callable[..., tuple[object, str]]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the foreign module leaves when it is imported from the current folder."""
    (tmp_path / "evil_module.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    return tmp_path / "ran"


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """(exit code, what was printed) of a command in this process."""

    def run(*words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["ray_jobs", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, "".join(capsys.readouterr())

    return run


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., str]:
    """The place of somebody else's run with this in its spec."""

    def made(**spec: object) -> str:
        directory = RunDirectory.named(str(tmp_path), "foreign")
        finished_run(
            directory, [(trial_at("foreign", ALL), [made_launch(dict.fromkeys(ALL, 9.0), i) for i in range(2)])]
        )
        record = json.loads(directory.read("run.json"))
        directory.write_json("run.json", {**record, "spec": {**record["spec"], **spec}})
        return directory.place

    return made


@pytest.mark.parametrize("command", [("matrix", "--wandb", "off", "--resume"), ("trace", "--run")], ids=lambda c: c[0])
@pytest.mark.parametrize(
    "spec",
    [
        {"variants": [*ALL, "evil_module:X"]},
        {"model": "evil_module:factory"},
        {"against": ["env=A=1", "pip=evil_module"]},
        {"against": ["python=/evil_module/bin/python"]},
        {"against": ["env=LD_PRELOAD=evil_module.so"]},
    ],
    ids=["variant", "model", "packages", "interpreter", "library"],
)
def test_code_that_a_run_names_is_imported_only_with_trust(
    command: tuple[str, ...], spec: dict[str, object], foreign: Callable[..., str], ran: Path, invoke: Invoke
) -> None:
    code, said = invoke(*command, foreign(**spec))
    assert (code, ran.exists()) == (2, False)
    assert "foreign names code outside of this program" in said
    assert "evil_module" in said
    assert said.rstrip().endswith("look at it, then add --trust")


def test_with_trust_it_is_imported(foreign: Callable[..., str], ran: Path, invoke: Invoke) -> None:
    code, said = invoke("matrix", "--wandb", "off", "--trust", "--resume", foreign(variants=[*ALL, "evil_module:X"]))
    assert (code, ran.exists()) == (2, True)
    assert "variant 'evil_module:X' can't be imported" in said


def test_a_timeline_is_rebuilt_without_trust(foreign: Callable[..., str], ran: Path, invoke: Invoke) -> None:
    code, _ = invoke("trace", "--timeline-only", "--run", foreign(variants=[*ALL, "evil_module:X"]))
    assert (code, ran.exists()) == (0, False)


@pytest.mark.parametrize("key", ['variants = ["evil_module:X"]', 'model = "evil_module:factory"'])
def test_a_plan_imports_nothing(key: str, ran: Path, invoke: Invoke, toy_tsv: Path, tmp_path: Path) -> None:
    corpus = f'corpus = "{toy_tsv}"' if "variants" in key else ""  # the smaller, where there is one
    (tmp_path / "spec.toml").write_text(f"{key}\n{corpus}\n")
    code, said = invoke("matrix", "--plan", "--wandb", "off", "--spec", str(tmp_path / "spec.toml"))
    assert (code, ran.exists()) == (0, False)
    assert "nothing was run" in said


def test_a_factory_that_is_defined_elsewhere_is_not_called() -> None:
    with pytest.raises(UsageError, match=r"^model 'os:getpid' is not defined in os but in posix: name it where it is"):
        custom_model.load("os:getpid")


def test_a_factory_may_be_defined_in_a_part_of_the_named_package() -> None:
    with pytest.raises(UsageError, match=r"^model 'json:JSONDecodeError' can't be made: TypeError"):
        custom_model.load("json:JSONDecodeError")
