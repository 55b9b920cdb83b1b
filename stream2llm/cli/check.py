"""`stream2llm up --check`: all checks that are possible before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stream2llm.api.errors import Stream2LLMError
from stream2llm.cluster import preflight
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.engine_check import Verdict, check_engines
from stream2llm.cluster.layout import Factories, common_environment, lay_out
from stream2llm.serving.settings.launch import Launch

Say = Callable[[str], None]
MODEL_IS_ELSEWHERE = "the model is not on this machine; the nodes look for it when they start"


def check(config: ClusterConfig, say: Say) -> bool:
    """Prints the checks and what would be started; returns whether all is well."""
    is_here = config.ray.address == "local"
    wanted = preflight.checks(config, on_this_machine=is_here, runs_vllm=True)
    problems = [each for each in wanted if not _passes(each, say)]
    if not is_here:
        say(f"left out: ports, cores and memory of the nodes of {config.ray.address}")
    if problems:  # vLLM would report the same again, in longer words
        say(f"{len(problems)} of {len(wanted)} checks failed; nothing was started")
        return False
    model_path = preflight.find_model(config, on_this_machine=is_here)
    launches = lay_out(config, model_path, common_environment(), Factories())
    if model_path is None:
        say(f"left out engines, by vLLM: {MODEL_IS_ELSEWHERE}")
    has_passed = model_path is None or _show_verdicts(check_engines(launches), say)
    _show_launches(launches, config, say)
    return has_passed


def _passes(each: preflight.Check, say: Say) -> bool:
    try:
        each.run()
    except Stream2LLMError as error:
        say(f"FAILED   {each.what}: {error.message}")
        return False
    say(f"ok       {each.what}")
    return True


def _show_verdicts(verdicts: Sequence[Verdict], say: Say) -> bool:
    for each in verdicts:
        what = f"{each.role} engine, by vLLM"
        if each.problem:
            say(f"FAILED   {what}: {each.problem}")
        else:
            say(f"left out {what}: {each.left_out}" if each.left_out else f"ok       {what}")
    return not any(each.problem for each in verdicts)


def _show_launches(launches: Sequence[Launch], config: ClusterConfig, say: Say) -> None:
    say(f"would start {config.model_name}:")
    for each in launches:
        port = getattr(each.spec, "port", 0)
        place = f"{each.spec.host}:{port}" if port else f"{each.spec.host}, any free port"
        needs = f", {each.num_gpus:g} GPUs" if each.num_gpus else ""
        say(f"  {each.name} on {place}{needs}")
