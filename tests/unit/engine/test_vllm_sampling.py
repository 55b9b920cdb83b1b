"""Our sampling parameters as vLLM's, and the seeds of the two engines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import msgspec
from vllm import SamplingParams

from router.bad_words import token_sequences
from router.encoder import TextEncoder
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.vllm_sampling import EngineSeed, engine_seed, to_vllm
from tests.tokenizer_families import FAMILIES, Family

WORDS = ["the", " lazy", "quick brown", "x", "€", "dog.", "a  b"]


@pytest.mark.parametrize(
    ("min_tokens", "answer_tokens", "max_tokens", "left"),
    [
        (0, 0, 1, 0),
        (5, 0, 1, 1),  # prefill's one token is no stop token
        (5, 1, 8, 4),
        (5, 4, 1, 1),
        (5, 5, 1, 0),
        (5, 7, 3, 0),
    ],
)
def test_min_tokens_counts_the_answer_so_far(
    min_tokens: int, answer_tokens: int, max_tokens: int, left: int
) -> None:
    ours = SamplingParameters(min_tokens=min_tokens)
    theirs = to_vllm(ours, max_tokens=max_tokens, seed=None, answer_tokens=answer_tokens)
    assert theirs.min_tokens == left


def test_the_engine_process_gets_what_samples() -> None:
    ours = SamplingParameters(
        min_tokens=2, min_p=0.25, logit_bias={3: -1.5}, bad_words=((4,), (5, 6))
    )
    theirs = to_vllm(ours, max_tokens=9, seed=None)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(theirs), type=SamplingParams)
    assert (sent.min_tokens, sent.min_p, sent.logit_bias) == (2, 0.25, {3: -1.5})
    assert sent.bad_words_token_ids == [[4], [5, 6]]


def test_without_them_vllm_gets_its_defaults() -> None:
    sent = to_vllm(SamplingParameters(), max_tokens=1, seed=None)
    assert (sent.logit_bias, sent.bad_words_token_ids) == (None, None)


def test_a_text_is_no_bad_word_for_an_engine() -> None:
    with pytest.raises(InvalidRequestError, match="engines take token ids"):
        to_vllm(SamplingParameters(bad_words=("x",)), max_tokens=1, seed=None)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_words_have_the_tokens_that_vllm_gives_them(family: Family) -> None:
    tokenizer = family.tokenizer()

    def encode(text: str, *, add_special_tokens: bool) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    for word in WORDS:
        theirs = SamplingParams(bad_words=[word])
        theirs.update_from_tokenizer(SimpleNamespace(encode=encode, max_token_id=10**6))
        ours = token_sequences([word], TextEncoder(tokenizer, "model"))
        assert [list(each) for each in ours] == theirs.bad_words_token_ids


# -- seeds of the two engines -------------------------------------------------------------


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
    assert 0 <= made < 2**63
    assert SamplingParams(seed=made).seed == made
