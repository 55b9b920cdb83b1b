"""Sessions that succeed: what the client gets, and what the workers received."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import AsyncClient, SamplingParameters
from stream2llm.serving.sessions.token_bytes import token_list
from tests.polling import eventually
from tests.router_ring import Answered, Ring, a_ring, named, soon
from tests.tiny_model import BOS, EOS, make_tiny_model


def greedy(**fields: Any) -> pb.SamplingParameters:
    return pb.SamplingParameters(temperature=0, **fields)


async def test_a_complete_prompt_is_answered(ring: Ring) -> None:
    call = ring.stub.Generate(pb.GenerateRequest(text="hello", sampling=greedy(max_tokens=5)))
    answered = Answered.of([message async for message in call])
    expected = ring.brain.answer(ring.encode("hello"), 5)
    assert answered.token_ids == expected
    assert answered.text == ring.decode_text(expected)
    assert answered.finished.reason == pb.FINISH_REASON_LENGTH
    # Everything at once: nothing is computed before the seal.
    assert len(ring.record.splices) == 1


async def test_appends_and_updates_end_in_the_same_prompt_as_one_shot(ring: Ring) -> None:
    session = await ring.opened(prefix="the ", suffix="?", sampling=greedy(max_tokens=4))
    await session.append(("a", "quick "), ("b", "brown "))
    await ring.told(2)
    await session.update(named("b"), ("c", "fox "), named("b"))
    await session.append("", "dog")
    answered = await session.finish()
    texts = ["the ", "brown ", "fox ", "brown ", "", "dog", "?"]
    prompt = [token_id for text in texts for token_id in ring.encode(text)]
    assert ring.record.sequence == prompt
    assert ring.decode.prompts[0] == [*prompt, answered.token_ids[0]]
    assert answered.token_ids == ring.brain.answer(prompt, 4)
    assert answered.finished.usage.prompt_tokens == len(prompt)
    assert answered.finished.usage.completion_tokens == 4
    assert answered.finished.usage.invalidated_tokens == ring.record.invalidated > 0


async def test_the_first_token_arrives_before_decode_has_anything(ring: Ring) -> None:
    ring.decode.may_accept.clear()
    session = await ring.asked(prefix="hello", sampling=greedy(max_tokens=3))
    first = await session.next("delta")
    assert list(first.token_ids) == ring.brain.answer(ring.encode("hello"), 1)
    await soon(ring.decode.called.wait())
    assert not ring.record.ended.is_set()  # prefill stays until decode has the KV
    ring.decode.may_accept.set()
    await session.answer()
    await soon(ring.record.half_closed.wait())
    assert not ring.decode.released


async def test_decode_counts_the_first_token_and_never_sees_stop_strings(ring: Ring) -> None:
    sampling = greedy(max_tokens=7, stop_strings=["never"], stop_token_ids=[5], seed=1)
    session = await ring.opened(prefix="hello", sampling=sampling)
    await session.finish()
    sent = ring.decode.requests[0].sampling
    assert (sent.max_tokens, sent.seed, list(sent.stop_token_ids)) == (7, 1, [5])
    assert not sent.stop_strings
    assert not ring.record.open.sampling.stop_strings
    assert ring.decode.requests[0].handover.num_blocks == 3


async def test_workers_get_what_is_about_tokens_and_bad_words_as_tokens(ring: Ring) -> None:
    words = [pb.Content(text="fox"), pb.Content(token_ids=pb.TokenIds(ids=[7, 8]))]
    sampling = greedy(
        max_tokens=7,
        min_tokens=3,
        min_p=0.5,
        logit_bias={7: 1.5},
        bad_words=words,
        include_stop_string=True,
        skip_special_tokens=False,
    )
    session = await ring.opened(prefix="hello", sampling=sampling)
    await session.finish()
    sequences = [ring.encode("fox"), ring.encode(" fox"), [7, 8]]
    for sent in (ring.record.open.sampling, ring.decode.requests[0].sampling):
        assert [list(word.token_ids.ids) for word in sent.bad_words] == sequences
        assert (sent.min_tokens, sent.min_p, dict(sent.logit_bias)) == (3, 0.5, {7: 1.5})
        assert (sent.include_stop_string, sent.skip_special_tokens) == (False, True)


async def test_min_tokens_beyond_the_models_limit_end_there(make_ring: Any) -> None:
    ring = await make_ring(max_model_len=20)
    answered = await ring.answer_to(prefix="hello", sampling=greedy(ignore_eos=True, min_tokens=30))
    sent = ring.decode.requests[0].sampling
    assert sent.min_tokens == sent.max_tokens == len(answered.token_ids)
    assert answered.finished.reason == pb.FINISH_REASON_LENGTH


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
@pytest.mark.parametrize("kind", ["text", "long text", "ids", "chat"])
async def test_a_complete_prompt_keeps_its_last_tokens(
    ring: Ring, kind: str, num_tokens: int
) -> None:
    text = "the quick brown fox " * (3000 if kind == "long text" else 1)
    sampling = greedy(max_tokens=2, truncate_prompt_tokens=num_tokens)
    whole = ring.encode(text)
    match kind:
        case "ids":
            request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=whole), sampling=sampling)
        case "chat":
            chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content=text)])
            request = pb.GenerateRequest(chat=chat, sampling=sampling)
            rendered = f"<|turn|>user\n{text.strip()}<|end|>\n<|turn|>assistant\n"
            whole = ring.encode_written(rendered)
        case _:
            request = pb.GenerateRequest(text=text, sampling=sampling)
    answered = Answered.of([message async for message in ring.stub.Generate(request)])
    assert ring.record.sequence == whole[-num_tokens:]
    assert answered.finished.usage.prompt_tokens == min(num_tokens, len(whole))


async def test_without_max_tokens_the_model_limit_holds(make_ring: Any) -> None:
    ring = await make_ring(max_model_len=20)
    answered = await ring.answer_to(prefix="hello", sampling=greedy(ignore_eos=True))
    assert len(ring.encode("hello")) + len(answered.token_ids) == 20
    assert answered.finished.reason == pb.FINISH_REASON_LENGTH


async def test_an_answer_is_no_longer_than_the_decode_workers_memory(make_ring: Any) -> None:
    ring = await make_ring(decode_blocks=2)  # of 16 tokens
    answered = await ring.answer_to(
        prefix="hello", sampling=greedy(ignore_eos=True, max_tokens=100)
    )
    assert len(ring.encode("hello")) + len(answered.token_ids) == 32
    assert answered.finished.reason == pb.FINISH_REASON_LENGTH


async def test_one_token_needs_no_decode_and_no_hand_over(ring: Ring) -> None:
    answered = await ring.answer_to(prefix="hello", sampling=greedy(max_tokens=1))
    assert answered.finished.reason == pb.FINISH_REASON_LENGTH
    assert not answered.finished.timings.HasField("first_to_second_token")
    assert ring.record.hand_over is False
    assert not ring.decode.requests
    assert not ring.decode.released


@pytest.mark.parametrize("stops", [{}, {"stop_token_ids": [70], "ignore_eos": True}])
async def test_a_stop_token_is_counted_but_not_shown(make_ring: Any, stops: Any) -> None:
    last = 70 if stops else EOS
    ring = await make_ring(script=[40, 41, last, 42])
    answered = await ring.answer_to(prefix="hello", sampling=greedy(**stops))
    assert answered.token_ids == [40, 41, last]
    assert answered.text == ring.decode_text([40, 41])
    assert answered.finished.reason == pb.FINISH_REASON_STOP_TOKEN
    assert answered.finished.stop_token_id == last
    assert answered.finished.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({}, "GH"),
        ({"include_stop_string": True}, "GH"),
        ({"skip_special_tokens": False}, "GH"),
        ({"include_stop_string": True, "skip_special_tokens": False}, "GH<|end|>"),
    ],
)
async def test_the_end_of_sequence_has_text_where_both_are_asked_for(
    make_ring: Any, flags: dict[str, bool], text: str
) -> None:
    ring = await make_ring()
    ring.brain.script = [*ring.encode("G"), *ring.encode("H"), EOS]
    assert (await ring.answer_to(prefix="hello", sampling=greedy(**flags))).text == text


async def test_a_stop_string_ends_the_answer_behind_min_tokens_only(make_ring: Any) -> None:
    ring = await make_ring()
    ring.brain.script = [ring.encode(c)[0] for c in "abababab"]
    for shown, text in ((False, "abab"), (True, "ababab")):
        sampling = greedy(stop_strings=["ab"], min_tokens=4, include_stop_string=shown)
        session = await ring.opened(prefix="hello", sampling=sampling)
        answered = await session.finish()
        assert (answered.text, len(answered.token_ids)) == (text, 6)
        assert answered.finished.stop_string == "ab"


async def test_a_first_token_that_ends_the_answer_needs_no_decode(make_ring: Any) -> None:
    ring = await make_ring(script=[EOS])
    answered = await ring.answer_to(prefix="hello")
    assert (answered.text, answered.token_ids) == ("", [EOS])
    assert answered.finished.reason == pb.FINISH_REASON_STOP_TOKEN
    assert not ring.decode.requests
    assert not ring.decode.released


async def test_a_stop_string_may_span_the_two_workers(make_ring: Any) -> None:
    ring = await make_ring()
    ring.brain.script = [ring.encode(c)[0] for c in "xabcy"]
    answered = await ring.answer_to(prefix="hello", sampling=greedy(stop_strings=["zz", "xab"]))
    assert answered.text == ""
    assert answered.token_ids == ring.brain.script[:3]
    assert answered.finished.reason == pb.FINISH_REASON_STOP_STRING
    assert answered.finished.stop_string == "xab"
    await ring.nothing_is_open()
    assert not ring.decode.released  # decode had read it


async def test_a_stop_string_in_the_first_token_releases_the_hand_over(make_ring: Any) -> None:
    ring = await make_ring()
    ring.brain.script = [ring.encode("the")[0], 50, 51]
    token_text = ring.decode_text(ring.brain.script[:1])
    answered = await ring.answer_to(
        prefix="hello", session_id="mine", sampling=greedy(stop_strings=[token_text])
    )
    assert answered.text == ""
    assert answered.finished.stop_string == token_text
    await soon(ring.decode.release_called.wait())
    assert ring.decode.released[0].handover.num_blocks == 3
    assert ring.decode.released[0].session_id == "mine"
    assert not ring.decode.requests


async def test_a_character_may_span_the_two_workers(make_ring: Any) -> None:
    ring = await make_ring()
    euro = ring.encode("€")
    assert len(euro) == 3
    ring.brain.script = [*euro, euro[0], EOS]
    answered = await ring.answer_to(prefix="hello")
    assert answered.text == "€\ufffd"
    shown = [delta.text for delta in answered.deltas if delta.text]
    assert shown[0].startswith("€")  # and no piece of it before, however tokens travelled


async def test_logprobs_come_with_the_tokens_text(ring: Ring) -> None:
    ring.brain.script = [*ring.encode("€"), *ring.encode("x"), EOS]
    session = await ring.opened(prefix="hello", sampling=greedy(logprobs=0))
    answered = await session.finish()
    sampled = [item.sampled for delta in answered.deltas for item in delta.logprobs]
    assert [item.token_id for item in sampled] == answered.token_ids
    assert [item.text for item in sampled] == ["\ufffd", "\ufffd", "\ufffd", "x", "<|end|>"]
    assert b"".join(item.token_bytes for item in sampled) == "€x<|end|>".encode()


async def test_several_tokens_in_a_step_end_where_one_at_a_time_would(make_ring: Any) -> None:
    ring = await make_ring()
    ring.brain.script = [ring.encode(c)[0] for c in "qrstuvw"]
    ring.decode.tokens_per_step = 3
    answered = await ring.answer_to(prefix="hello", sampling=greedy(stop_strings=["s"]))
    assert answered.text == "qr"
    assert answered.token_ids == ring.brain.script[:3]


async def test_chat_messages_become_prefix_and_suffix(ring: Ring) -> None:
    session = ring.converse()
    messages = [
        pb.ChatMessage(role="system", content="be nice"),
        pb.ChatMessage(role="user", content="Docs: {{context}} Question?"),
    ]
    chat = pb.ChatTemplate(messages=messages)
    await session.send(open=pb.OpenSession(chat=chat, sampling=greedy(max_tokens=2)))
    await session.append("fox")
    await session.finish()
    left = "<|turn|>system\nbe nice<|end|>\n<|turn|>user\nDocs: "
    right = " Question?<|end|>\n<|turn|>assistant\n"
    expected = [*ring.encode_written(left), *ring.encode("fox"), *ring.encode_written(right)]
    assert ring.record.sequence == expected


async def test_a_complete_chat_prompt(ring: Ring) -> None:
    chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="hello")])
    call = ring.stub.Generate(pb.GenerateRequest(chat=chat, sampling=greedy(max_tokens=2)))
    Answered.of([message async for message in call])
    rendered = "<|turn|>user\nhello<|end|>\n<|turn|>assistant\n"
    assert ring.record.sequence == ring.encode_written(rendered)


async def test_tools_and_their_results_stand_in_the_conversation(ring: Ring) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"up": "<|end|>"}}}
    tool = {"type": "function", "function": {"name": "look"}}
    chat = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "{{context}}"},
    ]
    sampling = SamplingParameters(max_tokens=2, temperature=0)
    options: dict[str, Any] = {"tools": [tool], "chat_template_kwargs": {"enable_thinking": False}}
    async with (
        AsyncClient(ring.address.grpc_address) as client,
        client.session(chat=chat, sampling=sampling, **options) as session,
    ):
        await session.append("fox")
        await session.answer()
    written, data = ring.encode_written, ring.encode
    assert ring.record.sequence == [
        *written("<|turn|>"),
        *data(f"tools\n{json.dumps([tool])}"),
        *written("<|end|>\n<|turn|>user\nWhy?<|end|>\n<|turn|>"),
        *data(f"assistant\n{json.dumps([call])}"),
        *written("<|end|>\n<|turn|>tool\n"),
        *data("fox"),
        *written("<|end|>\n<|turn|>assistant\n<think></think>"),
    ]


async def test_token_ids_are_used_as_they_are(ring: Ring) -> None:
    session = ring.converse()
    ids = pb.TokenIds(ids=[9, 8, 511])
    plain = pb.PlainTemplate(prefix=pb.Content(token_ids=ids))
    await session.send(open=pb.OpenSession(plain=plain, sampling=greedy(max_tokens=2)))
    await session.append(pb.Document(token_ids=ids))
    await session.finish(suffix=pb.Content(token_ids=pb.TokenIds(ids=[7])))
    assert ring.record.sequence == [9, 8, 511, 9, 8, 511, 7]


async def test_the_suffix_of_the_seal_replaces_the_one_of_the_open(ring: Ring) -> None:
    session = await ring.opened(prefix="the", suffix="old", sampling=greedy(max_tokens=2))
    await session.finish(suffix=pb.Content(text="new"))
    assert ring.record.sequence == [*ring.encode("the"), *ring.encode("new")]


async def test_bos_is_put_before_a_text_prefix_only(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "bos", with_bos=True)
    async with a_ring(model) as ring:
        for prefix, expected in (
            (pb.Content(text="the"), [BOS, *ring.encode("the")]),
            (pb.Content(token_ids=pb.TokenIds(ids=[9])), [9]),
        ):
            session = ring.converse()
            plain = pb.PlainTemplate(prefix=prefix)
            await session.send(open=pb.OpenSession(plain=plain, sampling=greedy(max_tokens=2)))
            await session.append("fox")
            await session.finish()
            assert ring.record.sequence == [*expected, *ring.encode("fox")]


async def test_progress_tells_what_is_received_and_prefilled(ring: Ring) -> None:
    session = await ring.opened(prefix="hello ", session_id="mine")
    accepted = await session.next("accepted")
    assert (accepted.session_id, accepted.model) == ("mine", "tiny")
    assert accepted.credit_tokens == ring.router.spec.limits.credit_window_tokens
    await session.append("world, what is this?")
    received = len(ring.encode("hello ")) + len(ring.encode("world, what is this?"))
    while (progress := await session.next("progress")).prefilled_tokens < received - 1:
        pass
    assert (progress.last_sequence, progress.received_tokens) == (2, received)
    assert progress.computed_tokens == received - 1
    answered = await session.finish()
    assert answered.finished.usage.uncomputed_at_seal_tokens == 1
    timings = answered.finished.timings
    assert timings.total.ToNanoseconds() >= timings.ttft_from_open.ToNanoseconds()
    assert timings.ttft_from_open.ToNanoseconds() >= timings.ttft_from_seal.ToNanoseconds() > 0


async def test_an_event_that_changes_nothing_is_still_confirmed(ring: Ring) -> None:
    session = await ring.opened(prefix="hello")
    await session.append("")
    await session.update()
    while (await session.next("progress")).last_sequence < 3:
        pass
    await session.append(" fox")
    # What the router confirms, it has not yet sent on: prefill may know less than the client.
    await ring.told(2)
    assert [splice.revision for splice in ring.record.splices] == [1, 2]
    session.call.cancel()


async def test_the_suffix_reaches_prefill_at_the_seal_and_no_earlier(ring: Ring) -> None:
    session = await ring.opened(prefix="the", suffix=" question", sampling=greedy(max_tokens=2))
    await session.append("fox")
    await ring.told(2)
    await session.finish()
    *early, last = ring.record.splices
    sent_early = [token_id for splice in early for token_id in token_list(splice.token_ids, "")]
    assert sent_early == [*ring.encode("the"), *ring.encode("fox")]
    assert token_list(last.token_ids, "") == ring.encode(" question")


async def test_two_prefill_workers_share_the_sessions(make_ring: Any) -> None:
    ring = await make_ring(num_prefill=2)
    sessions = [ring.converse() for _ in range(4)]
    for session in sessions:
        await session.open(prefix="hello")
        await session.next("accepted")
    prefills = [worker.prefill for worker in ring.workers if worker.role == "prefill"]

    async def shares() -> list[int]:
        return [len(prefill.records) for prefill in prefills]

    await eventually(shares, lambda now: now == [2, 2])
    for session in sessions:
        session.call.cancel()


async def test_what_comes_together_reaches_prefill_as_one_change(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long moment, so that the test does not depend on how fast this machine is."""
    monkeypatch.setattr("router.session_input._LINGER_S", 5.0)
    session = await ring.opened(prefix="the", suffix=" question", sampling=greedy(max_tokens=2))
    await session.append("fox")
    await session.update(("a", "quick"), ("b", "brown"))
    await session.append("dog")
    answered = await session.finish()
    words = [*ring.encode("the"), *ring.encode("quick"), *ring.encode("brown")]
    prompt = [*words, *ring.encode("dog"), *ring.encode(" question")]
    opening, sealing = ring.record.splices
    assert ring.record.sequence == prompt
    assert (opening.revision, sealing.revision) == (1, 5)
    assert sealing.keep_tokens == len(ring.encode("the"))
    assert ring.record.invalidated == 0
    assert answered.token_ids == ring.brain.answer(prompt, 2)


async def test_a_client_that_sends_without_a_pause_is_prefilled_meanwhile(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.session_input._LINGER_S", 5.0)
    session = await ring.opened(prefix="the", sampling=greedy(max_tokens=2))
    for _ in range(10):
        await session.append("fox")
    await ring.told(9)
    assert [splice.revision for splice in ring.record.splices] == [1, 9]
    await session.finish()
    assert [splice.revision for splice in ring.record.splices] == [1, 9, 12]
    assert ring.record.sequence == [*ring.encode("the"), *(10 * ring.encode("fox"))]
