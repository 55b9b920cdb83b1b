"""deploy/kubernetes as kubectl renders it: valid, and of one mind with the code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.controller_http import service_discovery
from stream2llm.cluster.exposure import check_authentication, check_encryption
from stream2llm.cluster.ray_checks import find_refusal
from stream2llm.cluster.ray_hosts import DRAIN_MARGIN_S, GRACEFUL_STOP_S
from stream2llm.cluster.room import Node
from stream2llm.serving.settings.launch import GatewayStarted
from stream2llm.serving.system.ports import PORTS
from tests.command_lines import parse
from tools.crd_schemas import FOLDER as SCHEMA_FOLDER
from tools.locks import CPU_LOCK, pins
from tools.prometheus_rule import RULE, prometheus_rule

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
KUBERNETES = "1.33"
# Those of the operators (tools/crd_schemas.py); pods in their resources are checked as pods.
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in SCHEMA_FOLDER.glob("*.json")}

Resource = dict[str, Any]


@cache
def render(folder: Path) -> tuple[Resource, ...]:
    kubectl = Path(sys.executable).with_name("kubectl")
    ended = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return tuple(yaml.safe_load_all(ended.stdout))


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> tuple[Resource, ...]:
    return deepcopy(render(FOLDER / "overlays" / request.param))


def the(resources: tuple[Resource, ...], kind: str, name: str = "stream2llm") -> Resource:
    (found,) = [r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return found


def groups(cluster: Resource) -> dict[str, Resource]:
    """The head's and the workers' groups of a RayCluster, by name."""
    workers = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    return {"head": cluster["spec"]["headGroupSpec"], **workers}


def templates(resources: tuple[Resource, ...]) -> dict[str, Resource]:
    """Every pod template."""
    found = {name: g["template"] for name, g in groups(the(resources, "RayCluster")).items()}
    return {**found, "submitter": the(resources, "RayJob")["spec"]["submitterPodTemplate"]}


def container(template: Resource) -> Resource:
    (only,) = template["spec"]["containers"]
    return dict(only)


def configuration(resources: tuple[Resource, ...]) -> ClusterConfig:
    text = the(resources, "ConfigMap")["data"]["cluster.yaml"]
    return parse_config(yaml.safe_load(text), source="cluster.yaml")


def validate(resource: Resource) -> None:
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


# -- schemas -------------------------------------------------------------------------


def test_what_kubernetes_knows_is_valid(resources: tuple[Resource, ...]) -> None:
    for resource in resources:
        if resource["kind"] not in SCHEMAS:
            validate(resource)
    for template in templates(resources).values():
        validate({"apiVersion": "v1", "kind": "PodTemplate", "template": template})


def test_a_field_that_there_is_not_is_found(resources: tuple[Resource, ...]) -> None:
    template = templates(resources)["worker"]
    template["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinessProb"):
        validate({"apiVersion": "v1", "kind": "PodTemplate", "template": template})


def test_what_operators_know_is_valid(resources: tuple[Resource, ...]) -> None:
    found = [each for each in resources if each["kind"] in SCHEMAS]
    assert {"RayCluster", "RayJob"} <= {each["kind"] for each in found}
    for each in found:
        jsonschema.validate(each, SCHEMAS[each["kind"]])


# A path into a resource, and what is wrong there.
MISTAKES = {
    "RayCluster": ("spec.workerGroupSpecs.0.replica", 2),
    "RayJob": ("spec.clusterSelector", "stream2llm"),
    "ScrapeConfig": ("spec.httpSDConfigs.0.uri", "http://x/sd"),
    "ServiceMonitor": ("spec.endpoints.0.interval", "15 seconds"),
    "PrometheusRule": ("spec.groups.0.rules.0.labels", ["critical"]),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_a_resource_of_an_operator_is_found(kind: str) -> None:
    resource = deepcopy(next(r for r in render(FOLDER / "overlays" / "gpu") if r["kind"] == kind))
    path, wrong = MISTAKES[kind]
    *parents, last = path.split(".")
    place: Any = resource
    for name in parents:
        place = place[int(name) if name.isdecimal() else name]
    jsonschema.validate(resource, SCHEMAS[kind])
    place[last] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource, SCHEMAS[kind])


@pytest.mark.parametrize("name", sorted(each.name for each in (FOLDER / "components").iterdir()))
def test_a_component_applies_to_an_overlay(name: str, tmp_path: Path) -> None:
    overlay = FOLDER / "overlays" / "cpu-kind"
    paths = {"resources": overlay, "components": FOLDER / "components" / name}
    relative = {key: [os.path.relpath(path, tmp_path)] for key, path in paths.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(relative))
    rendered = render(tmp_path)
    assert rendered != render(overlay)
    (command,) = commands_of(the(rendered, "RayJob")["spec"]["entrypoint"])
    parse(command)
    for each in rendered:
        jsonschema.validate(each, SCHEMAS.get(each["kind"], {}))


def lines_of_validation(resources: tuple[Resource, ...]) -> list[str]:
    """What kubernetes-validate prints for a file with these resources, as documented."""
    lines = []
    for each in resources:
        kind, name, version = each["kind"], each["metadata"]["name"], each["apiVersion"]
        lines.append(
            f"WARN rendered.yaml Couldn't find schema for kind {kind} with api version {version}"
            f" for kubernetes version {KUBERNETES}"
            if kind in SCHEMAS
            else f"INFO rendered.yaml passed for resource {kind.lower()}/{name}"
            f" against version {KUBERNETES}"
        )
    return lines


def test_the_page_shows_what_the_validation_prints() -> None:
    page = (FOLDER.parents[1] / "docs" / "deployment.md").read_text()
    shown = re.findall(r"^(?:INFO|WARN) rendered\.yaml .*$", page, re.MULTILINE)
    assert shown == lines_of_validation(render(FOLDER / "overlays" / "cpu-kind"))
    of_gpu = render(FOLDER / "overlays" / "gpu")
    (count,) = re.findall(r"`overlays/gpu` gives (\d+) resources that passed", page)
    assert int(count) == len([each for each in of_gpu if each["kind"] not in SCHEMAS])
    assert {each["kind"] for each in of_gpu} >= SCHEMAS.keys()


# -- of one mind with the code -------------------------------------------------------


def test_pods_run_as_the_user_of_the_images_and_with_no_privilege(
    resources: tuple[Resource, ...],
) -> None:
    dockerfile = (FOLDER.parent / "docker" / "Dockerfile").read_text()
    (user,) = set(re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE))
    for template in templates(resources).values():
        of_pod = template["spec"]["securityContext"]
        assert (of_pod["runAsNonRoot"], of_pod["runAsUser"]) == (True, int(user))
        assert container(template)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert template["spec"]["automountServiceAccountToken"] is False


def test_images_are_targets_of_the_dockerfile(resources: tuple[Resource, ...]) -> None:
    dockerfile = (FOLDER.parent / "docker" / "Dockerfile").read_text()
    (image,) = {container(template)["image"] for template in templates(resources).values()}
    assert f"AS {image.rpartition(':')[2]}\n" in dockerfile


def test_ray_is_that_of_the_lock(resources: tuple[Resource, ...]) -> None:
    assert the(resources, "RayCluster")["spec"]["rayVersion"] == pins(CPU_LOCK)["ray"]


def nodes(cluster: Resource) -> Iterator[Node]:
    """What Ray's nodes on these pods have."""
    for name, group in groups(cluster).items():
        limits = container(group["template"])["resources"]
        cpus = group["rayStartParams"].get("num-cpus", limits["requests"]["cpu"])
        gpus = limits["limits"].get("nvidia.com/gpu", 0)
        custom = json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        total = {"CPU": float(cpus), "GPU": float(gpus), **custom}
        for number in range(group.get("replicas", 1)):
            yield Node(f"{name}-{number}", {}, total, total)


