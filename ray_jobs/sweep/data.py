"""The pairs that a sweep's trials train on and are evaluated with."""

from chatbot import corpus
from chatbot.errors import UsageError
from chatbot.vocabulary import Vocabulary
from ray_jobs.sweep.spec import SweepSpec


def load_data(spec: SweepSpec) -> tuple[list[corpus.Pair], Vocabulary]:
    """Loads the pairs that trials train on and are evaluated with, and their words."""
    pairs = corpus.short_pairs(corpus.load(spec.corpus).pairs)
    usable = corpus.trim(pairs, spec.min_count)
    if not usable:
        raise UsageError(f"no pair of {spec.corpus} is left with --min-count {spec.min_count}; give a lower one")
    return usable, Vocabulary.of_pairs(pairs, spec.min_count)
