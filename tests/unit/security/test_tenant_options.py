"""The section security.tenants: what is refused, and what each tenant gets."""

from __future__ import annotations

from typing import Any

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.tenant import TenantShare
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import parse_config
from stream2llm.serving.settings.tenant_options import OTHERS, Quota, TenantOptions, TenantsOptions


def config(tenants: dict[str, Any], *, auth: bool = True, routers: int = 1) -> ClusterConfig:
    security: dict[str, Any] = {"tenants": tenants}
    if auth:
        security["auth"] = {"keys_file": "/keys.jsonl"}
    return parse_config({"security": security, "router": {"replicas": routers}}, source="file")


def test_a_tenant_has_its_own_settings_or_the_default_ones() -> None:
    tenants = config(
        {"default": {"weight": 0.5}, "named": {"acme": {"priority": 2}}}
    ).security.tenants
    assert tenants.share("acme") == TenantShare("acme", 1.0, 2)
    assert tenants.share("zeta") == TenantShare("zeta", 0.5, 0)
    assert (tenants.label("acme"), tenants.label("zeta")) == ("acme", OTHERS)


@pytest.mark.parametrize(
    ("tenants", "auth", "routers", "problem"),
    [
        ({"named": {"a b": {}}}, True, 1, "'a b' is no name of a tenant"),
        ({"named": {"acme": {}}}, False, 1, "without auth there is only one"),
        ({"default": {"weight": 0}}, True, 1, "security.tenants.default.weight"),
        ({"default": {"priority": 101}}, True, 1, "security.tenants.default.priority"),
        ({"default": {"max_open_sessions": 0}}, True, 1, "max_open_sessions"),
        (
            {"named": {"acme": {"max_open_sessions": 2}}},
            True,
            3,
            "max_open_sessions of acme is 2, less than router.replicas (3)",
        ),
        ({"default": {"limit": 3}}, True, 1, "unknown key security.tenants.default.limit"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    tenants: dict[str, Any], auth: bool, routers: int, problem: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        config(tenants, auth=auth, routers=routers)
    assert problem in caught.value.message


def test_every_quota_is_a_setting_of_a_tenant() -> None:
    assert set(Quota) <= set(TenantOptions.model_fields)


@pytest.mark.parametrize(
    ("share", "field"),
    [
        (TenantShare("x" * 1025), "tenant.name"),
        (TenantShare("a", weight=float("nan")), "tenant.weight"),
        (TenantShare("a", weight=0.0), "tenant.weight"),
        (TenantShare("a", priority=101), "tenant.priority"),
    ],
)
def test_a_worker_refuses_a_tenant_that_no_configuration_allows(
    share: TenantShare, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        share.validate("tenant")
    assert caught.value.field == field


def test_as_many_names_are_taken_as_metrics_can_bear() -> None:
    with pytest.raises(ValueError, match="at most 1000"):
        TenantsOptions(named={f"t{number}": TenantOptions() for number in range(1001)})
