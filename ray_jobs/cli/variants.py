"""``latency-matrix variants``: the table of names, what each needs, and whether it can run here."""

from dataclasses import replace

from chatbot.variants import UNTRIED, VARIANTS, UnavailableError, Variant, Workload, prepared

SIZE = Workload(prompt_tokens=4, reply_tokens=2, model="tiny")
HERE = "yes"


def available(variant: Variant) -> str:
    """``HERE``, or the reason why a variant can't run on this machine, found by preparing it for the smallest model.

    What would first compile for minutes is asked for its compiler alone.
    """
    import torch

    from chatbot.config import PRESETS
    from chatbot.model import Chatbot
    from ray_jobs.measure.result import one_line

    device = "cuda" if "cpu" not in variant.devices else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    try:
        if variant.ready is not None:
            variant.ready(device)
        else:
            with torch.inference_mode():
                prepared(variant, Chatbot.random(PRESETS["tiny"]).to(device), replace(SIZE, device=device))
    except UnavailableError as error:
        return str(error)
    except Exception as error:
        return one_line(error)
    return HERE


def variants() -> None:
    """List the ways to execute the chatbot, what each needs, and whether it can run here."""
    width = max(map(len, VARIANTS)) + 2
    for variant in VARIANTS.values():
        promise = "the baseline's replies" if variant.exact else "nearly the baseline's replies"
        needs = f"; needs {', '.join(variant.needs)}" if variant.needs else ""
        print(f"{variant.name:{width}}{available(variant)}")
        untried = f"; {UNTRIED}" if variant.untried else ""
        print(f"{'':{width}}{variant.summary}; {promise}; {', '.join(variant.devices)}{needs}{untried}")
