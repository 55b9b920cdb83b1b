"""Prefill on one node, decode on another, on a Ray of two machines that only a network connects.

Real engines, KV over NIXL and TCP, TLS and API keys for all else, `up` as a Ray job. In order: each test goes on with the
cluster as the one before has left it, because engines take long to start.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream2llm.serving.system.ports import PORTS
from tests import network_namespaces
from tests.cluster_pool import Kind, config_of, model_path
from tests.network_namespaces import SHARED
from tests.ray_site import JOBS, RAY, ROOT, STREAM2LLM, Job, Site, a_site, documented_environment

pytestmark = [pytest.mark.slow, network_namespaces.NEEDED]

JOB_ID = "serve"
# Not what a slow machine needs for an answer.
DRAIN_TIMEOUT_S = 600
ROUTER = "10.77.0.1:50051"
TLS = SHARED / "tls"
CA = str(TLS / "ca.crt")
KEYS = SHARED / "keys.jsonl"
# Ray's default of 3 s ends a job before its sessions.
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
# Between those of our own servers and those that the kernel gives to connections.
UCX_PORTS = range(PORTS[-1] + 1, 32_700)
PROMPT = [7 + n * 31 % 40_000 for n in range(640)]
# Two vectors of 32 float32 numbers for each of 4 heads in each of 6 layers.
KV_BYTES = len(PROMPT) * 6 * 2 * 4 * 32 * 4
ASK = """
from stream2llm.client import Finished, SamplingParameters, TokenDelta, connect_sync
address, ca, prompt, num_tokens = given
sampling = SamplingParameters(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
with connect_sync(address, tls=ca) as client, client.session(sampling=sampling) as session:
    for begin in range(0, len(prompt), 160):
        session.append(prompt[begin : begin + 160])
    print("sealing", flush=True)
    tokens = []
    for event in session.seal():
        if isinstance(event, TokenDelta):
            if not tokens:
                print("answering", flush=True)
            tokens += event.token_ids
        elif isinstance(event, Finished):
            print(json.dumps({"tokens": tokens, "restarts": event.restarts}))
"""
# Standing still, the decode worker gives no answer a second token.
STOP_ENGINE = """
import psutil
(engine,) = [each for each in psutil.process_iter() if each.name().startswith("VLLM::Engine")]
engine.suspend()
print(json.dumps(engine.pid))
"""
KILL_RAYLET = """
import psutil
(raylet,) = [each for each in psutil.process_iter() if each.name() == "raylet"]
raylet.kill()
print(json.dumps(raylet.pid))
"""

# Where the engines of a machine listen.
LISTENERS = """
import psutil
from stream2llm.engine.listening import listening_sockets
engines = [each.pid for each in psutil.process_iter() if each.name().startswith("VLLM::")]
assert engines
print(json.dumps(listening_sockets(engines)))
"""


def write_config(shared: Path) -> None:
    """The places of deploy/ray/two-nodes.yaml, with the sensitive model and small engines."""
    documented = yaml.safe_load((ROOT / "deploy/ray/two-nodes.yaml").read_text())
    kind = Kind(max_model_len=2048, ucx_tls="tcp", lease_s=10)
    tree = config_of(kind).model_dump(mode="json")
    for part in ("controller", "router", "prefill", "decode"):
        tree[part] |= {key: documented[part][key] for key in ("host", "placement")}
    tree |= {"model": str(SHARED / "model"), "ray": documented["ray"]}
    tree["security"] = {
        "tls": {
            key: str(TLS / Path(file).name) for key, file in documented["security"]["tls"].items()
        },
        "auth": {"keys_file": str(KEYS)},
    }
    for role in ("prefill", "decode"):
        tree[role]["env"] |= {
            "UCX_NET_DEVICES": "eth0",
            "UCX_TCP_PORT_RANGE": f"{UCX_PORTS[0]}-{UCX_PORTS[-1]}",
        }
    tree["router"] |= {"port": 50051, "drain_timeout_s": DRAIN_TIMEOUT_S}
    tree["controller"] |= {"http_port": 8360, "unresponsive_after_s": 15}
    (shared / "cluster.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two nodes of one Ray, and a machine for clients."""
    shared = tmp_path_factory.mktemp("shared")
    shutil.copytree(model_path("random-llama-sensitive"), shared / "model")
    write_config(shared)
    assert STOP_WAIT in documented_environment()
    with a_site(shared, {"node-a": 1, "node-b": 2, "client": 3}) as site:
        hosts = [f"--host={site.machines[name].address}" for name in ("node-a", "node-b")]
        site.run("node-a", STREAM2LLM, "certs", str(TLS), *hosts)
        scopes = ("--scope=session", "--scope=read")
        key = site.run("node-a", STREAM2LLM, "keys", "create", str(KEYS), *scopes).strip()
        site.variables["STREAM2LLM_API_KEY"] = key
        site.variables[STOP_WAIT] = str(DRAIN_TIMEOUT_S + 50)
        site.start_ray("node-a", "stream2llm=prefill")
        site.start_ray("node-b", "stream2llm=decode")
        yield site


@pytest.fixture(scope="module")
def job(site: Site) -> Iterator[Job]:
    """`up` as a job, ready."""
    config = str(SHARED / "cluster.yaml")
    with closing(Job(site, "node-a", JOB_ID, ["stream2llm", "up", "--config", config])) as job:
        job.until("ready after")
        yield job


def ask(site: Site, num_tokens: int = 24) -> list[int]:
    """The answer that a client on a machine without Ray gets."""
    ended = json.loads(site.python("client", ASK, ROUTER, CA, PROMPT, num_tokens))
    answer: list[int] = ended["tokens"]
    return answer


def begin_to_ask(site: Site, num_tokens: int) -> subprocess.Popen[str]:
    """A client of the same kind, which has sealed."""
    client = site.start(
        "client", "env", f"PYTHONPATH={ROOT}", str(Path(RAY).with_name("python")), "-c",
        "import json, sys; given = json.loads(sys.argv[1])\n" + ASK,
        json.dumps([ROUTER, CA, PROMPT, num_tokens]),
    )  # fmt: skip
    assert client.stdout.readline() == "sealing\n"
    return client


def end_of(client: subprocess.Popen[str]) -> dict[str, Any]:
    """What it has printed at its end; behind that gRPC may log that the router closes the connection."""
    lines = client.communicate()[0].splitlines()
    ended: dict[str, Any] = json.loads(next(line for line in lines if line.startswith("{")))
    return ended


def status_of(site: Site) -> dict[str, Any]:
    """`stream2llm status` on the clients' machine: the controller's replicas by name."""
    asked = site.run("client", STREAM2LLM, "status", "--json", "--address", ROUTER, "--tls-ca", CA)
    replicas = json.loads(asked)["controller"]["replicas"]
    return {each["name"]: each for each in replicas}


@pytest.fixture(scope="module")
def answer(site: Site, job: Job) -> list[int]:
    """The first answer, after which KV has crossed the network."""
    before_bytes = site.machines["node-b"].received_bytes()
    answer = ask(site)
    assert site.machines["node-b"].received_bytes() - before_bytes > KV_BYTES
    return answer


def test_each_role_is_on_its_node_and_a_session_crosses(site: Site, answer: list[int]) -> None:
    assert len(answer) == 24
    hosts = {n: r["address"]["grpc_address"].split(":")[0] for n, r in status_of(site).items()}
    assert hosts == {"router-0": "10.77.0.1", "prefill-0": "10.77.0.1", "decode-0": "10.77.0.2"}


@pytest.mark.parametrize("name", ["node-a", "node-b"])
def test_kv_listens_where_it_was_told_to_and_there_alone(
    site: Site, answer: list[int], name: str
) -> None:
    """NIXL's side channel and UCX, by the kernel and by what the worker has logged."""
    found = json.loads(site.python(name, LISTENERS))
    address, beyond = (
        site.machines[name].address,
        [each for each in found if each[0] != "127.0.0.1"],
    )
    assert {host for host, _ in beyond} == {address}, found
    assert any(port in PORTS for _, port in beyond), found  # the side channel
    assert any(port in UCX_PORTS for _, port in beyond), found
    logs = site.run(name, "grep", "-rhE", "engine_listens", "/tmp/ray/session_latest/logs")
    assert "engine_listens worker_id=" in logs
    assert "engine_listens_elsewhere" not in logs


def test_a_lost_node_is_waited_for_and_serves_again(
    site: Site, job: Job, answer: list[int]
) -> None:
    """First its raylet dies, which takes the worker along; an answer that has begun waits as well."""
    site.python("node-b", STOP_ENGINE)
    client = begin_to_ask(site, len(answer))
    assert client.stdout.readline() == "answering\n"
    site.python("node-b", KILL_RAYLET)
    job.until("decode-0 died")
    site.machines["node-b"].end()
    assert "stream2llm=prefill" in job.until("decode-0 waits: no node has room")
    decode = status_of(site)["decode-0"]
    assert (decode["phase"], decode["start_failures"]) == ("waiting_for_room", 0)
    site.add("node-b", 2)
    site.start_ray("node-b", "stream2llm=decode")
    job.until("decode-0 is ready")
    job.until("router-0 knows 2 workers")
    assert ask(site) == answer
    begun = end_of(client)
    assert begun["tokens"] == answer
    assert begun["restarts"] >= 1


def test_a_stopped_job_lets_an_open_session_end(site: Site, job: Job, answer: list[int]) -> None:
    """As documented: a variable of deploy/ray/ray.env gives the drain its time."""
    num_tokens = 800
    client = begin_to_ask(site, num_tokens)
    site.run("node-a", RAY, "job", "stop", "--address", JOBS, JOB_ID)
    tokens = end_of(client)["tokens"]
    assert len(tokens) == num_tokens
    assert tokens[: len(answer)] == answer
    assert "stopped" in job.end()
    for name in ("node-a", "node-b"):
        left = site.run(name, "ps", "-eo", "args")
        assert "EngineCore" not in left
        assert "raylet" in left
