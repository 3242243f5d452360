"""The files that describe clusters, and the command lines about them: what can be known without a cluster."""

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray._raylet
import ray.autoscaler
import typer
import yaml  # type: ignore[import-untyped]
from packaging.specifiers import SpecifierSet
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

ROOT = Path(__file__).resolve().parent.parent
LAUNCHED = ("cluster.yaml", "cluster.local.yaml")
KUBERAY = "kuberay.yaml"
GUIDE = "docs/cluster.md"
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
PYTHONS = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
RAY_SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())

# On every node: without them a silent network is noticed after seven minutes, and workers give way to anybody.
SETTINGS = {
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",
}
EARLY_EXIT = {"RAY_enable_autoscaler_v2": "1", "RAY_enable_infeasible_task_early_exit": "1"}
SETTINGS_OF = {"aws": SETTINGS | EARLY_EXIT, "local": SETTINGS | {"RAY_enable_autoscaler_v2": "0"}}
LOCKS = "LATENCY_MATRIX_LOCKS"


def read(name: str, old: str = "", new: str = "") -> str:
    """A file of the repository; the first ``old`` in it, which must be there, is ``new``."""
    text = (ROOT / name).read_text()
    assert old in text
    return text.replace(old, new, 1) if old else text


# What is wrong with a file for `ray up`.


def launcher_complaints(text: str) -> Iterator[str]:
    config = yaml.safe_load(text)
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except Exception as error:
        yield f"Ray says: {type(error).__name__}: {error}"
        return
    yield from provider_complaints(config["provider"])
    yield from setup_complaints(prepared)
    yield from start_complaints(prepared)
    if config["provider"]["type"] != "local":  # which has no node types of its own
        yield from node_type_complaints(prepared)
        kinds = [(kind["max_workers"], kind["resources"]) for kind in prepared["available_node_types"].values()]
        offered = {name: sum(most * has.get(name, 0) for most, has in kinds) for name in ("CPU", "GPU")}
        yield from waiting_complaints(text, offered)


def provider_complaints(provider: dict[str, Any]) -> Iterator[str]:
    for name in provider.keys() - RAY_SCHEMA["properties"]["provider"]["properties"].keys():
        yield f"Ray knows no {name} of a provider"
    if provider["type"] == "local":
        addresses = [provider["head_ip"], *provider["worker_ips"]]
        if len(set(addresses)) < len(addresses):
            yield "an address is named twice"
    elif not provider.get("region"):
        yield "no region"


def node_type_complaints(config: dict[str, Any]) -> Iterator[str]:
    kinds = config["available_node_types"]
    head = config["head_node_type"]
    if sum(kind["max_workers"] for kind in kinds.values()) > config["max_workers"]:
        yield "max_workers of all is less than the types' together"
    if len({kind["node_config"].get("ImageId") for kind in kinds.values()}) != 1:
        yield "the types have different images"
    for name, kind in kinds.items():
        if not kind["node_config"].get("InstanceType"):
            yield f"{name}: no InstanceType in node_config"
        yield from exposure_complaints(name, kind["node_config"])
        yield from label_complaints(name, kind.get("labels", {}))
        if kind["min_workers"] > kind["max_workers"]:
            yield f"{name}: min_workers above max_workers"
        cpus = kind["resources"].get("CPU")
        if name == head and (cpus != 0 or kind["max_workers"] != 0):
            yield "the head takes trials"
        if name != head and (not cpus or not kind.get("labels")):
            yield f"{name}: no CPUs or no labels"
        cores = kind["node_config"].get("CpuOptions")
        if cores and cores["CoreCount"] * cores["ThreadsPerCore"] != cpus:
            yield f"{name}: CPU disagrees with CpuOptions"


def exposure_complaints(name: str, node: dict[str, Any]) -> Iterator[str]:
    if not node.get("SecurityGroupIds"):
        yield f"{name}: Ray would make a security group that admits SSH from anywhere"
    if node.get("MetadataOptions") != {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}:
        yield f"{name}: the node's role can be had through IMDSv1"
    if not all(disk["Ebs"].get("Encrypted") is True for disk in node["BlockDeviceMappings"]):
        yield f"{name}: a disk is not encrypted"


def label_complaints(name: str, labels: Any) -> Iterator[str]:
    try:
        validate_node_label_syntax(labels)
    except (ValueError, TypeError) as error:
        yield f"{name}: {error}"