def test_the_pods_have_room_for_the_configuration_and_for_no_more(
    resources: tuple[Resource, ...],
) -> None:
    config = configuration(resources)
    present = list(nodes(the(resources, "RayCluster")))
    assert find_refusal(config, present) is None
    for part in ("router", "gateway", "prefill", "decode"):
        section = getattr(config, part)
        more = section.model_copy(update={"replicas": section.replicas + 1})
        assert find_refusal(config.model_copy(update={part: more}), present), part


def test_every_part_listens_where_other_pods_reach_it(resources: tuple[Resource, ...]) -> None:
    config = configuration(resources)
    parts = (config.router, config.gateway, config.prefill, config.decode, config.controller)
    assert {part and part.host for part in parts} == {"auto"}
    assert config.ray.address == "auto"


def test_what_listens_is_encrypted_or_plain_by_name(resources: tuple[Resource, ...]) -> None:
    config = configuration(resources)
    check_encryption(config)
    if config.security.tls is None:
        return
    for name, template in templates(resources).items():
        if name == "submitter":
            continue
        main = container(template)
        (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == "tls"]
        (folder,) = [m["mountPath"] for m in main["volumeMounts"] if m["name"] == "tls"]
        files = config.security.tls.files.named().values()
        assert {str(file.parent) for file in files} == {folder}
        # For the probe, which connects by address.
        variables = {each["name"]: each.get("value") for each in main["env"]}
        assert variables["STREAM2LLM_TLS_CA"] == str(config.security.tls.ca)
        assert variables["STREAM2LLM_TLS_SERVER_NAME"] == config.security.peer_name
    for each in resources:
        if each["kind"] == "ScrapeConfig":
            for part in (each["spec"], each["spec"]["httpSDConfigs"][0]):
                assert part["tlsConfig"]["serverName"] == config.security.peer_name
                secret = part["tlsConfig"]["ca"]["secret"]
                assert secret == {"name": volume["secret"]["secretName"], "key": "ca.crt"}


