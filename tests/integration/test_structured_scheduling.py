"""Structured outputs in the real schedulers, with vLLM's own backend and fake executors.

S1 a grammar is compiled while the context streams in; an open session has no mask
S2 a seal waits for its grammar, while all but its last token is computed
S3 what cannot be compiled, or not in time, ends its own session, with the reason
S4 an automaton that raises ends its own session, not the engine (vllm#53181, #49694)
S5 decode's automaton is behind the tokens that others sampled before it masks
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.refusals import refused

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.request import Request

from prefill_worker.engine import PrefillSession, prefill_outputs
from prefill_worker.local_engine import core_request
from stream2llm.api.errors import InternalError, InvalidRequestError, OverloadedError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.structured_output import BAD_STRUCTURED_OUTPUT, StructuredOutput
from stream2llm.api.token_step import TokenStep
from stream2llm.engine.answer_penalty import ANSWER_TOKENS_KEY
from stream2llm.engine.failed_request import BAD_GRAMMAR, FAILED_GRAMMAR
from stream2llm.engine.grammar_compiler import StoppableCompiler
from stream2llm.engine.structured_output import GrammarOrder
from stream2llm.engine.vllm_sampling import token_step
from stream2llm.serving.settings.worker_options import StructuredOutputOptions
from stream2llm.serving.system.clock import ManualClock
from tests.scheduling.engine_settings import EngineSettings, block_hasher
from tests.scheduling.handover_pair import Pair
from tests.scheduling.masked_engine import ByHand, MaskedEngine, obey, slow_calls, verified
from tests.scheduling.slow_compiler import SLOW
from tests.tiny_model import EOS, IM_START

SAMPLING = SamplingParameters(
    max_tokens=4, temperature=0.0, structured_output=StructuredOutput(regex="[a-c]+")
)
CONTEXT = list(range(100, 130))


@pytest.fixture
async def engine() -> AsyncIterator[MaskedEngine]:
    backend = {"structured_outputs_config": {"backend": "xgrammar"}}
    engine = MaskedEngine(EngineSettings(engine_args=backend))
    yield engine
    engine.scheduler.check_integrity()
    assert not engine.scheduler.has_unfinished_requests(), "nothing keeps it busy"
    engine.manager.clear_backend()


def a_session(engine: MaskedEngine, name: str, **changes: Any) -> PrefillSession:
    return PrefillSession(engine, name, replace(SAMPLING, **changes))  # type: ignore[arg-type]


async def first_token(session: PrefillSession) -> TokenStep:
    """The last output of a session that has ended; raises what its client gets."""
    (*_, last) = [output async for output in prefill_outputs(session.outputs)]
    return token_step(last.sampled, None)


async def test_s1_a_grammar_is_compiled_before_a_session_has_a_token(engine: MaskedEngine) -> None:
    assert SAMPLING.structured_output is not None
    compiled: list[tuple[str, float]] = []
    order = GrammarOrder(
        engine, "order", SAMPLING.structured_output, lambda *told: compiled.append(told)
    )
    await order.begin()
    engine.run_until(lambda: not engine.scheduler.has_unfinished_requests())
    await order.compiled()
    ((backend, seconds),) = compiled
    assert backend == "xgrammar"
    assert seconds > 0
    session = a_session(engine, "a")
    await session.splice(1, 0, CONTEXT)
    engine.run()
    assert not engine.masks, "an open session samples nothing"
    assert not engine.scheduler.is_compiling("a")
    await session.splice(2, 30, [7], seal=True)
    engine.run()
    assert (await first_token(session)).token_ids[0] in engine.masks["a"]
    assert EOS not in engine.masks["a"], "it has to begin with a letter"


async def test_s1_an_update_compiles_nothing_anew(engine: MaskedEngine) -> None:
    session = a_session(engine, "a")
    await session.splice(1, 0, CONTEXT)
    engine.run()
    ByHand(engine)  # nothing that it gets would end
    for revision in (2, 3):
        await session.splice(revision, 8, [revision, 4, 5])
        engine.run()
    await session.splice(4, 8, [9], seal=True)
    engine.run()
    assert (await first_token(session)).token_ids[0] in engine.masks["a"]


@pytest.mark.parametrize("at_once", [True, False], ids=["one event", "open, then sealed"])
async def test_s2_a_seal_waits_for_its_grammar(engine: MaskedEngine, at_once: bool) -> None:
    backend = ByHand(engine)
    session = a_session(engine, "a")
    if not at_once:
        await session.splice(1, 0, CONTEXT[:20])
        engine.run_some(5)
    await session.splice(2, 0, CONTEXT, seal=True)
    engine.run_some(5)
    assert engine.scheduler.requests["a"].num_computed_tokens == len(CONTEXT) - 1
    assert not engine.masks
    backend.finish()
    engine.run()
    assert (await first_token(session)).token_ids[0] in engine.masks["a"]


async def test_s2_a_session_that_waits_for_its_grammar_can_be_cancelled(
    engine: MaskedEngine,
) -> None:
    backend = ByHand(engine)
    session, other = a_session(engine, "a"), a_session(engine, "b", structured_output=None)
    await session.splice(1, 0, CONTEXT, seal=True)
    engine.run_some(3)
    await session.cancel()
    await other.splice(1, 0, CONTEXT, seal=True)
    engine.run()
    assert len((await first_token(other)).token_ids) == 1
    backend.finish()


async def test_s2_a_resumed_answer_goes_on_behind_its_tokens(engine: MaskedEngine) -> None:
    """The regular expression's end is all that may follow."""
    (letter,) = engine.manager.tokenizer.encode("a")
    session = a_session(engine, "a", structured_output=StructuredOutput(regex="a"))
    await session.splice(1, 0, [*CONTEXT, letter], seal=True, answer_tokens=1)
    engine.run()
    assert set(engine.masks["a"]) <= {EOS, IM_START}
    assert (await first_token(session)).token_ids[0] in (EOS, IM_START)


