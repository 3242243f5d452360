"""Who may import whom: the contracts of pyproject.toml catch what they are for; what a fresh process loads."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"ray", "wandb", "pyarrow"}
MEASURING = ("process", "matrix", "measure")


def modules_below(*folders: str) -> list[str]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    absent = "triton_kernels" if find_spec("triton") is None else None
    return [name.removesuffix(".__init__") for name in names if name.rpartition(".")[2] not in ("__main__", absent)]


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = [*command, "--no-cache"]
    return subprocess.run(done, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    for name in ("chatbot", "ray_jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_house_keeps_its_contracts(copy: Path) -> None:
    done = contracts(copy)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("ray_jobs/measure/orders.py", "from ray_jobs.matrix import rows", "The flow line is the folder list"),
        ("ray_jobs/cluster/events.py", "from ray_jobs.driver import run", "The flow line is the folder list"),
        ("ray_jobs/measure/orders.py", "from ray_jobs.measure import launch", "No two rooms import each other"),
        ("ray_jobs/process/lease.py", "import pyarrow", "What measures needs neither Ray nor Arrow nor W&B"),
        ("chatbot/corpus.py", "import ray", "The chatbot needs PyTorch alone"),
        ("ray_jobs/report/text.py", "import ray", "Ray is spoken to by the cluster and the sweep"),
        ("ray_jobs/report/text.py", "import wandb", "W&B is spoken to by its sink and the sweep"),
        ("ray_jobs/cluster/schedule.py", "import ray", "What decides about trials knows nothing of Ray"),
    ],
)
def test_an_import_that_is_not_allowed_breaks_its_contract(copy: Path, file: str, line: str, contract: str) -> None:
    source = (copy / file).read_text()
    try:
        (copy / file).write_text(f"{source}\n{line}\n")
        done = contracts(copy)
    finally:
        (copy / file).write_text(source)
    assert done.returncode != 0
    assert f"{contract} BROKEN" in done.stdout


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
    loaded = loaded_by(modules_below("chatbot"))
    assert {"chatbot", "torch"} <= loaded
    assert loaded.isdisjoint({*HEAVY, "ray_jobs"})


@pytest.mark.parametrize("module", ["chatbot.variants", "ray_jobs.spec", "ray_jobs.process.ready"])
def test_naming_variants_planning_a_run_and_building_its_sides_do_not_wait_for_torch(module: str) -> None:
    loaded = loaded_by([module])
    assert module.split(".")[0] in loaded
    assert loaded.isdisjoint({*HEAVY, "torch", "numpy"})


def test_what_measures_has_loaded_every_variant_before_a_launch_is_forked() -> None:
    program = (
        "import sys, ray_jobs.process.server; before = set(sys.modules); from chatbot.variants import load; load()\n"
    )
    program += "print(sorted(name for name in set(sys.modules) - before if name.startswith('chatbot.')))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_importing_what_measures_loads_neither_ray_nor_arrow_nor_wandb() -> None:
    loaded = loaded_by(["ray_jobs.spec", *modules_below(*(f"ray_jobs/{folder}" for folder in MEASURING))])
    assert {"chatbot", "ray_jobs", "torch"} <= loaded
    assert loaded.isdisjoint(HEAVY)


LAUNCHED = """
import json, sys
import numpy as np
import ray_jobs.process.server
from chatbot.checkpoint import SHIPPED
from chatbot.variants import Workload
from ray_jobs.measure.launch import measure
from ray_jobs.measure.result import Launch
from ray_jobs.measure.trial import Checkpoint
before = set(sys.modules)
pool = np.random.default_rng(0).integers(3, 50, (200, 8))
pool[:, -1] = 2
names = ("eager", "eager-again", "torchscript")
found = measure(Workload(), names, Checkpoint(str(SHIPPED)), pool, Launch(0, 0, rounds=3, calls=1))
assert not any(facts.failed or facts.skipped for facts in found.facts.values())
print(json.dumps([sorted(set(sys.modules) - before), sorted(before)]))
"""


def test_a_launch_of_what_is_not_compiled_imports_no_compiler() -> None:
    """Symbolic shapes and Dynamo take seconds to import, in every launch; loading a checkpoint once did."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHED],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    late, early = json.loads(done.stdout.splitlines()[-1])
    slow = ("sympy", "torch._dynamo", "torch._inductor", "torch.fx", "scipy")
    assert [name for name in late if name.startswith(slow)] == []
    assert "scipy" not in early, "which the launch server need not wait for either"