def test_callers_need_keys_unless_their_absence_is_asked_for(
    resources: tuple[Resource, ...],
) -> None:
    config = configuration(resources)
    check_authentication(config)
    if config.security.auth.keys_file is None:
        return
    for name, template in templates(resources).items():
        if name == "submitter":
            continue
        (folder,) = [
            m["mountPath"] for m in container(template)["volumeMounts"] if m["name"] == "keys"
        ]
        assert str(config.security.auth.keys_file) == f"{folder}/keys.jsonl"
        assert [v for v in template["spec"]["volumes"] if v["name"] == "keys"]
    for each in resources:
        if each["kind"] == "ScrapeConfig":
            for part in (each["spec"], each["spec"]["httpSDConfigs"][0]):
                assert set(part["authorization"]["credentials"]) == {"name", "key"}


# -- ports ---------------------------------------------------------------------------


def exposed(resources: tuple[Resource, ...], name: str, group: str) -> int:
    """The port of a Service, which a container of the group has to have by that name."""
    (port,) = the(resources, "Service", name)["spec"]["ports"]
    template = groups(the(resources, "RayCluster"))[group]["template"]
    named = {each["name"]: each["containerPort"] for each in container(template)["ports"]}
    assert named[port["targetPort"]] == port["port"]
    return int(port["port"])


def test_ports_are_the_configuration_s(resources: tuple[Resource, ...]) -> None:
    config = configuration(resources)
    assert config.router.one_per_node
    assert config.gateway.one_per_node
    assert exposed(resources, "stream2llm-routers", "router") == config.router.port
    assert exposed(resources, "stream2llm-gateway", "gateway") == config.gateway.port
    assert exposed(resources, "stream2llm-controller", "head") == config.controller.http_port


def test_clients_of_routers_see_all_of_them_and_those_of_http_stay_with_one(
    resources: tuple[Resource, ...],
) -> None:
    for name in ("stream2llm-routers", "stream2llm-controller"):
        assert the(resources, "Service", name)["spec"]["clusterIP"] == "None"
    gateway = the(resources, "Service", "stream2llm-gateway")["spec"]
    assert "clusterIP" not in gateway
    # It keeps what streamed context has prepared.
    assert gateway["sessionAffinity"] == "ClientIP"
    has_tls = configuration(resources).security.tls is not None
    assert gateway["ports"][0]["appProtocol"] == ("https" if has_tls else "http")


def test_a_port_that_no_container_has_is_found(resources: tuple[Resource, ...]) -> None:
    the(resources, "Service", "stream2llm-gateway")["spec"]["ports"][0]["port"] = 8001
    with pytest.raises(AssertionError):
        exposed(resources, "stream2llm-gateway", "gateway")


