"""What the trials of a spec read: the model's weights and the prompts."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from chatbot import checkpoint, corpus
from chatbot.prompts import prompt_pool
from chatbot.variants import VARIANTS, is_own
from ray_jobs import provenance
from ray_jobs.measure import custom_model
from ray_jobs.measure.orders import up_to_multiple
from ray_jobs.measure.replies import LEAST_COMPARED
from ray_jobs.measure.rounds import MOST_CALLS, MOST_WARMUP_CALLS, ROUNDS
from ray_jobs.measure.trial import Checkpoint, CheckpointBytes, Factory, Inputs, Preset
from ray_jobs.spec import Spec, import_own


def inputs_of(spec: Spec) -> Inputs:
    """Loads the model and draws the prompts, enough that no launch asks one twice. Raises UsageError."""
    import_own(spec)
    if is_own(spec.model):
        return _of_own(spec)
    model = checkpoint.open_model(spec.model)
    source = corpus.load(spec.corpus)
    rounds = up_to_multiple(ROUNDS, len(spec.variants))
    count = max(max(spec.batch) * (MOST_WARMUP_CALLS + rounds * (1 + MOST_CALLS)), LEAST_COMPARED)
    lengths = spec.prompt_tokens
    prompts = {length: prompt_pool(source, model.vocabulary, length, count, spec.seed) for length in lengths}
    if not model.trained:
        return Inputs(Preset(model.name), prompts)
    path = checkpoint.SHIPPED if model.name == "small" else Path(spec.model)
    return Inputs(CheckpointBytes(path.read_bytes()), prompts)


def _of_own(spec: Spec) -> Inputs:
    """Tries the factory and its inputs here, so that a mistake in them costs no launches. Raises UsageError."""
    model = custom_model.load(spec.model)
    for workload in spec.plan():
        custom_model.inputs_of(model, 0, replace(workload, device="cpu"))
    return Inputs(Factory(spec.model), {length: np.zeros((0, length), dtype=np.int64) for length in spec.prompt_tokens})


def identity_of(inputs: Inputs, spec: Spec) -> dict[str, str]:
    """Hashes of what a launch depends on: samples with other hashes can't be combined with it."""
    prompts = b"".join(str(length).encode() + pool.tobytes() for length, pool in sorted(inputs.prompts.items()))
    match inputs.model:
        case Factory(name):
            model = f"{name} {provenance.own_source(name)}".encode()
        case CheckpointBytes(content):
            model = content
        case Preset(name) | Checkpoint(name):
            model = name.encode()
    asked = spec.model_dump_json(exclude={"model", "corpus"}).encode()  # those are told by what is in them
    hashed = {"spec": asked, "model": model, "prompts": prompts}
    if own := [name for name in spec.variants if name not in VARIANTS]:
        hashed["variants"] = " ".join(map(provenance.own_source, own)).encode()
    return {**{name: _hash(content) for name, content in hashed.items()}, "code": provenance.source_hash()}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