def setup_complaints(config: dict[str, Any]) -> Iterator[str]:
    """Of a config that Ray has prepared: with its defaults, and the common commands in front."""
    commands = config["head_setup_commands"]
    if commands != config["worker_setup_commands"]:
        yield "head and workers are set up differently"
    text = "\n".join(commands)
    if (
        "-r ~/requirements.lock" not in text
        or config["file_mounts"].get("~/requirements.lock") != "./requirements.lock"
    ):
        yield "requirements.lock is not installed"
    for package in re.findall(r"pip install (.+)", text)[0].replace("-r ~/requirements.lock", "").split():
        name, _, version = package.partition("==")
        if not name.startswith("-") and (not version or LOCK.get(name, version) != version):
            yield f"{package}: not pinned as in requirements.lock"
    if not re.search(r"astral\.sh/uv/\d+\.\d+\.\d+/install\.sh", text):
        yield "uv is not one exact version"
    for version in re.findall(r"--python (\S+)", text) or ["none"]:
        if not re.fullmatch(r"\d+\.\d+\.\d+", version) or version not in PYTHONS:
            yield f"Python {version}: not one exact version that the project supports"


def start_complaints(config: dict[str, Any]) -> Iterator[str]:
    wanted = SETTINGS_OF[config["provider"]["type"]]
    modes = set()
    for node in ("head", "worker"):
        command = next(c for c in config[f"{node}_start_ray_commands"] if "ray start" in c)
        settings = dict(re.findall(r"\b(RAY_\w+)=([^\s;]+)", command))
        for name, value in wanted.items():
            if settings.get(name) != value:
                yield f"{node}: {name} is {settings.get(name)}, not {value}"
        yield from unknown_settings(node, settings)
        modes.add(settings.get("RAY_AUTH_MODE"))
        try:
            words = shlex.split(command.partition("ray start ")[2])
            options = ray_cli.commands["start"].make_context("ray start", words).params
        except Exception as error:
            yield f"{node}: {error}"
            continue
        if node == "worker" and options["address"] != "$RAY_HEAD_IP:6379":
            yield "the workers don't join the head"
        if node == "head" and options["num_cpus"] != 0:
            yield "the head takes trials"
        if node == "head" and options["dashboard_host"] != "127.0.0.1":
            yield "the dashboard is open to the network"
        if node == "head" and not options["autoscaling_config"]:
            yield "the head starts no workers"
    if modes != {"token"}:
        yield "RAY_AUTH_MODE is not token everywhere"
    if "~/.ray/auth_token" not in config["file_mounts"]:
        yield "the nodes get no token"


@cache
def known_to_ray(name: str) -> bool:
    """Whether Ray's program holds the setting's name: each name is looked for once, in 40 MB."""
    return name.encode() + b"\0" in Path(ray._raylet.__file__).read_bytes()


def unknown_settings(node: str, settings: dict[str, str]) -> Iterator[str]:
    """Ray ignores what it does not know: a misspelt setting would never be noticed."""
    for name in settings:
        if name.startswith("RAY_") and not known_to_ray(name):
            yield f"{node}: Ray knows no {name}"


# What is wrong with a RayJob.


def job_complaints(text: str) -> Iterator[str]:
    job = yaml.safe_load(text)
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    if (job["apiVersion"], job["kind"]) != ("ray.io/v1", "RayJob"):
        yield "not a RayJob of ray.io/v1"
    deadline = spec.get("activeDeadlineSeconds")
    waits = [int(seconds) for seconds in re.findall(r"--wait (\d+)", spec["entrypoint"])]
    if type(deadline) is not int or not waits or deadline <= waits[0]:
        yield "no deadline, or not after --wait"
    if spec.get("backoffLimit") != 0:
        yield "a failed job would run again"
    if spec.get("submissionMode") not in ("K8sJobMode", "HTTPMode", "SidecarMode"):
        yield "no such submissionMode"
    if spec.get("shutdownAfterJobFinishes") is not True or not spec.get("ttlSecondsAfterFinished", -1) >= 0:
        yield "the pods would stay"
    if set(spec["entrypoint"]) & set("&;|<>\n"):
        yield "the entrypoint is pasted into a shell"
    if str(cluster.get("rayVersion")) != LOCK["ray"]:
        yield "rayVersion is not that of requirements.lock"
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes trials"
    groups = cluster["workerGroupSpecs"]
    for name, group in [("head", cluster["headGroupSpec"]), *((group["groupName"], group) for group in groups)]:
        yield from group_complaints(name, group)
    for group in groups:
        yield from worker_complaints(group["groupName"], group)
    offered = {"CPU": 0, "GPU": 0}
    for group in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        offered["CPU"] += group["replicas"] * limits["cpu"]
        offered["GPU"] += group["replicas"] * limits.get("nvidia.com/gpu", 0)
    yield from waiting_complaints(spec["entrypoint"], offered)