async def test_s3_what_cannot_be_compiled_ends_its_session_with_the_reason(
    engine: MaskedEngine,
) -> None:
    backend = ByHand(engine)
    broken, other = a_session(engine, "a"), a_session(engine, "b", structured_output=None)
    for session in (broken, other):
        await session.splice(1, 0, CONTEXT)
    engine.run_some(5)
    backend.finish(RuntimeError("too many rules"))
    engine.run()
    with refused(
        r"cannot be compiled: .*too many rules",
        field="sampling.structured_output",
        reason=BAD_STRUCTURED_OUTPUT,
    ):
        await first_token(broken)
    await other.splice(2, 30, [7], seal=True)
    engine.run()
    assert len((await first_token(other)).token_ids) == 1


@pytest.mark.parametrize(
    ("is_busy", "error", "message"),
    [
        (False, InvalidRequestError, "takes longer than 10 s to compile"),
        (True, OverloadedError, "busy compiling the structured outputs of others"),
    ],
)
async def test_s3_what_takes_too_long_ends_its_session(
    engine: MaskedEngine, is_busy: bool, error: type[Exception], message: str
) -> None:
    """The backend cannot be stopped, or no thread is free."""
    engine.scheduler._grammar_threads.are_bounded = False
    clock = engine.scheduler._grammar_clock = ManualClock()  # type: ignore[assignment]
    ByHand(engine).is_busy = is_busy
    session = a_session(engine, "a")
    await session.splice(1, 0, CONTEXT, seal=True)
    engine.run_some(3)
    clock.advance(StructuredOutputOptions().compile_timeout_s + 1)
    engine.run()
    with pytest.raises(error, match=message):
        await first_token(session)


async def test_s3_a_compiler_that_takes_too_long_is_stopped_and_holds_up_no_other(
    engine: MaskedEngine,
) -> None:
    """XGrammar's, in its processes."""
    other = a_session(engine, "b")
    await other.splice(1, 0, CONTEXT)
    engine.run_until(lambda: not engine.scheduler.is_compiling("b"))
    compiler = engine.manager.backend.compiler  # type: ignore[union-attr]
    assert isinstance(compiler, StoppableCompiler)
    calls = compiler._calls = slow_calls(engine)
    compiler._limit_s = 0.5
    slow = a_session(engine, "a", structured_output=StructuredOutput(regex=SLOW))
    await slow.splice(1, 0, CONTEXT, seal=True)
    await other.splice(2, 8, CONTEXT, seal=True)
    engine.run_until(lambda: not engine.scheduler.has_unfinished_requests())
    assert (await first_token(other)).token_ids[0] in engine.masks["b"]
    with refused(r"takes longer than 0\.5 s to compile", reason=BAD_STRUCTURED_OUTPUT):
        await first_token(slow)
    calls.close()


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (StructuredOutput(json_schema='{"type": "what?"}'), 'Unsupported type "what\\?"'),
        (StructuredOutput(regex="(a"), "The parenthesis is not closed"),
        (StructuredOutput(grammar="root ::= missing"), 'Rule "missing" is not defined'),
        (StructuredOutput(structural_tag='{"type": "none"}'), "Structural tag's type must be"),
        (
            StructuredOutput.from_json_schema({"type": "integer", "multipleOf": 3}),
            "features not supported by xgrammar",
        ),
    ],
    ids=["schema", "regex", "grammar", "structural tag", "not supported"],
)
async def test_s3_what_the_backend_does_not_take_is_refused_at_the_order(
    engine: MaskedEngine, output: StructuredOutput, why: str
) -> None:
    output.validate()
    message = f"structured_output cannot be compiled: .*{why}"
    with refused(message, reason=BAD_STRUCTURED_OUTPUT):
        await GrammarOrder(engine, "order", output).begin()


