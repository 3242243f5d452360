"""Copies a submitted job's run directory to this machine through the port of Ray's dashboard alone.

A second, small job on the head node packs the directory and prints it; the logs of both come through the same port.
"""

import base64
import io
import platform
import re
import tarfile
import time
import uuid
from pathlib import Path
from typing import Any

from chatbot.errors import UsageError
from ray_jobs.measure.result import one_line
from ray_jobs.results.store import RunDirectory

POLL_S = 0.5
# Ray looks at a job once a second until it has seen its end; one deleted before that comes back as failed.
SETTLE_S = 2.0
PACKING = "fetch-"  # begins the names of our own jobs
TIMEOUT_S = 300.0
BEGIN, END = "BEGIN RUN DIRECTORY", "END RUN DIRECTORY"
LINE = re.compile(r"ray_jobs: the run directory is (\S.*) on (\S+)$", re.MULTILINE)
PACK = """
import base64, io, os, sys, tarfile
place = sys.argv[1]
if not os.path.isdir(place):
    sys.exit("no such directory on this node: " + place)
content = io.BytesIO()
with tarfile.open(fileobj=content, mode="w:gz") as tar:
    tar.add(place, arcname=os.path.basename(place))
print("{begin}")
text = base64.b64encode(content.getvalue()).decode()
for start in range(0, len(text), 4000):
    print(text[start:start + 4000])
print("{end}")
"""


def run_line(directory: RunDirectory) -> str:
    """The line in which a job reports its run directory; ``bring_home`` reads it."""
    return f"ray_jobs: the run directory is {directory.local_path or directory.shown} on {platform.node()}"


def bring_home(job: str, address: str, out: Path) -> str:
    """Copies a job's run directory into a local folder and returns its path.

    Raises:
        UsageError: no such job or address, or the job has no run directory on its node.
    """
    client = _client(address)
    place = _place(client, job)
    target = out / Path(place).name
    if target.exists():
        raise UsageError(f"{target} already exists; move it away or give another --out")
    content = _unpacked(_packed(client, place))
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        tar.extractall(out, filter="data")
    return str(target)


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray dashboard at {address}: {one_line(error)}") from None


def _place(client: Any, job: str) -> str:
    """The run directory according to the job's log."""
    try:
        log = client.get_job_logs(job)
    except RuntimeError as error:
        names = sorted(str(j.submission_id) for j in client.list_jobs() if j.submission_id)
        known = ", ".join(name for name in names if not name.startswith(PACKING)) or "none"
        raise UsageError(f"no job {job!r} there ({one_line(error)}); its jobs: {known}") from None
    said = LINE.search(log)
    if said is None:
        raise UsageError(f"job {job} names no run directory: it has not started measuring, or is not a matrix job")
    if "://" in said[1]:
        raise UsageError(f"job {job} keeps its results in {said[1]}: read them there")
    return said[1]


def _packed(client: Any, place: str) -> str:
    """The log of a job that prints the directory."""
    from ray.job_submission import JobStatus

    program = PACK.format(begin=BEGIN, end=END)
    code = base64.b64encode(program.encode()).decode()  # a shell reads the line
    argument = base64.b64encode(place.encode()).decode()
    entry = (
        f'python3 -c "import base64, sys; sys.argv[1] = base64.b64decode(sys.argv[1]).decode(); '
        f"exec(base64.b64decode('{code}'))\" {argument}"
    )
    job = client.submit_job(entrypoint=entry, submission_id=f"{PACKING}{uuid.uuid4().hex[:12]}")
    end = time.monotonic() + TIMEOUT_S
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > end:
            client.stop_job(job)
            raise UsageError(f"the cluster did not pack {place} within {TIMEOUT_S:.0f} s; see job {job}")
        time.sleep(POLL_S)
    log = str(client.get_job_logs(job))
    if status != JobStatus.SUCCEEDED:
        last = (log.strip().splitlines() or ["it said nothing"])[-1]
        raise UsageError(f"{place} could not be packed: {last}")
    time.sleep(SETTLE_S)
    client.delete_job(job)
    return log


def _unpacked(log: str) -> bytes:
    """The text between the two marks. Raises UsageError if the log is cut off."""
    start, end = log.find(f"{BEGIN}\n"), log.find(f"\n{END}")
    if start < 0 or end < 0:
        raise UsageError("the packed directory arrived incomplete; try again")
    return base64.b64decode("".join(log[start + len(BEGIN) : end].split()))