def group_complaints(name: str, group: dict[str, Any]) -> Iterator[str]:
    pod = group["template"]["spec"]
    yield from label_complaints(name, group.get("labels", {}))
    if "labels" in group["rayStartParams"]:
        yield f"{name}: KubeRay takes labels beside rayStartParams, not in it"
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        resources = container["resources"]
        if not resources["requests"] or resources["requests"] != resources["limits"]:
            yield f"{name}: requests differ from limits, so the pod is not Guaranteed"
        if type(resources["limits"].get("cpu")) is not int or "memory" not in resources["limits"]:
            yield f"{name}: no whole CPUs, or no memory"
        if f"ray{LOCK['ray']}-" not in container["image"] or "@sha256:" not in container["image"]:
            yield f"{name}: the image is not of the Ray of requirements.lock, or has no digest"
        confined = container.get("securityContext", {})
        if confined.get("allowPrivilegeEscalation") is not False or confined["capabilities"] != {"drop": ["ALL"]}:
            yield f"{name}: {container['name']} may gain rights"
    allowed = pod.get("securityContext", {})
    if not (allowed.get("runAsNonRoot") and allowed.get("runAsUser") and allowed.get("seccompProfile")):
        yield f"{name}: it runs as root, or without seccomp"
    settings = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    for setting, value in (SETTINGS | {"RAY_enable_infeasible_task_early_exit": "1"}).items():
        if settings.get(setting) != value:
            yield f"{name}: {setting} is {settings.get(setting)}, not {value}"
    if "RAY_enable_autoscaler_v2" in settings:
        yield f"{name}: KubeRay refuses RAY_enable_autoscaler_v2 in a cluster of fixed size"
    yield from unknown_settings(name, settings)


def worker_complaints(name: str, group: dict[str, Any]) -> Iterator[str]:
    pod = group["template"]["spec"]
    if pod.get("automountServiceAccountToken") is not False:
        yield f"{name}: it may speak to Kubernetes"
    container = pod["containers"][0]
    if not group["replicas"] == group["minReplicas"] == group["maxReplicas"]:
        yield f"{name}: its size is not fixed"
    if not group.get("labels"):
        yield f"{name}: no labels"
    rules = pod.get("affinity", {}).get("podAntiAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
    own = group["template"]["metadata"]["labels"].items()
    apart = [rule["labelSelector"]["matchLabels"].items() <= own for rule in rules]
    if not any(apart) or rules[0].get("topologyKey") != "kubernetes.io/hostname":
        yield f"{name}: two of its pods may share a host"
    locks = [variable["value"] for variable in container["env"] if variable["name"] == LOCKS]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume.get("hostPath", {}).get("type") for volume in pod["volumes"]}
    if not locks or volumes.get(mounted.get(locks[0], "")) != "DirectoryOrCreate":
        yield f"{name}: {LOCKS} is no folder of the host"


# What is wrong with a command line.


def command_lines(text: str, start: str) -> list[list[str]]:
    """The words after each ``start``, up to the end of the line, or of a table's cell.

    Comment signs and continued lines are taken away.
    """
    plain = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*# ?", "", text))
    found = re.findall(rf"(?m){start} ((?:(?! \| )[^`\n])*)", plain)
    return [shlex.split(line, comments=True) for line in found]


def misuse(command: Any, words: list[str]) -> Iterator[str]:
    """What the program's own parser says; nothing is run."""
    rest = list(words)
    while hasattr(command, "commands") and rest:
        if rest[0] not in command.commands:
            yield f"{' '.join(words)}: there is no {rest[0]!r}"
            return
        _, command, rest = command.resolve_command(typer.Context(command), rest)
    try:
        command.make_context("", rest)
    except Exception as error:
        yield f"{' '.join(words)}: {error}"


