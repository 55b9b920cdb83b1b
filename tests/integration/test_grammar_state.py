"""Where an answer stands in its grammar, when its first tokens come from other engines.

1. An automaton that takes up any first tokens of an answer allows what the one that sampled
   them allows, step by step.
2. Tokens that the grammar does not allow are refused.
3. A grammar that raises fails its request: it masks nothing and accepts nothing any more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from prefill_worker.local_engine import core_request
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.engine.answer_penalty import ANSWER_TOKENS_KEY
from stream2llm.engine.failed_request import FAILED_GRAMMAR, FailedGrammarError
from stream2llm.engine.grammar_state import GuardedGrammar, take_up
from stream2llm.gateway.reasoning_grammar import behind_reasoning
from stream2llm.gateway.vllm_answer import ReasoningEnd
from tests.scheduling.engine_settings import EngineSettings, create_config
from tests.scheduling.masked_engine import allowed, verified
from tests.tiny_model import EOS, IM_START

PROMPT = [5, 6, 7]
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
CONSTRAINTS = {
    "choice": {"choice": ["yes", "yes, but", "no"]},
    "regex": {"regex": "[a-c]{2,4}(-[0-9]+)?"},
    "schema": {"json": SCHEMA},
    "object": {"json_object": True},
    "grammar": {"grammar": 'root ::= "(" root ")" | "x"'},
}


@pytest.fixture(scope="module", params=["xgrammar", "guidance"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def manager(backend: str) -> Iterator[StructuredOutputManager]:
    """It has one backend for its life."""
    manager = StructuredOutputManager(create_config(EngineSettings()))
    yield manager
    manager.clear_backend()


def a_request(
    manager: StructuredOutputManager, constraint: dict[str, Any], backend: str, answer: list[int]
) -> Request:
    """A request whose prompt ends with the answer so far, and whose grammar is compiled."""
    params = SamplingParams(
        max_tokens=4,
        extra_args={ANSWER_TOKENS_KEY: len(answer)},
        structured_outputs=verified(manager, StructuredOutputsParams(**constraint), backend),
    )
    params.update_from_generation_config({"eos_token_id": [EOS, IM_START]}, EOS)
    core = core_request("r", [*PROMPT, *answer], params)
    request = Request.from_engine_core_request(core, None)
    manager.grammar_init(request)
    request.structured_output_request._grammar.result(60)
    return request


def mask(manager: StructuredOutputManager, request: Request) -> list[int]:
    rows = manager.grammar_bitmask({"r": request}, ["r"], {})
    return allowed(rows[0])


def sampled(manager: StructuredOutputManager, request: Request, seed: int) -> list[list[int]]:
    """Samples an answer of up to 24 tokens; returns each step's mask, and the answer."""
    rng, masks = random.Random(seed), []
    for _ in range(24):
        masks.append(mask(manager, request))
        token = rng.choice(masks[-1])
        request.append_output_token_ids(token)
        assert manager.accept_tokens(request, [token])
        if token in (EOS, IM_START):
            break
    return masks


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("seed", range(4))
def test_1_an_answer_that_is_taken_up_goes_on_as_if_sampled_here(
    manager: StructuredOutputManager, backend: str, name: str, seed: int
) -> None:
    whole = a_request(manager, CONSTRAINTS[name], backend, [])
    take_up(manager, whole)
    masks = sampled(manager, whole, seed)
    answer = list(whole.output_token_ids)
    assert any(len(each) < 500 for each in masks), "it constrains something"
    for num_before in range(1, len(answer)):
        rest = a_request(manager, CONSTRAINTS[name], backend, answer[:num_before])
        take_up(manager, rest)
        for expected, token in zip(masks[num_before:], answer[num_before:], strict=True):
            assert mask(manager, rest) == expected
            rest.append_output_token_ids(token)
            assert manager.accept_tokens(rest, [token])


def test_1_a_first_token_that_completes_the_grammar_leaves_the_end(
    manager: StructuredOutputManager, backend: str
) -> None:
    request = a_request(manager, {"regex": "a"}, backend, [])
    take_up(manager, request)
    (only,) = mask(manager, request)
    done = a_request(manager, {"regex": "a"}, backend, [only])
    take_up(manager, done)
    assert EOS in mask(manager, done)
    assert set(mask(manager, done)) <= {EOS, IM_START}


def test_1_reasoning_that_ended_before_is_not_begun_again(
    manager: StructuredOutputManager, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "reasoner_cls", Reasoner)
    (only,) = _first_of(manager, backend, [9, Reasoner.END])
    assert len(_first_of(manager, backend, [9])) > 1, "it still thinks: nothing is masked"
    ended = a_request(manager, {"regex": "ab"}, backend, [9, Reasoner.END, only])
    take_up(manager, ended)
    assert len(mask(manager, ended)) == 1
    # In the prompt of one engine it would be the template's.
    assert ended.structured_output_request.reasoning_ended


