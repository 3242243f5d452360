"""What the trials of a spec read: the model's weights and the prompts."""

import hashlib
import os
from functools import partial
from pathlib import Path

import numpy as np

from chatbot import checkpoint, corpus
from chatbot.errors import UsageError
from chatbot.prompts import prompt_pool
from chatbot.variants import VARIANTS, Workload, is_own
from ray_jobs import provenance
from ray_jobs.load import sizes
from ray_jobs.measure import contract
from ray_jobs.measure.orders import up_to_multiple
from ray_jobs.measure.replies import LEAST_COMPARED
from ray_jobs.measure.rounds import MOST_CALLS, MOST_WARMUP_CALLS, ROUNDS
from ray_jobs.measure.trial import Checkpoint, CheckpointBytes, Factory, Inputs, Preset
from ray_jobs.process.server import LaunchServer, Loss, LossKind, Request, TrialError
from ray_jobs.scenario import Load
from ray_jobs.sides import sides_of
from ray_jobs.spec import Spec, import_own


def inputs_of(spec: Spec) -> Inputs:
    """Loads the model and draws the prompts, enough that no launch asks one twice. Raises UsageError."""
    import_own(spec)
    if is_own(spec.model):
        return _of_own(spec)
    model = checkpoint.open_model(spec.model)
    source = corpus.load(spec.corpus)
    rounds = up_to_multiple(ROUNDS, len(spec.variants) * max(1, len(sides_of(spec.against))))
    calls = max(rounds * (1 + MOST_CALLS), *(_under_load(load) for load in spec.loads))
    count = max(max(spec.batch) * (MOST_WARMUP_CALLS + calls), LEAST_COMPARED)
    lengths = spec.prompt_tokens
    prompts = {length: prompt_pool(source, model.vocabulary, length, count, spec.seed) for length in lengths}
    if not model.trained:  # a side may draw other random numbers
        return Inputs(CheckpointBytes(checkpoint.to_bytes(model)) if spec.against else Preset(model.name), prompts)
    path = checkpoint.SHIPPED if model.name == "small" else Path(spec.model)
    return Inputs(CheckpointBytes(path.read_bytes()), prompts)


def _under_load(load: Load | None) -> int:
    """Calls of a launch under load, after its warm-up, to each variant."""
    return 0 if load is None else sizes.ROUNDS * sizes.most_calls(load)


def _of_own(spec: Spec) -> Inputs:
    """Asks the model what it must be, so that its quirks cost no launches. Raises UsageError."""
    found = _examined(spec)
    model = Factory(spec.model, found.weights, found.code, found.gradients, found.warnings, found.cases, found.parts)
    return Inputs(model, {length: np.zeros((0, length), dtype=np.int64) for length in spec.prompt_tokens})


def _examined(spec: Spec) -> contract.Findings:
    """The findings of a process of its own, which has a launch's time: a model may crash, loop or fill the memory."""
    timeout_s = spec.launch_timeout_s
    work = partial(contract.ask, spec.model, spec.plan(), timeout_s)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    try:
        with LaunchServer(Workload(threads=1, model=spec.model)) as server:
            found = server.run(Request(work, cores, 1, timeout_s))
    except TrialError as error:
        raise UsageError(f"model {spec.model!r} can't be examined: {error}") from None
    if isinstance(found, Loss):
        raise UsageError(_lost(spec.model, found, timeout_s))
    if isinstance(found, contract.Refusal):
        raise UsageError(found.reason)
    assert isinstance(found, contract.Findings)
    return found


def _lost(name: str, loss: Loss, timeout_s: float) -> str:
    if loss.kind == LossKind.LATE:
        within = f"within {timeout_s:g} s, a launch's time, in which it was busy with {loss.variant or 'itself'}"
        return f"model {name!r} was not made and asked {within}: make it faster, or give a larger --launch-timeout"
    return f"model {name!r} ends the process that it is made and asked in: {loss.reason}"


def with_cases(spec: Spec, inputs: Inputs) -> Spec:
    """The spec with the cases of an own model, of which each has workloads."""
    named = isinstance(inputs.model, Factory) and "#" not in spec.model and inputs.model.cases
    return spec.model_copy(update={"cases": named}) if named else spec


def parts_of(inputs: Inputs) -> tuple[str, ...]:
    """The parts of an own model that variants convert; none of a model that they take whole."""
    return inputs.model.parts if isinstance(inputs.model, Factory) else ()


def identity_of(inputs: Inputs, spec: Spec) -> dict[str, str]:
    """Hashes of what a launch depends on: samples with other hashes can't be combined with it."""
    prompts = b"".join(str(length).encode() + pool.tobytes() for length, pool in sorted(inputs.prompts.items()))
    match inputs.model:
        case Factory(name, weights):
            model = " ".join([name, weights, *parts_of(inputs)]).encode()
        case CheckpointBytes(content):
            model = content
        case Preset(name) | Checkpoint(name):
            model = name.encode()
    asked = spec.model_dump_json(exclude={"model", "corpus"}).encode()  # those are told by what is in them
    hashed = {"spec": asked, "model": model, "prompts": prompts}
    if isinstance(inputs.model, Factory):
        hashed["model_code"] = inputs.model.code.encode()
    if own := [name for name in spec.variants if name not in VARIANTS]:
        hashed["variants"] = " ".join(map(provenance.own_source, own)).encode()
    return {**{name: _hash(content) for name, content in hashed.items()}, "code": provenance.source_hash()}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
