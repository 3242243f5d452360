"""Who may import whom: read from the sources, and seen in a fresh process."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the top of the house down: a module imports only those above it.
ORDER = (
    *("orders", "statistics", "interference", "roofline", "speeds", "sentinel", "checks", "timing", "own"),
    *("records", "rounds", "subject", "measure"),
    *("forkserver", "lease", "launch", "trace", "trace.phases", "trace.shares", "trace.profiler", "trace.launches"),
    *("spec", "rows", "classes", "provenance", "samples", "directory", "words"),
    *("report", "report.draws", "report.view", "report.answers", "report.start", "report.heat", "report.scales"),
    *("report.charts", "report.page", "report.tables", "report.write", "report.commands", "compact", "runs"),
    *("cluster", "cluster.events", "cluster.schedule", "cluster.knock", "cluster.tasks", "cluster.stations"),
    *("cluster.connection", "cluster.fetch", "estimate", "moments", "trials", "resume", "terminal", "variants"),
    *("wandb_sink", "wandb_sink.content", "wandb_sink.client", "wandb_sink.sink", "wandb_sink.commands"),
    *("compare", "compare.cells", "compare.gate", "compare.output", "compare.commands"),
    *(
        "matrix",
        "audit",
        "audit.plants",
        "audit.load",
        "audit.peers",
        "audit.stand",
        "audit.rates",
        "audit.comparisons",
    ),
    *("audit.faults", "audit.cost", "audit.page", "audit.record", "audit.testbed"),
    *("audit.breakage", "audit.breakage.bench", "audit.breakage.stations", "audit.breakage.trials"),
    *("audit.breakage.drivers", "audit.breakage.stores", "audit.breakage.jobs", "audit.breakage.table"),
    *("audit.commands", "trace.timeline", "trace.operators", "trace.page", "trace.job", "trace.commands"),
    *("sweep", "sweep.space", "sweep.spec", "sweep.data", "sweep.table", "sweep.rungs"),
    *("sweep.importance", "sweep.charts", "sweep.page", "sweep.record", "sweep.worker", "sweep.tuning", "sweep.sink"),
    *("sweep.words", "sweep.agent", "sweep.commands", "__main__"),
)
HEAVY = {"ray", "wandb", "pyarrow"}
MEASURING = ("spec", *ORDER[: ORDER.index("trace.launches") + 1])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for name in ("chatbot", "ray_jobs") for path in sorted((ROOT / name).rglob("*.py"))}
CHATBOT = [name for name in MODULES if name.split(".")[0] == "chatbot"]


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, at its top or within a function; ours by their full names."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in _named(node)}


def _named(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        assert node.module is not None
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in inner if name in MODULES)
        if any(name not in MODULES for name in inner):
            yield node.module


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def reached(module: str) -> set[str]:
    """What a module imports, and what that imports, and so on; packages' ``__init__`` among them."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in MODULES:
            waiting += [*imports(MODULES[name]), *([name.rpartition(".")[0]] if "." in name else [])]
    return found


def test_the_reader_of_imports_sees_them_all(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import os.path, ray as r\nfrom chatbot import model, errors as e\nfrom chatbot.model import Config\n"
        "def f():\n    from ray_jobs import nothing\n    import wandb\n"
    )
    assert imports(source) == {"os.path", "ray", "chatbot.model", "chatbot.errors", "ray_jobs", "wandb"}


@pytest.mark.parametrize("module", CHATBOT)
def test_the_chatbot_knows_nothing_of_ray_arrow_wandb_or_the_matrix(module: str) -> None:
    assert packages(imports(MODULES[module])).isdisjoint({*HEAVY, "ray_jobs"})


@pytest.mark.parametrize("module", MEASURING)
def test_what_measures_reaches_neither_ray_nor_arrow_nor_wandb(module: str) -> None:
    assert packages(reached(f"ray_jobs.{module}")).isdisjoint(HEAVY)


def test_every_module_of_ray_jobs_has_its_place_in_the_house() -> None:
    found = {name.removeprefix("ray_jobs.") for name in MODULES if name.startswith("ray_jobs.")}
    assert found == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_those_above_it(module: str) -> None:
    ours = {name.removeprefix("ray_jobs.") for name in imports(MODULES[f"ray_jobs.{module}"]) if name in MODULES}
    ours = {name for name in ours if not name.startswith("chatbot")}
    ours -= {module} if module == "forkserver" else set()  # run as a program it imports itself by name, for its pickles
    ours -= {"ray_jobs"}  # the package itself, for its place on disk; it imports nothing
    assert ours <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("ray", ("ray_jobs.cluster.", "ray_jobs.sweep.")),
        ("wandb", ("ray_jobs.wandb_sink", "ray_jobs.sweep.sink", "ray_jobs.sweep.agent")),
        ("sklearn", ("ray_jobs.sweep.importance",)),
    ],
)
def test_only_its_own_places_speak_to_it(package: str, only: tuple[str, ...]) -> None:
    users = [name for name, path in MODULES.items() if package in packages(imports(path))]
    assert users
    assert all(name.startswith(only) for name in users)


@pytest.mark.parametrize("module", ["cluster.events", "cluster.schedule", "cluster.knock"])
def test_what_decides_about_trials_knows_nothing_of_ray(module: str) -> None:
    assert "ray" not in packages(reached(f"ray_jobs.{module}"))


def test_the_packages_themselves_import_nothing() -> None:
    assert imports(MODULES["chatbot"]) == imports(MODULES["ray_jobs"]) == set()


def loaded_by(modules: list[str]) -> set[str]:
    """The packages in a fresh process after these imports."""
    program = "import importlib, json, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", program, *modules],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_all_of_the_chatbot_loads_neither_ray_nor_arrow_nor_wandb_nor_the_matrix() -> None:
    loaded = loaded_by(CHATBOT)
    assert {"chatbot", "torch"} <= loaded
    assert loaded.isdisjoint({*HEAVY, "ray_jobs"})


def test_importing_what_measures_loads_neither_ray_nor_arrow_nor_wandb() -> None:
    loaded = loaded_by([f"ray_jobs.{module}" for module in MEASURING])
    assert {"chatbot", "ray_jobs", "torch"} <= loaded
    assert loaded.isdisjoint(HEAVY)