def our_cli() -> Any:
    from ray_jobs.cli.app import app

    return typer.main.get_command(app)


def waiting_complaints(text: str, offered: dict[str, int]) -> Iterator[str]:
    """Of --wait-for: more than the workers have together is waited for in vain, less leaves some of them out."""
    for asked in re.findall(r"--wait-for (\w+=\S+)", text):
        wanted = {name.upper(): int(count) for name, count in (part.split("=") for part in asked.split(","))}
        if wanted != offered:
            yield f"--wait-for asks for {wanted}, the workers have {offered}"


# The files are right, and each check bites.


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_can_use_it(name: str) -> None:
    assert list(launcher_complaints(read(name))) == []


def test_kuberay_can_use_it() -> None:
    assert list(job_complaints(read(KUBERAY))) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("cluster.yaml", "type: aws", "type: awss", "Unsupported node provider: awss"),
        ("cluster.yaml", "cache_stopped_nodes", "cache_stoped_nodes", "Ray knows no cache_stoped_nodes"),
        ("cluster.local.yaml", "head_ip:", "head_up:", "Ray says"),
        ("cluster.local.yaml", "192.0.2.12", "192.0.2.11", "named twice"),
        ("cluster.yaml", "    region:", "    regoin:", "no region"),
        ("cluster.yaml", "{hardware: c7i.2xlarge}", "{hardware: c7i 2xlarge}", "Invalid label key value"),
        ("cluster.yaml", "{hardware: c7i.2xlarge}", "{-hardware: c7i.2xlarge}", "Invalid label key name"),
        ("cluster.yaml", "{hardware: c7i.2xlarge}", "{hardware: 7}", "Ray says"),
        ("cluster.yaml", "        labels: {hardware: c7i.2xlarge}", "", "cpu: no CPUs or no labels"),
        ("cluster.yaml", "{CPU: 4, GPU: 1}", "{CPU: 4.0, GPU: 0.5}", "Ray says"),
        ("cluster.yaml", "{CPU: 4, GPU: 1}", "{GPU: 1}", "gpu: no CPUs or no labels"),
        ("cluster.yaml", "resources: {CPU: 4}", "resources: {CPU: 8}", "cpu: CPU disagrees with CpuOptions"),
        ("cluster.yaml", "InstanceType: c7i.2xlarge", "InstanceKind: c7i.2xlarge", "cpu: no InstanceType"),
        ("cluster.yaml", "ImageId: *image", "ImageId: ami-0", "different images"),
        ("cluster.yaml", "        node_config:", "        node_setup:", "Ray says"),
        ("cluster.yaml", "resources: {CPU: 0}", "resources: {CPU: 2}", "the head takes trials"),
        ("cluster.yaml", "--num-cpus=0", "", "the head takes trials"),
        ("cluster.local.yaml", "--num-cpus=0", "--num-cpus=1", "the head takes trials"),
        ("cluster.yaml", "max_workers: 5", "max_workers: 3", "less than the types' together"),
        (
            "cluster.yaml",
            "min_workers: 0\n        max_workers: 4",
            "min_workers: 5\n        max_workers: 4",
            "cpu: min",
        ),
        ("cluster.yaml", "boto3==1.44.5", "boto3", "boto3: not pinned"),
        ("cluster.yaml", "boto3==1.44.5", "torch==2.12.0", "torch==2.12.0: not pinned as in"),
        ("cluster.yaml", "-r ~/requirements.lock", "torch==2.13.0", "requirements.lock is not installed"),
        ("cluster.local.yaml", ": ./requirements.lock", ": ./requirements.txt", "requirements.lock is not installed"),
        ("cluster.yaml", "--python 3.11.13", "--python 3.11", "Python 3.11: not one exact"),
        ("cluster.yaml", "--python 3.11.13", "--python 3.10.0", "Python 3.10.0: not one exact"),
        ("cluster.yaml", "head_setup_commands: []", "", "set up differently"),  # Ray's own default comes in
        ("cluster.yaml", "RAY_health_check_period_ms=1000", "", "head: RAY_health_check_period_ms is None"),
        ("cluster.local.yaml", "keepalive_time_ms=10000", "keepalive_time_ms=300000", "is 300000, not 10000"),
        ("cluster.yaml", "RAY_enable_autoscaler_v2=1", "RAY_enable_autoscaler_v3=1", "Ray knows no RAY_enable_auto"),
        (
            "cluster.local.yaml",
            "export RAY_enable_autoscaler_v2=0",
            "export RAY_enable_autoscaler_v2=1",
            "head: RAY_enable_autoscaler_v2 is 1, not 0",
        ),
        ("cluster.local.yaml", "RAY_AUTH_MODE=token;", "RAY_AUTH_MODE=disabled;", "not token everywhere"),
        ("cluster.yaml", "RAY_AUTH_MODE=token;", "RAY_AUTH_MODE=disabled;", "not token everywhere"),
        ("cluster.yaml", "    ~/.ray/auth_token: ~/.ray/auth_token\n", "", "the nodes get no token"),
        ("cluster.yaml", "SecurityGroupIds: *firewall", "", "cpu: Ray would make a security group"),
        ("cluster.yaml", "HttpTokens: required", "HttpTokens: optional", "head: the node's role"),
        ("cluster.yaml", ", Encrypted: true", "", "gpu: a disk is not encrypted"),
        ("cluster.yaml", "uv/0.13.9/install", "uv/install", "uv is not one exact version"),
        ("cluster.local.yaml", "    ~/.ray/auth_token: ~/.ray/auth_token\n", "", "the nodes get no token"),
        ("cluster.yaml", "dashboard-host=127.0.0.1", "dashboard-host=0.0.0.0", "open to the network"),
        ("cluster.yaml", "--autoscaling-config=", "--autoscale-config=", "No such option"),
        ("cluster.yaml", "--autoscaling-config=~/ray_bootstrap_config.yaml", "", "the head starts no workers"),
        ("cluster.yaml", "--address=$RAY_HEAD_IP", "--address=192.0.2.1", "don't join"),
        ("cluster.yaml", "--wait-for cpu=20,gpu=1", "--wait-for cpu=24,gpu=1", "--wait-for asks for"),
    ],
)
def test_a_mistake_in_a_file_for_ray_up_is_found(name: str, old: str, new: str, complaint: str) -> None:
    assert complaint in "\n".join(launcher_complaints(read(name, old, new)))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("ray.io/v1", "ray.io/v1alpha1", "not a RayJob"),
        ("kind: RayJob", "kind: RayCluster", "not a RayJob"),
        ("    activeDeadlineSeconds: 14400\n", "", "no deadline"),
        ("activeDeadlineSeconds: 14400", "activeDeadlineSeconds: 4h", "no deadline"),
        ("activeDeadlineSeconds: 14400", "activeDeadlineSeconds: 600", "not after --wait"),
        ("backoffLimit: 0", "backoffLimit: 2", "run again"),
        ("submissionMode: K8sJobMode", "submissionMode: JobMode", "submissionMode"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "would stay"),
        ("results\n", "results?region=x&scheme=http\n", "pasted into a shell"),
        ("rayVersion: 2.60.0", "rayVersion: 2.59.0", "rayVersion"),
        ('num-cpus: "0"', 'num-cpus: "2"', "the head takes trials"),
        ("ray2.60.0-py311", "ray2.59.0-py311", "head: the image"),
        ("ray2.60.0-py311@sha256:FILL-IN", "ray2.60.0-py311", "head: the image"),
        ("runAsNonRoot: true", "runAsNonRoot: false", "head: it runs as root"),
        ("securityContext: *nobody", "", "cpu: it runs as root"),
        ("{allowPrivilegeEscalation: false,", "{", "gpu: ray-worker may gain rights"),
        ("automountServiceAccountToken: false", "", "cpu: it may speak to Kubernetes"),
        ("limits: {cpu: 4, memory: 8Gi}", "limits: {cpu: 8, memory: 8Gi}", "cpu: requests differ"),
        ("limits: {cpu: 1, memory: 64Mi}", "limits: {cpu: 2, memory: 64Mi}", "gpu: requests differ"),
        ("{cpu: 4, memory: 16Gi, nvidia.com/gpu: 1}", "{cpu: 4, memory: 16Gi}", "gpu: requests differ"),
        ("{cpu: 2, memory: 8Gi}\n" + 30 * " ", "{cpu: 2500m, memory: 8Gi}\n" + 30 * " ", "head: requests differ"),
        ('{name: RAY_worker_niceness, value: "0"}', "{name: A, value: B}", "gpu: RAY_worker_niceness is None"),
        ("name: RAY_worker_niceness", "name: RAY_worker_nicenes", "head: Ray knows no RAY_worker_nicenes"),
        ("name: LATENCY_MATRIX_LOCKS", "name: RAY_enable_autoscaler_v2", "head: KubeRay refuses"),
        ("name: LATENCY_MATRIX_LOCKS", "name: LATENCY_LOCKS", "gpu: LATENCY_MATRIX_LOCKS is no folder of the host"),
        ("value: /run/latency-matrix-locks", "value: /tmp/locks", "cpu: LATENCY_MATRIX_LOCKS is no folder of the host"),
        ("type: DirectoryOrCreate", "type: Directory", "cpu: LATENCY_MATRIX_LOCKS is no folder of the host"),
        ("minReplicas: 4", "minReplicas: 0", "cpu: its size is not fixed"),
        ("{hardware: YOUR-CPU}", "{hardware: YOUR CPU}", "Invalid label key value"),
        ("              labels: {hardware: YOUR-CPU}", "", "cpu: no labels"),
        ("rayStartParams: {}", "rayStartParams: {labels: hardware=x}", "cpu: KubeRay takes labels"),
        ("topologyKey: kubernetes.io/hostname", "topologyKey: zone", "gpu: two of its pods may share a host"),
        ("matchLabels: {app: latency-matrix}", "matchLabels: {app: other}", "cpu: two of its pods may share a host"),
        ("--wait-for cpu=20,gpu=1", "--wait-for cpu=4,gpu=1", "--wait-for asks for"),
    ],
)
def test_a_mistake_in_the_rayjob_is_found(old: str, new: str, complaint: str) -> None:
    assert complaint in "\n".join(job_complaints(read(KUBERAY, old, new)))


