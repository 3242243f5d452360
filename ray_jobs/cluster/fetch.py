"""Copies a submitted job's run directory to this machine through the port of Ray's dashboard alone.

A second, small job on the head node packs the directory and prints it; the logs of both come through the same port.
"""

import base64
import hashlib
import io
import platform
import re
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from chatbot.errors import UsageError, first_line
from ray_jobs.results.filesystem import PART
from ray_jobs.results.store import RunDirectory

POLL_S = 0.5
# Ray looks at a job once a second until it has seen its end; one deleted before that comes back as failed.
SETTLE_S = 2.0
PACKING = "fetch-"  # begins the names of our own jobs
TIMEOUT_S = 300.0
HTTP_TIMEOUT_S = (10.0, 120.0)  # to connect, and between two pieces of an answer
LARGEST = 200_000_000  # bytes of a run: more does not fit into a log
SIZE, BEGIN, END = "SIZE OF RUN DIRECTORY", "BEGIN RUN DIRECTORY", "END RUN DIRECTORY"
LINE = re.compile(r"ray_jobs: the run directory is (\S.*) on (\S+)$", re.MULTILINE)
PACK = """
import base64, hashlib, io, os, sys, tarfile
place = sys.argv[1]
if not os.path.isdir(place):
    sys.exit("no such directory on this node: " + place)
found = [os.path.join(at, name) for at, _, names in os.walk(place) for name in names]
found = [path for path in found if not path.endswith("{part}") and os.path.isfile(path)]
size = sum(os.path.getsize(path) for path in found)
if size > {largest}:
    sys.exit("it has %d MB, too many for a log; measure with --out s3://... or another place that both machines reach, "
             "or copy it with ray rsync-down" % (size // 1000000))
print("{size} %d %d" % (len(found), size), flush=True)
content = io.BytesIO()
with tarfile.open(fileobj=content, mode="w:gz") as tar:
    for path in found:
        tar.add(path, arcname=os.path.join(os.path.basename(place), os.path.relpath(path, place)))
print("{begin} " + hashlib.sha256(content.getvalue()).hexdigest())
text = base64.b64encode(content.getvalue()).decode()
for start in range(0, len(text), 4000):
    print(text[start:start + 4000])
print("{end}")
"""


def run_line(directory: RunDirectory) -> str:
    """The line in which a job reports its run directory; ``bring_home`` reads it."""
    return f"ray_jobs: the run directory is {directory.local_path or directory.shown} on {platform.node()}"


def bring_home(job: str, address: str, out: Path, tell: Callable[[str], None] = lambda line: None) -> str:
    """Copies a job's run directory into a local folder and returns its path; ``tell`` gets all other messages.

    Raises:
        UsageError: no such job or address, it does not answer, or the job has no run directory on its node.
    """
    with _one_line(address):
        client = _client(address)
        place = _place(client, job)
        target = out / PurePosixPath(place).name
        if target.exists():
            raise UsageError(f"{target} already exists; move it away or give another --out")
        if not client.get_job_status(job).is_terminal():
            tell(f"job {job} is still running: this copies what it has so far; fetch it again when it has ended")
        content = _content(_packed(client, place, tell))
    try:
        _unpack(content, target)
    except OSError as error:
        raise UsageError(f"{target} can't be written: {error.strerror}") from None
    return str(target)


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Turns the errors of Ray's client and of HTTP into UsageErrors."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise UsageError(
            f"the dashboard at {address} wants its token: export RAY_AUTH_MODE=token, and put the token of the "
            "cluster into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from None
    except requests.Timeout:
        raise UsageError(f"the dashboard at {address} does not answer any more; is the tunnel still open?") from None
    except (requests.RequestException, ConnectionError, RuntimeError) as error:
        raise UsageError(f"the dashboard at {address} can't be used: {first_line(error)}") from None


