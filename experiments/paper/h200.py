"""The paper's machine as the simulator sees it: two H200 with tensor parallel 2.

Five numbers are fitted to the paper's NON-streaming rows (`calibrate`), one value
for all cells: `data/h200_fit.json`. Nothing else is fitted. Copies to the host are the
datasheet's (`cost_profiles/data/h200_llama-3.1-8b_tp2.json`), KV memory follows from
the hardware.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cost_profiles.load import shipped_profile
from cost_profiles.types import CostProfile, RecomputePoint
from stream2llm.simulator.steps import StepLaw

DATA = Path(__file__).parent / "data"
FIT = DATA / "h200_fit.json"
BLOCK_SIZE = 16
# Two H200 report 143,771 MiB each. The paper gives vLLM 80 % of it; 16.1 GB are weights
# in bfloat16; 2 GB a rank for activations and the rest are judgement. 131,072 B a token.
KV_BYTES = 0.8 * 2 * 143_771 * 2**20 - 16.06e9 - 2 * 2e9
NUM_BLOCKS = int(KV_BYTES / 131_072 / BLOCK_SIZE)
# The paper's budgets.
TOKEN_BUDGET = {"crawler": 2048, "anns": 8192}
# No profile's business: enough for everything that is ever evicted at once.
NUM_HOST_BLOCKS = 4 * NUM_BLOCKS


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted."""

    fixed_s: float
    per_token_s: float
    per_pair_s: float
    per_context_token_s: float
    # From submission to the scheduler.
    front_s: float

    @property
    def law(self) -> StepLaw:
        """The step law that was fitted."""
        return StepLaw(self.fixed_s, self.per_token_s, self.per_pair_s, self.per_context_token_s)


def load_fit() -> Fit:
    """As `calibrate` left it."""
    return Fit(**json.loads(FIT.read_text("utf-8")))


def save_fit(fit: Fit) -> None:
    """For `calibrate`."""
    rounded = {name: float(f"{value:.4g}") for name, value in asdict(fit).items()}
    FIT.write_text(json.dumps(rounded, indent=2) + "\n", "utf-8")


def profile(fit: Fit, token_budget: int) -> CostProfile:
    """What a scheduler there goes by: recompute from the fit, copies from the datasheet."""
    sheet = shipped_profile("h200_llama-3.1-8b_tp2")
    points = tuple(
        RecomputePoint(each.num_tokens, 0, fit.law.seconds_to(each.num_tokens, token_budget))
        for each in sheet.recompute.points
    )
    section = replace(sheet.recompute, token_budget=token_budget, points=points)
    return replace(sheet, recompute=section)