def test_cpus_of_a_pod_are_whole() -> None:
    text = read(KUBERAY).replace("{cpu: 4, memory: 8Gi}", "{cpu: 3500m, memory: 8Gi}").replace("cpu=20,", "cpu=3,")
    job = yaml.safe_load(text)
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert list(group_complaints("cpu", group)) == ["cpu: no whole CPUs, or no memory"]


@pytest.mark.parametrize("name", [*LAUNCHED, KUBERAY, GUIDE])
def test_our_command_lines_are_understood(name: str) -> None:
    text = yaml.safe_load(read(name))["spec"]["entrypoint"] if name == KUBERAY else read(name)
    lines = command_lines(text, "python -m ray_jobs")
    assert lines
    assert [complaint for words in lines for complaint in misuse(our_cli(), words)] == []


@pytest.mark.parametrize("name", [*LAUNCHED, GUIDE])
def test_rays_command_lines_are_understood(name: str) -> None:
    lines = command_lines(read(name), r"^\s*(?:\w+=\S+ )*ray")
    assert lines
    assert [complaint for words in lines for complaint in misuse(ray_cli, words)] == []


@pytest.mark.parametrize("line", ["job submit --workingdir . -- python", "jub submit", "dashboard"])
def test_a_mistake_in_a_command_line_of_ray_is_found(line: str) -> None:
    assert list(misuse(ray_cli, line.split()))


@pytest.mark.parametrize(
    "line", ["matrix --wait-four cpu=4", "matrix --wait", "matrix --wait long", "fatch J", "fetch"]
)
def test_a_mistake_in_a_command_line_of_ours_is_found(line: str) -> None:
    assert list(misuse(our_cli(), line.split()))


def test_a_command_line_may_go_on() -> None:
    text = "# a: `python -m ray_jobs one --two` or\n#   python -m ray_jobs \\\n#     three # four\n"
    assert command_lines(text, "python -m ray_jobs") == [["one", "--two"], ["three"]]


def test_the_guide_names_the_locked_ray() -> None:
    named = re.findall(r"rayproject/ray:([\d.]+)|latency-matrix:ray([\d.]+)-", read(GUIDE))
    assert named
    assert {first or second for first, second in named} == {LOCK["ray"]}


def test_the_example_workflow_names_actions_by_their_full_version() -> None:
    used = re.findall(r"uses: (\S+)", read("examples/ci-gate.yml"))
    assert used
    assert [one for one in used if not re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", one)] == []
