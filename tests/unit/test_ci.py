"""CI's job and the steps that it runs agree."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_job_may_last_longer_than_its_steps_together() -> None:
    """A step that is late says so by itself."""
    steps = re.findall(r"^(?:step|report) \w+ (\d+) ", (ROOT / ".ci" / "run").read_text(), re.M)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert len(steps) == 8
    assert sum(map(int, steps)) < job["timeout-minutes"]