async def test_s3_an_order_fails_with_what_it_ordered(engine: MaskedEngine) -> None:
    backend = ByHand(engine)
    order = GrammarOrder(engine, "order", StructuredOutput(json_object=True))
    await order.begin()
    engine.run_some(2)
    backend.finish(MemoryError())
    engine.run()
    with pytest.raises(InvalidRequestError, match="cannot be compiled: MemoryError"):
        await order.compiled()


@pytest.mark.parametrize("method", ["fill_bitmask", "accept_tokens"])
async def test_s4_an_automaton_that_raises_ends_its_own_session(
    engine: MaskedEngine, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other = a_session(engine, "a"), a_session(engine, "b")
    for session in (broken, other):
        await session.splice(1, 0, CONTEXT)
    engine.run()
    grammar = engine.scheduler.requests["a"].structured_output_request.grammar

    def fail(*_: Any) -> None:
        raise RuntimeError("desynchronised")

    monkeypatch.setattr(grammar, method, fail)
    for session in (broken, other):
        await session.splice(2, 30, [7], seal=True)
    engine.run()
    with pytest.raises(InternalError, match="grammar of the structured output failed"):
        await first_token(broken)
    assert (await first_token(other)).token_ids[0] in engine.masks["b"]


# -- decode ------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.check_empty()
    pair.decode.structured_output_manager.clear_backend()
    pair.close()


def answer(pair: Pair, constraint: dict[str, Any], begin: list[int]) -> EngineCoreOutput:
    """The end of an answer of one more token, which began elsewhere."""
    manager = pair.decode.structured_output_manager
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        structured_outputs=verified(manager, StructuredOutputsParams(**constraint)),
        extra_args={ANSWER_TOKENS_KEY: len(begin)},
    )
    params.update_from_generation_config({"eos_token_id": [EOS, IM_START]}, EOS)
    core = core_request("r", [*CONTEXT[:10], *begin], params)
    request = Request.from_engine_core_request(core, block_hasher(EngineSettings()))
    manager.grammar_init(request)
    pair.decode.add_request(request)
    for _ in range(2000):
        output = pair.decode.schedule()
        grammar = pair.decode.get_grammar_bitmask(output)
        result = pair.reader.execute(output)
        obey(result, grammar)
        told = pair.decode.update_from_output(output, result)
        for each in [each for client in told.values() for each in client.outputs]:
            if each.finish_reason is not None:
                return each
    raise AssertionError("it has not ended")


@pytest.mark.parametrize(("begin", "expected"), [("", "a"), ("a", "b"), ("ab", "c")])
def test_s5_decode_goes_on_behind_the_tokens_of_others(
    pair: Pair, begin: str, expected: str
) -> None:
    tokenizer = pair.decode.structured_output_manager.tokenizer
    (token,) = answer(pair, {"regex": "abc"}, tokenizer.encode(begin)).new_token_ids
    assert tokenizer.decode([token]) == expected


def test_s5_a_first_token_that_completes_the_grammar_is_followed_by_the_end(pair: Pair) -> None:
    tokenizer = pair.decode.structured_output_manager.tokenizer
    ended = answer(pair, {"choice": ["a"]}, tokenizer.encode("a"))
    assert ended.new_token_ids[0] in (EOS, IM_START)
    assert ended.finish_reason == FinishReason.STOP


def test_s5_an_answer_that_the_grammar_does_not_allow_ends_alone(pair: Pair) -> None:
    tokenizer = pair.decode.structured_output_manager.tokenizer
    ended = answer(pair, {"regex": "abc"}, tokenizer.encode("c"))
    assert (ended.finish_reason, ended.stop_reason) == (FinishReason.ERROR, FAILED_GRAMMAR)
    assert answer(pair, {"regex": "abc"}, []).new_token_ids


def test_s5_what_decode_cannot_compile_ends_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Request) -> None:
        raise RuntimeError("no such rule")

    monkeypatch.setattr(pair.decode.structured_output_manager, "_create_grammar", fail)
    ended = answer(pair, {"regex": "abc"}, [])
    assert ended.finish_reason == FinishReason.ERROR
    assert str(ended.stop_reason).startswith(BAD_GRAMMAR)
