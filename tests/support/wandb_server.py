"""A server that speaks as much of W&B's protocol as its client needs to publish; it can refuse, stall and drop."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "team"
WAYS = ("answer", "refuse", "error", "stall", "drop")
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class StoredRun:
    """What the server was told of one run: the latest of each, as the real one keeps it."""

    bucket: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[int, str]] = field(default_factory=dict)  # of the stream: lines by their number
    complete: bool = False
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in json.loads(self.bucket.get("config") or "{}").items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.files.get(HISTORY, {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.files.get(SUMMARY, {})
        found: dict[str, Any] = json.loads(lines[max(lines)]) if lines else {}
        return found


@dataclass
class StoredArtifact:
    """One version of an artifact."""

    name: str
    kind: str
    digest: str
    run: str
    state: str = "PENDING"
    paths: set[str] = field(default_factory=set)  # that were asked to be uploaded


@dataclass
class Server:
    """The server's memory, and how it answers: a way for every operation whose name matches ``when``."""

    way: str = "answer"
    when: str = ".*"
    runs: dict[str, StoredRun] = field(default_factory=dict)
    artifacts: list[StoredArtifact] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)  # what is stalled ends when this is set

    def graphql(self, operation: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The ``data`` of an answer; an operation that is not known is answered with nothing."""
        answer = getattr(self, f"_{operation}", None)
        return {} if answer is None else answer(variables)

    def _Viewer(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "v", "entity": ENTITY, "username": "user", "flags": "{}", "teams": teams}}

    def _ServerFeaturesQuery(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _UpsertBucket(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        new = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], StoredRun())
        run.bucket |= {key: value for key, value in asked.items() if value is not None}
        project = {"id": "p", "name": asked.get("project"), "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": asked["name"], "name": asked["name"], "displayName": asked.get("displayName")}
        bucket |= {"description": None, "config": None, "sweepName": None, "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(run.history)}, "inserted": new}}

    def _RunResumeStatus(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": None}
        counts = {"historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]"}
        told = {"config": run.bucket["config"], "tags": run.bucket["tags"], "wandbConfig": '{"t": 1}', "notes": None}
        bucket = {"id": asked["name"], "name": asked["name"], "displayName": asked["name"], **counts, **tails, **told}
        bucket["summaryMetrics"] = json.dumps(run.summary)
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}}

    def _ArtifactType(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": None}

    def _CreateRunFiles(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/put/{asked['run']}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        given = asked["input"]
        known = [a for a in self.artifacts if (a.name, a.digest) == (given["artifactCollectionName"], given["digest"])]
        if not known:
            found = StoredArtifact(
                given["artifactCollectionName"], given["artifactTypeName"], given["digest"], given.get("runName", "")
            )
            self.artifacts.append(found)
            known = [found]
        number = self.artifacts.index(known[0])
        sequence = {"latestArtifact": None}
        artifact = {"id": f"artifact-{number}", "state": known[0].state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"createArtifactManifest": self._manifest(asked["artifactID"])}

    def _UpdateArtifactManifest(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"updateArtifactManifest": self._manifest(asked["artifactManifestID"])}

    def _manifest(self, identity: str) -> dict[str, Any]:
        file = {"id": "f", "uploadUrl": f"{self.url}/put/{identity}/manifest.json", "uploadHeaders": []}
        return {"artifactManifest": {"id": identity, "file": file}}

    def _CreateArtifactFiles(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = []
        for given in asked["input"]["artifactFiles"]:
            artifact = self.artifacts[int(given["artifactID"].rpartition("-")[2])]
            artifact.paths.add(given["name"])
            place = f"{given['artifactID']}/{given['name']}"
            node = {"storagePath": place, "uploadUrl": f"{self.url}/put/{place}", "uploadHeaders": []}
            edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": given["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = self.artifacts[int(asked["artifactID"].rpartition("-")[2])]
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": artifact.digest}}}

    def _ArtifactByID(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = self.artifacts[int(asked["id"].rpartition("-")[2])]
        project = {"id": "p", "internalId": "p", "name": "latency-matrix", "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "name": artifact.name, "project": project}
        plain = {"id": asked["id"], "state": artifact.state, "digest": artifact.digest, "size": 0, "fileCount": 0}
        unknown = dict.fromkeys(["versionIndex", "description", "metadata", "historyStep", "commitHash", "updatedAt"])
        life = {"ttlDurationSeconds": -2, "ttlIsInherited": False, "tags": [], "createdAt": "2026-01-01T00:00:00"}
        kind = {"artifactType": {"name": artifact.kind}, "artifactSequence": sequence}
        return {"artifact": {"__typename": "Artifact", **plain, **unknown, **life, **kind}}

    def stream(self, run_id: str, content: Mapping[str, Any]) -> None:
        """A request of the file stream."""
        run = self.runs.setdefault(run_id, StoredRun())
        for name, part in (content.get("files") or {}).items():
            lines = run.files.setdefault(name, {})
            for number, line in enumerate(part["content"], part["offset"]):
                lines[number] = line
        if content.get("complete"):
            run.complete, run.exit_code = True, content.get("exitcode")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    memory: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/graphql"):
            content = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
            operation = content.get("operationName") or (found[1] if found else "")
            if self._hinders(operation):
                return
            self._answer({"data": self.memory.graphql(operation, content.get("variables") or {})})
        else:
            if self._hinders("file_stream"):
                return
            self.memory.stream(self.path.split("/")[-2], json.loads(body))
            self._answer({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._hinders("PUT"):
            self.memory.uploads[self.path.removeprefix("/put/")] = body
            self._answer({})

    def _hinders(self, operation: str) -> bool:
        """Whether the server does something else than to answer this."""
        memory = self.memory
        memory.operations.append(operation)
        if memory.way == "answer" or not re.fullmatch(memory.when, operation):
            return False
        if memory.way == "refuse":
            self._answer({"errors": [{"message": "permission denied"}]}, 403)
        elif memory.way == "error":
            self._answer({}, 500)
        else:
            if memory.way == "stall":
                memory.released.wait(120)
            self.close_connection = True
        return True

    def _answer(self, content: object, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Listener(ThreadingHTTPServer):
    """A client that was ended mid-sentence is what is tested, not an error of the server."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def serving(way: str = "answer", when: str = ".*") -> Iterator[Server]:
    """A server on a port of its own until the block ends."""
    memory = Server(way, when)
    listener = Listener(("127.0.0.1", 0), type("H", (Handler,), {"memory": memory}))
    memory.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield memory
    finally:
        memory.released.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
