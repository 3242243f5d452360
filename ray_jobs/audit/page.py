"""An audit on one page of Markdown, the same text that the terminal shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.audit.cost import LEAST_CALLED_SHARE, MOST_OWN_CORES, MOST_SAMPLE_US
from ray_jobs.audit.detection import IMPOSSIBLE
from ray_jobs.audit.rates import CLAIMED, LEAST_FOUND, MOST_BIAS, MOST_FALSE
from ray_jobs.report.tables import table
from ray_jobs.report.text import DASH, between

EVERY_S = 30.0  # between lines of progress
ONE_BY_ONE = {  # alternatives, and how each times one program after the other
    "torch_benchmark": ("torch.utils.benchmark", "with its defaults"),
    "mean_of_100": ("mean of 100 calls", "without a warm-up"),
}
Section = Mapping[str, Any]


def render(audit: Mapping[str, Any]) -> str:
    """The whole audit as text, from ``audit.json``."""
    station, driver = (audit["environment"].get(name, {}) for name in ("station", "driver"))
    where = "{cpu}, {cores} cores, kernel {kernel}".format_map(station) if station else "nowhere"
    packages = driver.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "ray", "numpy") if packages.get(name))
    lines = [
        f"# Audit {audit['run_id']}",
        "",
        f"{audit['started']}, {audit['seconds'] / 60:.0f} minutes, on {where}; Python {driver.get('python')}, "
        f"{versions}; sources {driver.get('source_hash')}.",
        f"Command: `{' '.join(audit['command'])}`.",
        "",
        *(section(part) + "\n" for part in audit["parts"]),
    ]
    return "\n".join(lines)


def section(part: Section) -> str:
    """One part of the audit."""
    if part["part"] == "faults":
        return _faults(part)
    if part["part"] == "cost":
        return _cost(part)
    return _effect(part) if "found" in part else _identical(part)


def _identical(part: Section) -> str:
    load = ", next to a background load on every core" if part["part"].endswith("beside-load") else ", quiet"
    peers = {name: peer for name, peer in part["peers"].items() if peer["comparisons"]}
    rows = [
        _rate_row("this tool, its verdicts", part),
        _rate_row("this tool, its intervals", part, "intervals_missing_1", "missing"),
        *(_rate_row(f"{' '.join(ONE_BY_ONE[name])}, one by one", peer) for name, peer in peers.items()),
    ]
    of = part["comparisons"]
    worst = ", ".join(f"{ONE_BY_ONE[name][0]} {peer['worst_error']:.1%}" for name, peer in peers.items())
    return _section(
        f"{'The same environment twice' if 'sides' in part['part'] else 'Identical programs'}{_slo(part)}{load}",
        f"{_trials(part)} Promise (the rate's interval reaches below {CLAIMED:.0%} and ends under {MOST_FALSE:.0%}): "
        f"**{part['promise']}**.",
        table(("", "called different", "rate (95%)", "seconds each"), rows),
        f"An interval calls the two different where it excludes 1 (5% claimed); {_beyond(part, bool(peers))} "
        f"Verdicts: same {part['same']}, undecided {part['inconclusive']}, different {part['false_verdicts']} of {of}. "
        f"Median half-width {_number(part['median_half_width'], '.2%')}; {_machine(part)}."
        + (f"\nLargest difference the alternatives reported between identical programs: {worst}." if worst else ""),
    )


def _slo(part: Section) -> str:
    """By what they are compared, where it is not call by call."""
    slo = part["spec"].get("slo")
    return f" by the requests a second that hold {slo}" if slo else ""


def _beyond(part: Section, peers: bool) -> str:
    margin, count = f"{part['spec']['margin']:.0%}", part["beyond_margin"]
    if peers:
        return f"an alternative, where its figures differ by more than {margin}, as {count} of this tool's speedups do."
    return f"{count} of the speedups lie more than {margin} from 1."


def _section(title: str, said: str, lines: Sequence[str], more: str = "") -> str:
    return "\n\n".join(filter(None, (f"## {title}", said, "\n".join(lines), more)))


def _rate_row(who: str, part: Section, counted: str = "false_verdicts", rate: str = "rate") -> tuple[str, ...]:
    wrong, of, seconds = part[counted], part["comparisons"], _number(part["seconds_each"], ".1f")
    return (who, f"{wrong} of {of}", _share(part, wrong, rate, "{:.1%}"), seconds)


def _share(part: Section, count: int, name: str, form: str) -> str:
    of = part["comparisons"]
    return between(count / of if of else None, part[f"{name}_low"], part[f"{name}_high"], form.format)


def _trials(part: Section) -> str:
    spec = part["spec"]
    return (
        f"Model {spec['model']}{_threads(spec)}, precision {spec['precision']:.0%}, budget {spec['budget']:g} s "
        f"(at least ten launches, whatever it is)."
    )


def _threads(spec: Mapping[str, Any]) -> str:
    """Where there are several."""
    (threads,) = spec.get("threads", (1,))
    return f", {threads} threads" if threads > 1 else ""


def _machine(part: Section) -> str:
    return (
        f"disturbed rounds {_number(part['disturbed_share'], '.1%')}; failed trials {part['failed']}; "
        f"launches run again {part['lost_launches']}"
    )


def _effect(part: Section) -> str:
    asked = f"at least {LEAST_FOUND:.0%} found, bias within {MOST_BIAS:.1%}"
    row = (
        f"{part['found']} of {part['comparisons']}",
        _share(part, part["found"], "found", "{:.0%}"),
        str(part["called_slower"]),
        _missing(part),
        between(part["bias"], part["bias_low"], part["bias_high"], "{:+.2%}".format),
        _number(part["median_half_width"], ".2%"),
        _number(part["seconds_each"], ".1f"),
        _number(part["most_seconds"], ".1f"),
    )
    head = (
        "found",
        "share (95%)",
        "called slower",
        "intervals that miss it (95%)",
        "bias (95%)",
        "median half-width",
        "seconds each",
        "longest",
    )
    return _section(
        f"A slowdown of {part['percent']}%"
        + (" of one side" if "sides" in part["part"] else "")
        + _slo(part)
        + (", next to a background load" if "load" in part["part"] else ""),
        f"{_trials(part)} Promise ({asked}): **{part['promise']}**.",
        table(head, [row]),
        f"Found: the whole interval lies below 1. The verdict says slower where it also reaches beyond the margin of "
        f"{part['spec']['margin']:.0%}; {_machine(part)}.",
    )


def _missing(part: Section) -> str:
    """How many intervals do not hold the true ratio; unknown of an audit from before it was counted."""
    if (count := part.get("intervals_missing_truth")) is None:
        return "-"
    of = part["comparisons"] - part["failed"]
    share = between(count / of if of else None, part["missing_low"], part["missing_high"], "{:.1%}".format)
    return f"{count} of {of}, {share}"


def _faults(part: Section) -> str:
    caught = sum(fault["caught"] for fault in part["faults"])
    # Audits from before that was kept say it in the sentence.
    impossible = sum(f.get("impossible", f["by"].startswith(IMPOSSIBLE)) for f in part["faults"] if f["caught"])
    rows = [(fault["fault"], "yes" if fault["caught"] else "NO", fault["by"]) for fault in part["faults"]]
    return _section(
        "Planted mistakes",
        f"{caught} of {len(rows)} caught, {impossible} of them impossible by construction; each in a trial of its own "
        f"(model {part['spec']['model']}).",
        table(("mistake", "caught", "by"), rows),
    )


def _cost(part: Section) -> str:
    least, most = f"at least {LEAST_CALLED_SHARE:.0%}", f"at most {MOST_OWN_CORES:.0%}"
    rows = [
        ("time inside timed calls / time of the trial", _number(part["timed_share"], ".0%"), ""),
        ("... inside the untimed ones that refresh caches", _number(part.get("refresh_share"), ".0%"), ""),
        ("... inside both / time until the last launch", _number(part.get("called_share"), ".0%"), least),
        ("overhead of a sample", _number(part["sample_us"], ".1f", " us"), f"at most {MOST_SAMPLE_US:g} us"),
        ("... of it between the readings of the clock", _number(part["inside_us"], ".2f", " us"), ""),
        ("between two rounds: counters, prompts, garbage", _number(part["round_us"], ".0f", " us"), ""),
        ("our other processes while launches run", _number(part["own_cores"], ".1%", " of a core"), most),
        ("Ray's own processes", _number(part["ray_cores"], ".1%", " of a core"), ""),
    ]
    return _section(
        "What it costs",
        f"One trial of {part['launches']} launches in {part['seconds']:.0f} s, model {part['spec']['model']}. "
        + (f"Missed: {', '.join(part['missed'])}." if part["missed"] else "Every target met."),
        table(("", "measured", "target"), rows),
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return DASH if value is None else f"{value:{form}}{unit}"
