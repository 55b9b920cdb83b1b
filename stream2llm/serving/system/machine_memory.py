"""The memory of this machine, or of its control group."""

from __future__ import annotations

from pathlib import Path


def machine_memory() -> tuple[int, int]:
    """Returns (available, total) bytes, of the machine or of the control group if less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(fields[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    limit, used = _control_group_memory()
    if limit is not None:
        available, total = min(available, limit - used), min(total, limit)
    return available, total


def _control_group_memory() -> tuple[int | None, int]:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None, 0
    return (None if limit == "max" else int(limit)), used
