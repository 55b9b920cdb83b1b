"""All checks over all facts. Only `configuration` does I/O: it runs those of `up --check`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date

from stream2llm.api.errors import Stream2LLMError
from stream2llm.cli.check import MODEL_IS_ELSEWHERE
from stream2llm.cli.doctor import cluster, model, network, tls
from stream2llm.cli.doctor import machine as machine_checks
from stream2llm.cli.doctor.facts import Finding, Level, Machine, Running
from stream2llm.cluster import preflight
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.engine_check import check_engines
from stream2llm.cluster.layout import Factories, common_environment, lay_out

_BESIDE_A_CLUSTER = ("ports", "memory")
# `tls.check_tls` looks at the same, on every node, with more of an eye to the future.
_ELSEWHERE = "TLS files"


def judge(
    machines: Sequence[Machine], config: ClusterConfig, running: Running, today: date
) -> Iterator[Finding]:
    """Judges all facts; the findings of a machine have its name where there are several."""
    is_one = len(machines) == 1
    for each in machines:
        for finding in _of_machine(each, config, today, is_one=is_one):
            yield replace(finding, node="" if is_one else each.node)
    yield from cluster.check_nodes(machines, config)
    yield from tls.check_authorities(machines)
    yield from cluster.check_gpus(machines, config)
    yield from cluster.check_clocks(running.offsets)
    yield from cluster.check_running(running)


def _of_machine(
    each: Machine, config: ClusterConfig, today: date, *, is_one: bool
) -> Iterator[Finding]:
    checks = machine_checks.CHECKS
    for check in (*checks, *machine_checks.CHECKS_OF_ONE) if is_one else checks:
        yield from check(each, config)
    yield from network.check_kv_network(each, config)
    yield from network.check_reached(each, config)
    yield from model.check_model(each, config)
    yield from model.check_dtypes(each, config)
    yield from model.check_profile(each, config, today)
    yield from tls.check_tls(each, today)


def configuration(
    config: ClusterConfig, *, on_this_machine: bool, is_running: bool, fast: bool
) -> Iterator[Finding]:
    """Makes the checks of `up --check`; where the cluster runs, it holds its ports and memory."""
    checks = preflight.checks(config, on_this_machine=on_this_machine, runs_vllm=True)
    left_out = {_ELSEWHERE, *(_BESIDE_A_CLUSTER if is_running else ())}
    wanted = [each for each in checks if each.what not in left_out]
    findings = [_preflight(each) for each in wanted]
    yield from findings
    if not fast and all(each.level is Level.OK for each in findings):
        yield from _engines(config, on_this_machine=on_this_machine)


def _preflight(check: preflight.Check) -> Finding:
    what = f"configuration: {check.what}"
    try:
        check.run()
    except Stream2LLMError as error:
        # These messages say themselves what to do.
        return Finding(Level.PROBLEM, what, error.message)
    except Exception as error:  # a check that crashes is a finding, too
        text = f"could not be checked: {type(error).__name__}: {error}"
        return Finding(Level.WARNING, what, text, "please report it")
    return Finding(Level.OK, what, "as it should be")


def _engines(config: ClusterConfig, *, on_this_machine: bool) -> Iterator[Finding]:
    model_path = preflight.find_model(config, on_this_machine=on_this_machine)
    if model_path is None:
        yield Finding(Level.OK, "engines, by vLLM", MODEL_IS_ELSEWHERE)
        return
    launches = lay_out(config, model_path, common_environment(), Factories())
    for verdict in check_engines(launches):
        what = f"{verdict.role} engine, by vLLM"
        if verdict.problem:
            advice = f"correct {verdict.role}.engine"
            yield Finding(Level.PROBLEM, what, verdict.problem, advice)
        else:
            yield Finding(Level.OK, what, verdict.left_out or "would start")


def worst(findings: Iterable[Finding]) -> Level:
    """Returns the worst level."""
    order = list(Level)
    return max((each.level for each in findings), key=order.index, default=Level.OK)
