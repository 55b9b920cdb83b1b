"""`stream2llm profile`: measures the costs of recomputing and swapping on this node."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cost_profiles.load import save_profile
from cost_profiles.plot import draw, require_format, table
from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.extras import not_installed
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import load_config
from stream2llm.engine.arguments import check_arguments, check_variables
from stream2llm.models.catalogue import DEFAULT_MODEL
from stream2llm.models.store import resolve_model
from stream2llm.serving.observability.logs import for_terminal
from stream2llm.serving.settings.launch import cores_of
from stream2llm.serving.system.clock import SystemClock

if TYPE_CHECKING:
    from cost_profiles.types import CostProfile
    from prefill_worker.profiling import Subject

MAX_MINUTES = 5.0
# Time after the measurements for ending the engine and drawing.
FINISH_S = 8.0


def profile(
    model: Annotated[
        str | None,
        typer.Option(
            help="A name that `stream2llm model list` shows, or a directory; by default that"
            f" of --config, else {DEFAULT_MODEL}."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="A cluster's YAML file: its model, and engine arguments, environment and cores"
            " of its prefill workers.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The profile's file; by default DEVICE_MODEL_tpN.json in this directory.",
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="The figure; its suffix decides the format. By default beside --output."),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.5, max=MAX_MINUTES, help="Maximum time in minutes, the engine's start included."
        ),
    ] = 4.5,
    tensor_parallel_size: Annotated[
        int | None, typer.Option(min=1, help="Overrides the engine's.")
    ] = None,
) -> None:
    """Measure the costs of recomputing and swapping KV on this node.

    Starts an engine like a prefill worker's, times prefill and copies between
    device and host, and writes a cost profile, a figure and a table with the
    sizes at which the cheaper way changes. Progress goes to stderr, the table
    to stdout. Keep the device free of other work meanwhile. Exit codes: 0
    measured, 2 bad usage, 3 it cannot be measured like this, 4 the times are
    too noisy (try again), 130 cancelled.

    Example: stream2llm profile --config deploy/local-cpu.yaml --output here.json
    """
    clock = SystemClock()
    ends_s = clock.monotonic_s() + minutes * 60 - FINISH_S
    _quiet_vllm()
    cluster = load_config(config) if config else _no_config()
    role, part = cluster.prefilling
    check_arguments(role, part.engine)
    check_variables(f"{role}.env", part.env)
    subject = _subject(cluster, model, tensor_parallel_size)
    output = output or Path(_file_name(subject))
    _require_writable(output, "--output")
    drawn = _figure_path(figure, output)
    from prefill_worker.profiling import measure_profile

    measured = measure_profile(subject, clock, ends_s, _say)
    _write(measured, output, drawn)


def _quiet_vllm() -> None:
    """Silences vLLM's log. Must run before vLLM, which reads these variables, is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")


def _no_config() -> ClusterConfig:
    from prefill_worker.profiling import default_engine_args

    return ClusterConfig.model_validate({"prefill": {"engine": default_engine_args()}})


def _subject(cluster: ClusterConfig, model: str | None, num_ranks: int | None) -> Subject:
    from prefill_worker.profiling import Subject

    engine_args: dict[str, Any] = dict(cluster.prefilling[1].engine)
    if num_ranks is not None:
        engine_args["tensor_parallel_size"] = num_ranks
    return Subject(
        model=resolve_model(model or cluster.model),
        engine_args=engine_args,
        environment=_environment(cluster),
        command=shlex.join(["stream2llm", "profile", *sys.argv[2:]]),
    )


def _environment(cluster: ClusterConfig) -> Mapping[str, str]:
    """Returns the first prefill worker's environment, which includes its cores."""
    _, part = cluster.prefilling
    if part.num_gpus:
        return part.env
    cores = cores_of(part.cpu_bind, 0, 0, tuple(sorted(os.sched_getaffinity(0))))
    return {"VLLM_CPU_OMP_THREADS_BIND": cores, **part.env}


def _file_name(subject: Subject) -> str:
    from prefill_worker.profiling import device_name

    num_ranks = subject.engine_args.get("tensor_parallel_size", 1)
    name = f"{device_name()}_{subject.model.name}_tp{num_ranks}.json"
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower())


def _require_writable(path: Path, option: str) -> None:
    """Fails early, before minutes are spent on an unwritable result."""
    folder = path.parent
    if not folder.is_dir():
        problem = f"there is no directory {folder}"
    elif path.is_dir():
        problem = f"{path} is a directory"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        problem = f"{path} cannot be written"
    else:
        return
    raise InvalidRequestError(f"{option}: {problem}", reason="NOT_WRITABLE", field=option)


def _figure_path(figure: Path | None, output: Path) -> Path | None:
    """Returns the figure's path; None without matplotlib, unless `figure` names one."""
    path = figure or output.with_suffix(".png")
    _require_writable(path, "--figure")
    if find_spec("matplotlib") is not None:
        require_format(path)
        return path
    how = not_installed("matplotlib")
    if figure is not None:
        raise UnsupportedError(f"--figure: {how}", field="--figure")
    _say(f"there will be no figure, {how}; draw it later: python -m cost_profiles.show")
    return None


def _write(measured: CostProfile, output: Path, drawn: Path | None) -> None:
    save_profile(measured, output)
    _say(f"wrote {output}")
    if drawn is not None:
        draw(measured, drawn)
        _say(f"wrote {drawn}")
    typer.echo(for_terminal(table(measured)), nl=False)
    _say(
        f"to use it, in the cluster's file:\n\nprefill:\n  cost_profile: {output.absolute()}\n\n"
        "(or the directory, when nodes differ)"
    )


def _say(line: str) -> None:
    typer.echo(for_terminal(line), err=True)