def allowed(policy: Resource) -> set[int]:
    ports = [port for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    return {n for p in ports for n in range(p["port"], p.get("endPort", p["port"]) + 1)}


def test_policies_open_the_configuration_s_ports(resources: tuple[Resource, ...]) -> None:
    config = configuration(resources)
    of_http = the(resources, "NetworkPolicy", "stream2llm-http-clients")
    assert allowed(the(resources, "NetworkPolicy", "stream2llm-clients")) == {config.router.port}
    assert allowed(of_http) == {config.gateway.port}
    assert of_http["spec"]["podSelector"]["matchLabels"]["ray.io/group"] == "gateway"
    if any(each["kind"] == "ScrapeConfig" for each in resources):
        metrics = allowed(the(resources, "NetworkPolicy", "stream2llm-metrics"))
        wanted = {config.controller.http_port, config.router.metrics_port}
        for _, part in config.worker_sections:
            wanted |= {part.metrics_port + index for index in range(part.replicas)}
        assert wanted <= metrics
        of_gateways = the(resources, "NetworkPolicy", "stream2llm-gateway-metrics")
        assert allowed(of_gateways) == {config.gateway.port}


def test_kv_and_side_channels_are_open_between_workers_alone(
    resources: tuple[Resource, ...],
) -> None:
    config = configuration(resources)
    policy = the(resources, "NetworkPolicy", "stream2llm-kv")
    between_workers = allowed(policy)
    assert between_workers == set(PORTS)
    assert not between_workers & allowed(the(resources, "NetworkPolicy", "stream2llm-inside"))
    for _, part in config.worker_sections:
        first, _, last = part.env["UCX_TCP_PORT_RANGE"].partition("-")
        assert {int(first), int(last)} <= between_workers
    ends = {"ray.io/cluster": "stream2llm", "ray.io/group": "worker"}
    assert policy["spec"]["podSelector"]["matchLabels"] == ends
    (rule,) = policy["spec"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": ends}}]


def test_ray_s_ports_are_open_inside_and_its_jobs_for_those_who_submit(
    resources: tuple[Resource, ...],
) -> None:
    inside = the(resources, "NetworkPolicy", "stream2llm-inside")
    cluster = {"podSelector": {"matchLabels": {"ray.io/cluster": "stream2llm"}}}
    assert [rule["from"] for rule in inside["spec"]["ingress"]] == [[cluster]]
    jobs = the(resources, "NetworkPolicy", "stream2llm-jobs")
    head = container(templates(resources)["head"])
    (dashboard,) = [p["containerPort"] for p in head["ports"] if p["name"] == "dashboard"]
    assert allowed(jobs) == {dashboard}
    submitter = the(resources, "RayJob")["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    (rule,) = jobs["spec"]["ingress"]
    assert {"podSelector": {"matchLabels": submitter}} in rule["from"]
    for each in resources:
        if each["kind"] == "NetworkPolicy":
            assert all(rule.get("from") for rule in each["spec"]["ingress"])


def test_selectors_find_pods_that_there_are(resources: tuple[Resource, ...]) -> None:
    cluster = the(resources, "RayCluster")
    found = [r["spec"]["selector"] for r in resources if r["kind"] == "Service"]
    for each in resources:
        if each["kind"] == "PodDisruptionBudget":
            found.append(each["spec"]["selector"]["matchLabels"])
        if each["kind"] == "NetworkPolicy":
            found.append(each["spec"]["podSelector"]["matchLabels"])
    for labels in found:
        assert labels.pop("ray.io/cluster") == cluster["metadata"]["name"]
        assert labels.pop("ray.io/group", "router") in groups(cluster)
        assert labels.pop("ray.io/node-type", "head") == "head"
        assert not labels
    assert len(found) > 7


def test_a_disruption_leaves_one_of_each_kind(resources: tuple[Resource, ...]) -> None:
    budgets = [each for each in resources if each["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == len(groups(the(resources, "RayCluster")))
    # What belongs to no scalable resource can have nothing else.
    assert all(set(each["spec"]) == {"minAvailable", "selector"} for each in budgets)


# -- commands ------------------------------------------------------------------------


def commands_of(text: str) -> Iterator[list[str]]:
    """Every `stream2llm ...` in a shell command."""
    for found in re.findall(r"stream2llm (?!-)[a-z].*", text):
        yield shlex.split(found)[1:]


def test_commands_parse(resources: tuple[Resource, ...]) -> None:
    job = the(resources, "RayJob")["spec"]
    texts = [job["entrypoint"]]
    for name, template in templates(resources).items():
        main = container(template)
        if name != "submitter":
            texts.append(shlex.join(main["lifecycle"]["preStop"]["exec"]["command"]))
        if "readinessProbe" in main:
            texts.append(main["readinessProbe"]["exec"]["command"][-1])
    found = [words for text in texts for words in commands_of(text)]
    assert [words[0] for words in found] == ["up", "down", "ready", "ready"]
    for words in found:
        parse(words)


def test_the_job_and_the_end_read_the_mounted_file(resources: tuple[Resource, ...]) -> None:
    job = the(resources, "RayJob")["spec"]
    head = container(templates(resources)["head"])
    mounts = {each["name"]: each["mountPath"] for each in head["volumeMounts"]}
    file = f"{mounts['config']}/cluster.yaml"
    assert f"--config {file}" in job["entrypoint"]
    assert file in head["lifecycle"]["preStop"]["exec"]["command"]
    assert job["clusterSelector"] == {"ray.io/cluster": "stream2llm"}


@pytest.mark.parametrize("group", ["router", "gateway"])
def test_pods_are_ready_by_what_listens_there(resources: tuple[Resource, ...], group: str) -> None:
    config = configuration(resources)
    main = container(templates(resources)[group])
    probe = main["readinessProbe"]
    command = probe["exec"]["command"][-1]
    assert f'--address "$POD_IP:{getattr(config, group).port}"' in command
    assert ("--gateway" in command) is (group == "gateway")
    # KubeRay submits the job, which starts them, when all pods are ready.
    assert "--absent-ok" in command
    (timeout_s,) = re.findall(r"--timeout (\d+)", command)
    assert int(timeout_s) < probe["timeoutSeconds"] <= probe["periodSeconds"]
    assert "POD_IP" in {each["name"] for each in main["env"]}


def test_a_drain_has_the_time_it_needs(resources: tuple[Resource, ...]) -> None:
    config = configuration(resources)
    needs_s = config.router.drain_timeout_s + 4 * DRAIN_MARGIN_S + 4 * GRACEFUL_STOP_S
    for name, template in templates(resources).items():
        if name == "submitter":
            continue
        variables = {each["name"]: each.get("value") for each in container(template)["env"]}
        assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= needs_s
        grace_s = template["spec"]["terminationGracePeriodSeconds"]
        assert grace_s > needs_s
        text = shlex.join(container(template)["lifecycle"]["preStop"]["exec"]["command"])
        if name != "head":
            (seconds,) = re.findall(r"seq (\d+)", text)
            assert needs_s <= int(seconds) < grace_s
            (host, port) = re.findall(r"/dev/tcp/([\w-]+)/(\d+)", text)[0]
            service = the(resources, "Service", host)
            assert service["spec"]["ports"][0]["port"] == int(port)
            # The head's address, also while it ends.
            assert service["spec"]["publishNotReadyAddresses"] is True


# -- monitoring ----------------------------------------------------------------------


def test_alerts_are_those_of_prometheus() -> None:
    assert RULE.read_text() == prometheus_rule(), "run `make dashboards`"


def test_prometheus_asks_the_controller_for_what_to_scrape() -> None:
    resources = render(FOLDER / "overlays" / "gpu")
    spec = the(resources, "ScrapeConfig")["spec"]
    service = the(resources, "Service", "stream2llm-controller")
    of_prometheus = yaml.safe_load((FOLDER.parent / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ][0]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}"
    port = service["spec"]["ports"][0]["port"]
    assert spec["httpSDConfigs"][0]["url"] == f"https://{host}:{port}/sd"
    assert spec["honorLabels"] == of_prometheus["honor_labels"]


def test_gateways_are_among_what_the_controller_lists() -> None:
    """So they need no ServiceMonitor, by which each would be scraped twice."""
    started = GatewayStarted("gateway-0", "gateway", "10.0.0.1:8000", "10.0.0.1:8000", ())
    (found, _) = service_discovery([started], "10.0.0.2:8360")
    assert (found["targets"], found["labels"]["role"]) == (["10.0.0.1:8000"], "gateway")
