"""Which compiled libraries a launch takes from the cache: those made of the same sources, settings and machine."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import WORKLOAD, tiny
from torch._inductor import config

from chatbot import cache, compiler
from chatbot.native import build
from chatbot.variants import Workload, export_aoti, inductor

pytestmark = pytest.mark.process


def key(workload: Workload = WORKLOAD) -> str:
    return export_aoti._key(tiny(), workload)


def test_the_same_build_has_the_same_key() -> None:
    assert key() == key(replace(WORKLOAD, reply_tokens=WORKLOAD.reply_tokens + 1))  # the loop is not in the libraries


@pytest.mark.parametrize("change", [{"threads": 2}, {"batch": 2}, {"prompt_tokens": 9}])
def test_another_workload_has_another_key(change: dict[str, Any]) -> None:
    assert key(replace(WORKLOAD, **change)) != key()


def test_another_cpu_of_the_same_capability_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before, caches = key(), inductor.machine()
    flags = compiler.cpu()
    monkeypatch.setattr(compiler, "cpu", lambda: flags + " amx_tile")
    assert key() != before
    assert inductor.machine() != caches


def test_another_version_of_the_compiler_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "c++"
    keys = []
    for version in ("13.2", "13.2", "14.1"):
        made.write_text(f"#!/bin/sh\necho 'g++ {version}'\n")
        made.chmod(0o755)
        monkeypatch.setenv("CXX", str(made))
        keys.append((key(), build._identity((str(made),), build.FLAGS)))
    assert keys[0] == keys[1]
    assert keys[2][0] != keys[0][0]
    assert keys[2][1] != keys[0][1]


def test_another_setting_of_inductor_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    with config.patch({"cpp.enable_unsafe_math_opt_flag": not config.cpp.enable_unsafe_math_opt_flag}):
        assert key() != before
    assert key() == before
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/another/place")
    assert key() == before
    monkeypatch.setenv("TORCHINDUCTOR_FREEZING", "1")
    assert key() != before


def test_other_sources_have_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(export_aoti, "SOURCES", export_aoti.SOURCES[1:])
    assert key() != before


def test_inductor_compiles_for_the_workloads_threads_whatever_this_process_has() -> None:
    assert torch.get_num_threads() == 1
    with inductor.compiling(replace(WORKLOAD, threads=3)):
        from torch._inductor.utils import parallel_num_threads

        assert parallel_num_threads() == 3
    assert config.cpp.threads != 3


def test_inductor_keeps_what_it_compiles_in_a_folder_of_ours(tmp_path: Path) -> None:
    program = (
        "import os; from chatbot.variants import Workload, inductor\n"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir; cache_dir()\n"  # as torch.compile does
        "for _ in range(2):\n"
        "    with inductor.compiling(Workload()):\n"
        "        print(cache_dir())\n"
        "print(inductor.FOLDER in os.environ)"
    )
    env = {name: value for name, value in os.environ.items() if name != inductor.FOLDER}
    env[cache.CACHE] = str(tmp_path)
    said = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [str(tmp_path / f"inductor-{inductor.machine()}")] * 2 + ["False"]


def test_a_library_built_for_other_threads_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE, str(tmp_path))
    built: list[Path] = []

    def build_nothing(path: Path, *_: object) -> None:
        built.append(path)
        raise InterruptedError

    monkeypatch.setattr(export_aoti, "_build", build_nothing)
    monkeypatch.setattr(export_aoti, "require_compiler", lambda device: None)
    for threads in (1, 2):
        with pytest.raises(InterruptedError):
            export_aoti.prepare(tiny(), replace(WORKLOAD, threads=threads))
        built[-1].touch()
    assert len({*built}) == 2
