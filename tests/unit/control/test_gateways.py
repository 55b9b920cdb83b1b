"""Gateways in the configuration, among what must run, and in their actors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config import on_free_ports
from stream2llm.cluster.config_file import default_config, load_config, parse_config
from stream2llm.cluster.exposure import check_encryption
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.cluster.preflight import check_parsers
from stream2llm.engine.parser_names import registered_parsers
from stream2llm.serving.actor.actor_shell import GatewayShell
from stream2llm.serving.actor.replica_status import GatewayStatus
from stream2llm.serving.settings.gateway_spec import GatewaySpec
from stream2llm.serving.settings.launch import GatewayStarted, Launch
from stream2llm.serving.settings.worker_spec import ClusterView
from tests.refusals import refused

TLS = {name: f"/etc/{name}" for name in ("certificate", "key", "ca", "client_ca")}


def launches(tmp_path: Path, **gateway: object) -> list[Launch]:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    config = parse_config({"model": str(tmp_path), "gateway": gateway}, source="test")
    found = lay_out(config, tmp_path, {}, Factories())
    return [launch for launch in found if launch.role == "gateway"]


def test_the_default_cluster_has_one_and_other_configurations_as_many_as_they_ask_for(
    tmp_path: Path,
) -> None:
    default = load_config(default_config())
    assert default.gateway.port == 8000
    assert on_free_ports(default).gateway == default.gateway.model_copy(update={"port": 0})
    assert parse_config({}, source="test").gateway is None
    two = launches(tmp_path, replicas=2, port=8100)
    assert [(each.name, each.spec.port) for each in two] == [
        ("gateway-0", 8100),
        ("gateway-1", 8101),
    ]


def test_a_parser_is_one_of_vllms(tmp_path: Path) -> None:
    names = {"tool_parser": "hermes", "reasoning_parser": "qwen3"}
    check_parsers(parse_config({"gateway": names}, source="test"))
    (launch,) = launches(tmp_path, **names)
    assert (launch.spec.tool_parser, launch.spec.reasoning_parser) == ("hermes", "qwen3")
    for key, known in (("tool_parser", "hermes, "), ("reasoning_parser", "deepseek_r1, ")):
        with refused(f"'fancy'; it has .*{known}", field=f"gateway.{key}"):
            check_parsers(parse_config({"gateway": {key: "fancy"}}, source="test"))


def test_vllm_registers_the_parsers_that_its_source_names() -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    assert registered_parsers("tool") == set(ToolParserManager.lazy_parsers)
    assert registered_parsers("reasoning") == set(ReasoningParserManager.list_registered())


def test_gateways_with_nodes_of_their_own_have_the_same_port(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"one_per_node needs placement\.resources"):
        launches(tmp_path, replicas=2, one_per_node=True)
    resources = {"resources": {"gateway": 1}}
    two = launches(tmp_path, replicas=2, one_per_node=True, placement=resources)
    assert [each.spec.port for each in two] == [8000, 8000]


def test_a_gateway_beyond_loopback_needs_encryption() -> None:
    config = parse_config({"gateway": {"host": "10.0.0.1"}}, source="test")
    with refused(field="gateway.host"):
        check_encryption(config)


def test_where_clients_show_certificates_a_gateway_needs_one() -> None:
    security = {"tls": TLS}
    with pytest.raises(InvalidRequestError, match=r"gateway\.client_certificate"):
        parse_config({"gateway": {}, "security": security}, source="test")
    with pytest.raises(InvalidRequestError, match="needed together"):
        parse_config({"gateway": {"client_key": "/etc/key"}}, source="test")
    shown = {"client_certificate": "/etc/cert", "client_key": "/etc/key"}
    assert parse_config({"gateway": shown, "security": security}, source="test").gateway


async def test_its_actor_hosts_a_real_one_and_drops_late_views(tmp_path: Path) -> None:
    (launch,) = launches(tmp_path, port=0)
    assert isinstance(launch.spec, GatewaySpec)
    shell = GatewayShell(launch, "127.0.0.1")
    outcome = await shell.start()
    started = outcome.address
    assert isinstance(started, GatewayStarted), outcome.error
    assert started.http_address == started.metrics_address
    await shell.set_view(ClusterView(2, (), routers=("127.0.0.1:1",)))
    await shell.set_view(ClusterView(1, (), routers=("127.0.0.1:2",)))
    assert shell._hosted._clients._addresses == ("127.0.0.1:1",)
    assert await shell.status() == GatewayStatus(0, is_draining=False)
    await shell.drain(1.0)
    assert (await shell.status()).is_draining
    await shell.stop()
