"""Two interpreters by turns, by hand: fresh processes, one after the other, each the median of some replies.

``python benchmarks/two_interpreters.py PYTHON OTHER [--variant eager] [--model small] [--pairs 20]`` prints how many
times faster OTHER is, with a 95% interval over pairs. Nothing of ray_jobs takes part: it is what a careful person would
write, to hold the tool's table against.
"""

import argparse
import math
import os
import subprocess
from pathlib import Path
from statistics import mean, median, stdev

from scipy.stats import t

ROOT = Path(__file__).parents[1]
# Warm-up aside, each call has a prompt of its own.
CHILD = """
import statistics, sys, time
import torch
from chatbot.checkpoint import open_model
from chatbot.variants import Workload, variant_named
variant, model, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
workload = Workload(model=model)
torch.manual_seed(0)
with torch.inference_mode():
    chatbot = open_model(model).chatbot
    reply = variant_named(variant).prepare(chatbot, workload)
    lengths, walls = torch.tensor([workload.prompt_tokens]), []
    for _ in range(10 + calls):
        prompt = torch.randint(3, chatbot.config.vocabulary, (1, workload.prompt_tokens))
        start = time.perf_counter()
        reply(prompt, lengths)
        walls.append(time.perf_counter() - start)
print(statistics.median(walls[10:]))
"""


def seconds(python: str, core: int, asked: list[str]) -> float:
    """The median reply of a fresh process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", CHILD, *asked],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, [core]),
    )
    return float(done.stdout)


def main() -> None:
    """Measures by turns and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python")
    parser.add_argument("other")
    parser.add_argument("--variant", default="eager")
    parser.add_argument("--model", default="small")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--calls", type=int, default=100)
    given = parser.parse_args()
    core, asked = max(os.sched_getaffinity(0)), [given.variant, given.model, str(given.calls)]
    logs: list[float] = []
    times: dict[str, list[float]] = {given.python: [], given.other: []}
    for pair in range(given.pairs):
        turns = [given.python, given.other][:: 1 if pair % 2 else -1]
        found = {python: seconds(python, core, asked) for python in turns}
        logs.append(math.log(found[given.python] / found[given.other]))
        for python, one in found.items():
            times[python].append(one)
    half = float(t.ppf(0.975, len(logs) - 1)) * stdev(logs) / len(logs) ** 0.5
    ratio, low, high = (f"{math.exp(mean(logs) + sign * half):.3f}" for sign in (0, -1, 1))
    middles = ", ".join(f"{1000 * median(one):.2f}" for one in times.values())
    print(f"{given.variant}, {given.model}: {ratio} times as fast ({low} to {high}), medians {middles} ms")


if __name__ == "__main__":
    main()
