"""A job's run directory comes home whole, or not at all: against a client that answers as Ray's does."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from chatbot.errors import UsageError
from ray_jobs.cluster import fetch
from ray_jobs.cluster.fetch import BEGIN, END, PACK, SIZE, bring_home

RUN = {"run.json": b"{}", "samples/0001.parquet": b"123", "samples/0002.parquet.part": b"12"}


def archive(names: dict[str, bytes], link: str | None = None) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        if link is not None:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return content.getvalue()


def log_of(content: bytes, digest: str | None = None) -> str:
    digest = digest or hashlib.sha256(content).hexdigest()
    return f"noise\n{SIZE} 2 5\n{BEGIN} {digest}\n{base64.b64encode(content).decode()}\n{END}\n"


class Client:
    """Ray's, as far as it is used; ``log`` is what the packing job prints."""

    def __init__(self, log: str, status: JobStatus = JobStatus.SUCCEEDED, place: str = "/head/r1") -> None:
        self.log, self.status, self.place = log, status, place

    def get_job_logs(self, job: str) -> str:
        return self.log if job.startswith("fetch-") else f"ray_jobs: the run directory is {self.place} on head\n"

    def get_job_status(self, job: str) -> JobStatus:
        return JobStatus.SUCCEEDED if job.startswith("fetch-") else self.status

    def submit_job(self, entrypoint: str, submission_id: str) -> str:
        return submission_id

    def delete_job(self, job: str) -> None: ...


Home = Callable[[Any], str]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Home:
    monkeypatch.setattr(fetch, "SETTLE_S", 0.0)
    said: list[str] = []

    def bring(client: Any) -> str:
        monkeypatch.setattr(fetch, "_client", lambda address: client)
        bring_home("job", "http://head:8265", tmp_path / "results", said.append)
        return "\n".join(said)

    return bring


def test_a_run_comes_home_and_its_size_is_told(home: Home, tmp_path: Path) -> None:
    assert home(Client(log_of(archive({"r1/run.json": b"{}", "r1/samples/a": b"123"})))) == "2 files, 0.0 MB"
    assert (tmp_path / "results/r1/samples/a").read_bytes() == b"123"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["r1"]


class Slow(Client):
    """Packs for a while: until then its log holds the size alone."""

    packing, stopped = 3, False

    def get_job_status(self, job: str) -> JobStatus:
        if not job.startswith("fetch-"):
            return self.status
        self.packing -= 1
        return JobStatus.RUNNING if self.packing else JobStatus.SUCCEEDED

    def get_job_logs(self, job: str) -> str:
        log = super().get_job_logs(job)
        return log.split(BEGIN)[0] if self.packing and job.startswith("fetch-") else log

    def stop_job(self, job: str) -> None:
        self.stopped = True


def test_the_size_is_told_once_and_before_it_is_packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = Slow(log_of(archive({"r1/run.json": b"{}"})))
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(fetch, "POLL_S", 0.0)
    monkeypatch.setattr(fetch, "SETTLE_S", 0.0)
    monkeypatch.setattr(fetch, "_client", lambda address: client)
    bring_home("job", "http://head:8265", tmp_path, lambda line: said.append((line, client.packing)))
    assert said == [("2 files, 0.0 MB", 2)]


def test_whom_the_size_puts_off_leaves_no_job_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def put_off(line: str) -> None:
        raise KeyboardInterrupt

    client = Slow(log_of(archive({"r1/run.json": b"{}"})))
    monkeypatch.setattr(fetch, "_client", lambda address: client)
    with pytest.raises(KeyboardInterrupt):
        bring_home("job", "http://head:8265", tmp_path, put_off)
    assert client.stopped
    assert not any(tmp_path.iterdir())


def test_a_running_job_is_told(home: Home) -> None:
    assert "job job is still running" in home(Client(log_of(archive({"r1/run.json": b"{}"})), JobStatus.RUNNING))


