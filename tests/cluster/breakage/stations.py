"""What can't be measured, or not yet: no such station, one that joins late, one that is set up otherwise."""

from collections.abc import Callable

from breakage.bench import NOTHING, PATIENCE_S, Bench, Injected, line_with


def skipped(words: str, *arguments: str) -> Callable[[Bench], Injected]:
    """Nothing can be measured: said at once, and the command ends."""

    def inject(bench: Bench) -> Injected:
        command = bench.matrix(*arguments)
        seconds = command.wait_for(words, PATIENCE_S)
        code = command.wait(PATIENCE_S)
        return line_with(command.said, words), seconds, NOTHING if code == 0 else f"exit code {code}"

    return inject


def late_node(bench: Bench) -> Injected:
    run = bench.matrix("--wait-for", "cpu=3", "--wait", "90", "--stations", "zone=c", "--budget", "1", run="late")
    run.wait_for("waiting for the cluster", PATIENCE_S)
    try:
        bench.node("node-3", "c")
        seconds = run.wait_for("starting", PATIENCE_S)
        run.wait(PATIENCE_S)
        return (
            line_with(run.said, "waiting for the cluster") + " ... " + line_with(run.said, "starting"),
            seconds,
            bench.lost("late"),
        )
    finally:
        bench.bed.kill_node("node-3")


def other_torch(bench: Bench) -> Injected:
    """A node on whose path stands the description of another release."""
    shadow = bench.bed.folder / "shadow" / "torch-1.0.dist-info"
    shadow.mkdir(parents=True)
    (shadow / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    bench.bed.start_node("node-4", 0, labels="zone=d", environment={"PYTHONPATH": str(shadow.parent)})
    try:
        command = bench.matrix("--budget", "1", "--stations", "zone=d")
        seconds = command.wait_for("it has torch 1.0", PATIENCE_S)
        code = command.wait(PATIENCE_S)
        return line_with(command.said, "it has torch 1.0"), seconds, NOTHING if code == 1 else f"exit code {code}"
    finally:
        bench.bed.kill_node("node-4")


def no_cuda(bench: Bench) -> Injected:
    """A node that tells Ray of a GPU which PyTorch there does not see."""
    words = "failed: PyTorch"
    bench.bed.start_node("node-5", 0, labels="zone=e", gpus=1)
    try:
        command = bench.matrix("--budget", "1", "--device", "cuda", "--stations", "zone=e", "--isolation", "device")
        seconds = command.wait_for(words, PATIENCE_S)
        code = command.wait(PATIENCE_S)
        return line_with(command.said, words), seconds, NOTHING if code == 1 else f"exit code {code}"
    finally:
        bench.bed.kill_node("node-5")
