"""One fresh start of a variant: ``python -m ray_jobs.process.cold_program``, asked on stdin, answers on stdout.

It imports what a deployment would import, in that order, and reads the clock between; then it does the same with a
second model, as its process lives now.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatbot.variants import Reply, Variant, Workload

    Loaded = tuple[Callable[[], Reply], Callable[[Reply], Any], int]  # prepares, asks, bytes of the weights
    Load = Callable[[], Loaded]

MARK = "cold start: "  # before the line that tells


def started(asked: dict[str, Any]) -> dict[str, Any]:
    """Starts the variant, twice. Times are those of CLOCK_MONOTONIC, which the caller's began with."""
    os.sched_setaffinity(0, asked["cores"])
    sys.path += [place for place in asked["last"] if place not in sys.path]
    import torch

    from chatbot.variants import Workload, variant_named

    torch.set_num_threads(asked["workload"]["threads"])
    torch.set_num_interop_threads(1)
    workload = Workload(**asked["workload"])
    load = (_of_own if workload.own_model else _of_chatbot)(asked, workload, variant_named(asked["variant"]))
    if workload.device == "cuda":
        from ray_jobs.measure import gpu

        gpu.require_float32()
    imported_ns = time.monotonic_ns()
    gradients = bool(asked["model"].get("gradients"))
    with torch.no_grad() if gradients else torch.inference_mode():
        first, weights = _once(load, imported_ns, workload.device)
        live, _ = _once(load, time.monotonic_ns(), workload.device)
    from ray_jobs.process.page_cache import mapped_files

    fresh = {"import_s": (imported_ns - asked["began_ns"]) / 1e9, **first}
    return {"fresh": fresh, "warm": {"import_s": 0.0, **live}, "weights": weights, "files": mapped_files()}


def _once(load: "Load", began_ns: int, device: str) -> tuple[dict[str, float], int]:
    prepare, ask, weights = load()
    loaded_ns = time.monotonic_ns()
    reply = prepare()
    _wait_for(device)
    prepared_ns = time.monotonic_ns()
    ask(reply)
    _wait_for(device)
    replied_ns = time.monotonic_ns()
    marks = (began_ns, loaded_ns, prepared_ns, replied_ns)
    steps = ("load_s", "prepare_s", "first_reply_s")
    return {name: (marks[i + 1] - marks[i]) / 1e9 for i, name in enumerate(steps)}, weights


def _wait_for(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _of_chatbot(asked: dict[str, Any], workload: "Workload", variant: "Variant") -> "Load":
    import torch

    from chatbot import checkpoint
    from chatbot.config import PRESETS
    from chatbot.model import Chatbot
    from chatbot.variants import prepared

    def load() -> "Loaded":
        model = asked["model"]
        if "path" in model:
            bot = checkpoint.load(Path(model["path"])).chatbot
        else:
            bot = Chatbot.random(PRESETS[model["name"]], checkpoint.SEED)
        bot = bot.to(workload.device)
        prompts = torch.tensor(asked["prompts"], device=workload.device)
        lengths = torch.full((len(asked["prompts"]),), prompts.shape[1])
        size = sum(one.numel() * one.element_size() for net in (bot.encoder, bot.decoder) for one in net.parameters())
        return lambda: prepared(variant, bot, workload), lambda reply: reply(prompts, lengths), size

    return load


def _of_own(asked: dict[str, Any], workload: "Workload", variant: "Variant") -> "Load":
    import torch

    from chatbot.variants import UnavailableError, prepared_module
    from ray_jobs.measure import custom_model

    none = torch.empty(0)  # what a reply is given of lengths
    if asked["model"]["parts"]:
        raise UnavailableError("of a model with parts no cold start is measured")

    def load() -> "Loaded":
        model = custom_model.ready(custom_model.load(workload.model), workload)
        module = model.module.to(workload.device)
        example, first = (custom_model.inputs_of(model, index, workload) for index in (0, 1))
        size = sum(one.numel() * one.element_size() for one in module.parameters())
        return lambda: prepared_module(variant, module, example, workload), lambda reply: reply(first, none), size

    return load


def main() -> None:
    """Answers the request on stdin with a line of JSON: the figures, or why there are none."""
    asked = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        try:
            told = started(asked)
        except BaseException as error:
            from ray_jobs.measure.result import one_line

            told = {"lost": one_line(error)}
    print(f"{MARK}{json.dumps(told)}", flush=True)
    os._exit(0)  # what a start leaves running is not waited for


if __name__ == "__main__":
    main()