@pytest.mark.parametrize("name", ["other/run.json", "r1/../other/run.json", "/r1/run.json", "../r1/run.json", "r1x/a"])
def test_an_archive_with_another_folder_leaves_nothing(home: Home, tmp_path: Path, name: str) -> None:
    there = tmp_path / "results/other"
    there.mkdir(parents=True)
    (there / "run.json").write_text("mine")
    with pytest.raises(UsageError, match=r"which is no file of r1; nothing was kept"):
        home(Client(log_of(archive({"r1/run.json": b"{}", name: b"theirs"}))))
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "results",
        "results/other",
        "results/other/run.json",
    ]
    assert (there / "run.json").read_text() == "mine"


def test_a_link_in_the_archive_is_refused(home: Home) -> None:
    with pytest.raises(UsageError, match="which is no file of r1"):
        home(Client(log_of(archive({}, link="r1/link"))))


def test_what_arrives_incomplete_leaves_nothing_and_the_next_try_succeeds(home: Home, tmp_path: Path) -> None:
    whole = archive({"r1/run.json": b"{}"})
    for log in (log_of(whole, digest="0" * 64), log_of(whole)[:-20], "nothing"):
        with pytest.raises(UsageError, match="arrived incomplete; try again"):
            home(Client(log))
    home(Client(log_of(whole)))
    assert (tmp_path / "results/r1/run.json").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_can_not_be_unpacked_leaves_nothing_and_the_next_try_succeeds(
    error: BaseException, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a run would look like one, and the next try would say that it is there already."""
    whole = Client(log_of(archive({"r1/run.json": b"{}", "r1/samples/a": b"123"})))

    def half(tar: tarfile.TarFile, path: str, **_: Any) -> None:
        tar.extract("r1/run.json", path, filter="data")
        raise error

    with monkeypatch.context() as full:
        full.setattr(tarfile.TarFile, "extractall", half)
        with pytest.raises((UsageError, KeyboardInterrupt), match=r"r1 can't be written: No space left on device|^$"):
            home(whole)
    assert list((tmp_path / "results").iterdir()) == []
    home(whole)
    assert (tmp_path / "results/r1/samples/a").read_bytes() == b"123"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AuthenticationError("x"), "wants its token: export RAY_AUTH_MODE=token"),
        (requests.ReadTimeout("x"), "does not answer any more; is the tunnel still open"),
        (requests.ConnectionError("refused"), "can't be used: refused"),
        (ConnectionError("Failed to connect"), "can't be used: Failed to connect"),
    ],
)
def test_what_the_dashboard_does_is_one_line(home: Home, error: Exception, message: str) -> None:
    class Broken(Client):
        def get_job_status(self, job: str) -> JobStatus:
            raise error

    with pytest.raises(UsageError) as refused:
        home(Broken(""))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_request_has_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def request(*arguments: Any, **options: Any) -> Any:
        seen.append(options.get("timeout"))
        raise requests.ReadTimeout

    monkeypatch.setattr(requests, "request", request)
    with pytest.raises(UsageError, match="does not answer"):
        bring_home("job", "http://127.0.0.1:9", Path("nowhere"))
    assert seen == [fetch.HTTP_TIMEOUT_S]


def packing(largest: int = 1000) -> str:
    return PACK.format(size=SIZE, begin=BEGIN, end=END, largest=largest, part=".part")


def packed(place: Path, largest: int = 1000) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", packing(largest), str(place)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_head_says_how_large_a_run_is_before_it_packs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**_: Any) -> None:
        raise InterruptedError

    (tmp_path / "run.json").write_bytes(b"{}")
    monkeypatch.setattr(tarfile, "open", stopped)
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path)])
    with pytest.raises(InterruptedError):
        exec(packing(), {})
    assert capsys.readouterr().out == f"{SIZE} 1 2\n"


@pytest.mark.process
def test_the_head_packs_what_is_whole_and_refuses_what_is_too_large(home: Home, tmp_path: Path) -> None:
    run = tmp_path / "head/r1"
    for name, content in RUN.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    assert home(Client(packed(run).stdout)) == "2 files, 0.0 MB"
    came = sorted(path.name for path in (tmp_path / "results/r1").rglob("*") if path.is_file())
    assert came == ["0001.parquet", "run.json"]
    large = packed(run, largest=4)
    assert large.returncode == 1
    assert "measure with --out s3://" in large.stderr