def _client(address: str) -> Any:
    """Ray's client, whose every request ends: its own has no time-outs."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": HTTP_TIMEOUT_S, **options})

    return Client(address)


def _place(client: Any, job: str) -> str:
    """The run directory according to the job's log."""
    try:
        log = client.get_job_logs(job)
    except RuntimeError as error:
        names = sorted(str(j.submission_id) for j in client.list_jobs() if j.submission_id)
        known = ", ".join(name for name in names if not name.startswith(PACKING)) or "none"
        raise UsageError(f"no job {job!r} there ({first_line(error)}); its jobs: {known}") from None
    said = LINE.search(log)
    if said is None:
        raise UsageError(f"job {job} names no run directory: it has not started measuring, or is not a matrix job")
    if "://" in said[1]:
        raise UsageError(f"job {job} keeps its results in {said[1]}: read them there")
    if PurePosixPath(said[1]).name in ("", ".."):
        raise UsageError(f"job {job} names {said[1]!r}, which is no run directory")
    return said[1]


def _packed(client: Any, place: str, tell: Callable[[str], None]) -> str:
    """The log of a job that prints the directory; its size is told before it is packed."""
    from ray.job_submission import JobStatus

    job = client.submit_job(entrypoint=_entry(place), submission_id=f"{PACKING}{uuid.uuid4().hex[:12]}")
    try:
        status, log = _ended(client, job, place, tell)
    except KeyboardInterrupt:  # the size may be why
        client.stop_job(job)
        raise
    if status != JobStatus.SUCCEEDED:
        last = (log.strip().splitlines() or ["it said nothing"])[-1]
        raise UsageError(f"{place} could not be packed: {last}")
    time.sleep(SETTLE_S)
    client.delete_job(job)
    return log


def _entry(place: str) -> str:
    """The command line that packs a directory."""
    program = PACK.format(size=SIZE, begin=BEGIN, end=END, largest=LARGEST, part=PART)
    code = base64.b64encode(program.encode()).decode()  # a shell reads the line
    argument = base64.b64encode(place.encode()).decode()
    return (
        f'python3 -c "import base64, sys; sys.argv[1] = base64.b64decode(sys.argv[1]).decode(); '
        f"exec(base64.b64decode('{code}'))\" {argument}"
    )


def _ended(client: Any, job: str, place: str, tell: Callable[[str], None]) -> tuple[Any, str]:
    """Waits for a packing job: (its status, its log)."""
    end = time.monotonic() + TIMEOUT_S
    told = False
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > end:
            client.stop_job(job)
            raise UsageError(f"the cluster did not pack {place} within {TIMEOUT_S:.0f} s; see job {job}")
        told = told or _size_told(str(client.get_job_logs(job)), tell)  # short until the directory is packed
        time.sleep(POLL_S)
    log = str(client.get_job_logs(job))
    if not told:
        _size_told(log, tell)
    return status, log


def _size_told(log: str, tell: Callable[[str], None]) -> bool:
    """Tells how large a run is, if its packing job has said so yet."""
    said = re.search(rf"^{SIZE} (\d+) (\d+)$", log, re.MULTILINE)
    if said is not None:
        tell(f"{said[1]} files, {int(said[2]) / 1e6:.1f} MB")
    return said is not None


def _content(log: str) -> bytes:
    """The archive between the two marks. Raises UsageError if it did not arrive whole."""
    said = re.search(rf"^{BEGIN} (\w+)$(.*)^{END}$", log, re.MULTILINE | re.DOTALL)
    if said is not None:
        content = base64.b64decode("".join(said[2].split()))
        if hashlib.sha256(content).hexdigest() == said[1]:
            return content
    raise UsageError("the packed directory arrived incomplete; try again")


def _unpack(content: bytes, target: Path) -> None:
    """Unpacks beside and renames, so that nothing half is left under the name of a run.

    Raises:
        UsageError: the archive holds something other than files of that one folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetch-", dir=target.parent) as beside:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            for member in tar:
                inside = PurePosixPath(member.name).parts[:1] == (target.name,) and ".." not in member.name.split("/")
                if not inside or not member.isfile():
                    raise UsageError(
                        f"the archive holds {member.name!r}, which is no file of {target.name}; nothing was kept"
                    )
            tar.extractall(beside, filter="data")
        (Path(beside) / target.name).rename(target)
