"""The compiled engine with the instructions of other processors, next to eager with theirs, and next to other sources.

``python benchmarks/instructions.py [--against FOLDER] [--turns 5] [--out FILE]`` compiles the engine for AVX2, for
AVX-512 without VNNI and for this machine, and times replies at the tutorial's size in fresh pinned processes, by turns.
FOLDER: another checkout, whose engine takes turns with this one. Eager is held to the instructions too: ATen, oneDNN
and MKL each by its own variable. Prints the median of the turns' medians in ms, one line of JSON a program.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
# Flags of the compiler, and what holds PyTorch's libraries to no more than these instructions.
SETS = {
    "avx2": (
        "-march=haswell",
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ),
    "avx512": (
        "-march=skylake-avx512",
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    ),
    "native": ("-march=native", {}),
}
CHILD = """
import statistics, sys, time
import torch
from chatbot.config import PRESETS
from chatbot.model import Chatbot, GreedySearch
from chatbot.native.engine import Engine
program, flags, threads, batch, calls = *sys.argv[1:3], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
with torch.inference_mode():
    chatbot = Chatbot.random(PRESETS["tutorial"])
    if program == "eager":
        search = GreedySearch(chatbot.encoder, chatbot.decoder, chatbot.config.decoder_layers)
        reply = lambda prompts, lengths: search(prompts, lengths, 10)
    else:
        reply = Engine(chatbot, program, 10, threads, machine=(flags,))
    lengths, walls = torch.full((batch,), 8), []
    for _ in range(5 + calls):
        prompts = torch.randint(3, chatbot.config.vocabulary, (batch, 8))
        start = time.perf_counter()
        reply(prompts, lengths)
        walls.append(time.perf_counter() - start)
print(1e3 * statistics.median(walls[5:]))
"""
CALLS = 40


def milliseconds(sources: Path, instructions: str, program: str, threads: int, batch: int) -> float:
    """The median reply of a fresh process."""
    flags, held = SETS[instructions]
    env = {**os.environ, **held, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": str(threads)}
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    command = [sys.executable, "-P", "-c", CHILD, program, flags, str(threads), str(batch), str(CALLS)]
    done = subprocess.run(
        command,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return float(done.stdout)


def processor() -> str:
    """The name, family and model of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    named = [facts.get("model name", platform.machine()), f"family {facts.get('cpu family')}"]
    return ", ".join([*named, f"model {facts.get('model')}"])


def main() -> None:
    """Measures by turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--instructions", default="avx2,avx512,native")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a file to append to")
    asked = parser.parse_args()
    if asked.against and not (asked.against / "chatbot" / "native").is_dir():
        parser.error(f"--against {asked.against}: no checkout is there")
    checkouts = {"this": ROOT, **({"other": asked.against.resolve()} if asked.against else {})}
    programs = [
        (name, instructions, program)
        for instructions in asked.instructions.split(",")
        for program in ("eager", "float32", "qint8")
        for name in (checkouts if program != "eager" else ["this"])
    ]
    found: dict[tuple[str, str, str], list[float]] = {one: [] for one in programs}
    for turn in range(asked.turns):
        for one in programs if turn % 2 else reversed(programs):
            name, instructions, program = one
            sources = checkouts[name]
            found[one].append(milliseconds(sources, instructions, program, asked.threads, asked.batch))
    for (name, instructions, program), walls in found.items():
        eager = median(found["this", instructions, "eager"])
        line = json.dumps(
            {
                "processor": processor(),
                "threads": asked.threads,
                "batch": asked.batch,
                "checkout": name,
                "instructions": instructions,
                "program": program,
                "ms": round(median(walls), 3),
                "least_ms": round(min(walls), 3),
                "most_ms": round(max(walls), 3),
                "eager_over_it": round(eager / median(walls), 2),
            }
        )
        print(line, flush=True)
        if asked.out:
            with asked.out.open("a") as file:
                file.write(f"{line}\n")


if __name__ == "__main__":
    main()
