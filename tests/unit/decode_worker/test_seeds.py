"""Seeds of the two engines."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from stream2llm.engine.vllm_sampling import EngineSeed, engine_seed

pytestmark = pytest.mark.unit
SEEDS = [0, 1, -1, -2, 2**63 - 1, -(2**63)]


def test_no_seed_stays_none() -> None:
    assert engine_seed(None, EngineSeed.PREFILL) is None


def test_all_seeds_differ_from_each_other_and_between_the_engines() -> None:
    made = {engine_seed(seed, engine) for seed in SEEDS for engine in EngineSeed}
    assert len(made) == 2 * len(SEEDS)


def test_an_answer_that_goes_on_elsewhere_gets_other_random_numbers() -> None:
    made = {engine_seed(7, engine, num_before) for engine in EngineSeed for num_before in range(50)}
    assert len(made) == 100


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("engine", list(EngineSeed))
def test_vllm_takes_every_seed_as_one(seed: int, engine: EngineSeed) -> None:
    """vLLM reads -1 as "no seed"."""
    made = engine_seed(seed, engine)
    assert made is not None
    assert 0 <= made < 2**63
    assert SamplingParams(seed=made).seed == made
