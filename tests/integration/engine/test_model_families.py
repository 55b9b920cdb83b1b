"""Which families of models work, as docs/models.md has it; on vLLM's model runner of this run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.model_families import FAMILIES, WORKS

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[3]


def test_what_works_and_what_is_refused() -> None:
    is_large = torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported()
    tried = [family for family in FAMILIES if not (is_large and family.is_for_larger_cpus)]
    command = [sys.executable, "-m", "tests.model_families", *(family.name for family in tried)]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    outcomes = {each["name"]: each["outcome"] for each in map(json.loads, run.stdout.splitlines())}
    assert outcomes.keys() == {family.name for family in tried}, run.stderr[-4000:]
    surprises = {
        family.name: outcomes[family.name]
        for family in tried
        if (family.refusal or WORKS) not in outcomes[family.name]
    }
    assert not surprises, run.stderr[-4000:]