def test_1_reasoning_that_is_part_of_the_grammar_goes_on_where_it_was() -> None:
    """A gateway's structured outputs begin behind the reasoning."""
    end = ReasoningEnd("</x>", 8)
    manager = StructuredOutputManager(create_config(EngineSettings()))
    try:

        def masks(answer: list[int], *, has_to_come: bool = True) -> list[int]:
            asked = behind_reasoning(StructuredOutput(regex="ab"), end, has_to_come=has_to_come)
            tag = {"structural_tag": asked.structural_tag}
            request = a_request(manager, tag, "xgrammar", answer)
            take_up(manager, request)
            return mask(manager, request)

        thinking = masks([])
        assert len(thinking) > 250
        assert not {EOS, IM_START} & set(thinking), "the constraint has to come"
        assert thinking == masks([9]) == masks([9, 10, 11])
        (a,) = masks([9, 8])
        assert masks([8]) == [a]
        (b,) = masks([9, 8, a])
        assert set(masks([9, 8, a, b])) <= {EOS, IM_START}
        with pytest.raises(FailedGrammarError):
            masks([9, 8, b])
        # The model may leave its reasoning out.
        assert {EOS, IM_START} & set(masks([a, b], has_to_come=False))
        assert not {EOS, IM_START} & set(masks([a, a], has_to_come=False))
        assert masks([a, a, 8], has_to_come=False) == [a]
    finally:
        manager.clear_backend()


def _first_of(manager: StructuredOutputManager, backend: str, answer: list[int]) -> list[int]:
    request = a_request(manager, {"regex": "[a]b"}, backend, answer)
    take_up(manager, request)
    return mask(manager, request)


class Reasoner:
    """As one of vLLM's reasoning parsers: an answer thinks until a token."""

    END = 8

    def __init__(self, tokenizer: Any) -> None:
        pass

    def is_reasoning_end(self, token_ids: list[int]) -> bool:
        return self.END in token_ids

    def is_reasoning_end_streaming(self, token_ids: list[int], delta_ids: list[int]) -> bool:
        return self.END in delta_ids


def test_2_an_answer_that_the_grammar_does_not_allow_is_refused(
    manager: StructuredOutputManager, backend: str
) -> None:
    request = a_request(manager, {"regex": "[a-c]+"}, backend, [mid_token(manager, "z")])
    with pytest.raises(FailedGrammarError, match="does not accept token"):
        take_up(manager, request)
    assert request.stop_reason == FAILED_GRAMMAR


def mid_token(manager: StructuredOutputManager, text: str) -> int:
    (token,) = manager.tokenizer.encode(text)
    return int(token)


class Broken:
    """A backend's grammar that raises."""

    def __init__(self, *methods: str) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            if name in self._methods:
                raise RuntimeError(f"{name} fails")
            return {"is_terminated": False, "accept_tokens": True}.get(name)

        return call


class Row:
    """A row of a bitmask."""

    value: int | None = None

    def fill_(self, value: int) -> None:
        self.value = value


def test_3_a_grammar_that_cannot_say_whether_it_has_ended_masks_nothing() -> None:
    request = Request.from_engine_core_request(
        core_request("r", PROMPT, SamplingParams(max_tokens=4)), None
    )
    grammar = GuardedGrammar(Broken("is_terminated"), request)  # type: ignore[arg-type]
    assert grammar.is_terminated()
    assert not grammar.accept_tokens("r", [1])


@pytest.mark.parametrize("method", ["accept_tokens", "fill_bitmask", "rollback", "validate_tokens"])
def test_3_a_grammar_that_raises_fails_its_request(method: str) -> None:
    request = Request.from_engine_core_request(
        core_request("r", PROMPT, SamplingParams(max_tokens=4)), None
    )
    grammar, row = GuardedGrammar(Broken(method), request), Row()  # type: ignore[arg-type]
    calls = {
        "accept_tokens": lambda: grammar.accept_tokens("r", [1]),
        "fill_bitmask": lambda: grammar.fill_bitmask([row], 0),
        "rollback": lambda: grammar.rollback(1),
        "validate_tokens": lambda: grammar.validate_tokens([1]),
    }
    assert not calls[method]()  # type: ignore[no-untyped-call]
    assert grammar.is_terminated(), "nothing is masked"
    assert row.value == (-1 if method == "fill_bitmask" else None)
    assert not grammar.accept_tokens("r", [1]), "vLLM ends the request"
    assert request.stop_reason == FAILED_GRAMMAR
