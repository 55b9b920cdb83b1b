"""The command line against a scripted server: in process, and as a process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from typer.testing import Result

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.cli import exits, sources
from stream2llm.cli.output import make_sink
from stream2llm.client import Finished, FinishReason, TokenDelta, Usage
from stream2llm.workload.traces.write import write_trace
from tests import fake_router
from tests.command_lines import check_failed, cli
from tests.fake_router import Conversation
from tests.traces import a_header, a_session

ADDRESS = "STREAM2LLM_ADDRESS"


def invoke(*args: str, stdin: str = "", address: str = "127.0.0.1:1") -> Result:
    return cli(*args, input=stdin, env={ADDRESS: address})


def generate(router, *args: str, stdin: str = "") -> Result:
    return invoke("generate", "-q", "Why?", *args, stdin=stdin, address=router.fake.address)


def sent_texts(router) -> list[str]:
    return [
        document.text
        for request in router.fake.received
        if request.WhichOneof("event") == "append"
        for document in request.append.documents
    ]


def run(router, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream2llm.cli.main", *args],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, ADDRESS: router.fake.address},
    )


# -- generate --------------------------------------------------------------------


def test_files_are_streamed_and_the_answer_is_printed(threaded_router, tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("second")
    result = generate(threaded_router, str(tmp_path / "b.txt"), str(tmp_path / "a.txt"))
    assert result.exit_code == 0, result.output
    assert result.stdout == "one two three\n"
    assert sent_texts(threaded_router) == ["second", "first"]
    opened = threaded_router.fake.received[0].open
    assert opened.chat.messages[1].content == "{{context}}\n\nWhy?"
    assert opened.sampling.temperature == 0
    assert "tokens received" in result.stderr
    assert "3 tokens (length) from 12 of prompt" in result.stderr


def test_quiet_prints_only_the_answer(threaded_router):
    result = generate(threaded_router, "-", "--quiet", stdin="text")
    assert (result.stdout, result.stderr) == ("one two three\n", "")


def test_json_lines(threaded_router):
    result = generate(threaded_router, "-", "--json", stdin="text")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "progress"]
    assert kinds == ["accepted", "delta", "delta", "delta", "finished"]
    assert events[-1]["reason"] == "length"
    assert events[-1]["usage"]["prompt_tokens"] == 12
    assert events[-1]["timings"]["ttft_from_seal_s"] == 0.25
    # The fake router says nothing of a second token.
    assert events[-1]["timings"]["first_to_second_token_s"] is None


def test_once_sends_one_event(threaded_router):
    assert generate(threaded_router, "-", "--mode", "once", stdin="a\n---\nb\n").exit_code == 0
    kinds = [request.WhichOneof("event") for request in threaded_router.fake.received]
    assert kinds == ["open", "append", "seal"]
    assert sent_texts(threaded_router) == ["a\n", "b\n"]


def test_what_is_too_long_may_be_left_out(threaded_router):
    result = generate(threaded_router, "-", "--oversized", "refuse", stdin="a")
    assert result.exit_code == 0, result.output
    opened = threaded_router.fake.received[0].open
    assert opened.oversized_documents == pb.OVERSIZED_DOCUMENTS_REFUSE


def test_a_deadline_is_sent_with_the_question(threaded_router):
    assert generate(threaded_router, "-", "--ttft-slo-ms", "750", stdin="a").exit_code == 0
    assert threaded_router.fake.received[0].open.ttft_slo_ms == 750
    assert generate(threaded_router, "-", "--ttft-slo-ms", "0", stdin="a").exit_code == 2


def test_what_goes_with_a_conversation_is_sent(threaded_router, tmp_path):
    tool = {"type": "function", "function": {"name": "look_up"}}
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    options = ("--tools", str(tmp_path / "tools.json"), "--chat-template-kwargs", '{"a": 1}')
    result = generate(threaded_router, "-", *options, stdin="a")
    assert result.exit_code == 0, result.output
    opened = threaded_router.fake.received[0].open.chat
    assert [json.loads(text) for text in opened.tools] == [tool]
    assert opened.chat_template_kwargs == '{"a": 1}'
    assert generate(threaded_router, "-", *options, "--prefix", "P", stdin="a").exit_code == 3


@pytest.mark.parametrize("content", ["{", "{}", None], ids=str)
def test_a_file_that_has_no_tools_is_bad_usage(threaded_router, tmp_path, content):
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    result = generate(threaded_router, "-", "--tools", str(path), stdin="a")
    check_failed(result, 2, "tools.json")


def test_updates_put_the_newest_document_in_front(threaded_router):
    options = ("--mode", "update", "--ordering", "stable")
    result = generate(threaded_router, "-", *options, stdin="a\0b\0c")
    assert result.exit_code == 0, result.output
    received = threaded_router.fake.received
    assert received[0].open.ordering == pb.DOCUMENT_ORDERING_STABLE
    updates = [each.update.documents for each in received if each.HasField("update")]
    assert [[each.text for each in update] for update in updates] == [
        ["a"],
        ["b", ""],
        ["c", "", ""],
    ]
    assert [each.id for each in updates[2]][1:] == [each.id for each in updates[1]]


def test_a_prefix_makes_a_plain_prompt(threaded_router):
    assert generate(threaded_router, "-", "--prefix", "P", stdin="a").exit_code == 0
    opened = threaded_router.fake.received[0].open
    assert opened.plain.prefix.text == "P"
    assert opened.plain.suffix.text == "\n\nWhy?\n"


def test_a_question_that_contains_the_slot_gets_another_slot(threaded_router):
    generate(threaded_router, "-", "-q", "What is {{context}}?", stdin="a")
    template = threaded_router.fake.received[0].open.chat
    assert template.messages[1].content.count(template.context_slot) == 1


def test_a_model_without_chat_template_gets_a_plain_prompt(threaded_router):
    threaded_router.fake.has_chat_template = False
    assert generate(threaded_router, "-", stdin="a").exit_code == 0
    assert threaded_router.fake.received[0].open.WhichOneof("template") == "plain"
    assert generate(threaded_router, "-", "--system", "S", stdin="a").exit_code == 3


def test_sampling_options_arrive(threaded_router):
    options = ["--max-tokens", "5", "--temperature", "0.5", "--stop", "x", "--stop", "y"]
    options += ["--min-p", "0.25", "--min-tokens", "2", "--bad-word", "z"]
    generate(threaded_router, "-", *options, "--seed", "7", stdin="a")
    sampling = threaded_router.fake.received[0].open.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (5, 0.5, 7)
    assert list(sampling.stop_strings) == ["x", "y"]
    assert (sampling.min_p, sampling.min_tokens) == (0.25, 2)
    assert [word.text for word in sampling.bad_words] == ["z"]


def test_what_the_answer_must_look_like_arrives(threaded_router, tmp_path: Path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}', encoding="utf-8")
    options = {
        "json_schema": ["--json-schema", str(schema)],
        "regex": ["--regex", "[0-9]+"],
        "choices": ["--choice", "yes", "--choice", "no"],
    }
    for given in options.values():
        generate(threaded_router, "-", *given, stdin="a")
    opened = [each.received[0].open for each in threaded_router.fake.conversations]
    assert [each.sampling.structured_output for each in opened] == [
        pb.StructuredOutput(json_schema='{"type": "integer"}'),
        pb.StructuredOutput(regex="[0-9]+"),
        pb.StructuredOutput(choices=["yes", "no"]),
    ]


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "-"],
        ["generate", "-q", "Why?", "--regex", "a", "--choice", "b", "-"],
        ["generate", "-q", "Why?", "--json-schema", "/no/such/file", "-"],
        ["generate", "-q", "Why?"],
        ["generate", "-q", "Why?", "/no/such/file"],
        ["generate", "-q", "Why?", "--mode", "sometimes", "-"],
        ["generate", "-q", "Why?", "--mode", "update", "--ordering", "best", "-"],
        ["generate", "-q", "Why?", "--ordering", "stable", "-"],
        ["generate", "-q", "Why?", "--prefix", "p", "--system", "s", "-"],
        ["no-such-command"],
    ],
)
def test_bad_usage_exits_2(args: Sequence[str]):
    assert invoke(*args).exit_code == 2


@pytest.mark.parametrize("options", [[], ["--prefix", "P"]], ids=["chat", "prefix"])
def test_nobody_there_exits_4_and_says_what_to_look_at(options: list[str]):
    result = invoke("generate", "-q", "Why?", *options, "-", stdin="a")
    assert result.exit_code == 4
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: no answer from a router at 127.0.0.1:1: ")
    assert "is this the address it printed? [NO_ANSWER]" in line


def test_a_replay_to_nobody_says_what_to_look_at(tmp_path: Path):
    trace = tmp_path / "t.jsonl"
    write_trace(trace, a_header(), [a_session()])
    result = invoke("bench", "replay", "-t", str(trace), "-o", str(tmp_path / "out"))
    check_failed(result, 4, "no answer from a router at 127.0.0.1:1: ")
    assert not (tmp_path / "out").exists()


def test_a_replay_of_no_trace_leaves_no_folder(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text("no trace")
    result = invoke("bench", "replay", "-t", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_a_replay_that_could_not_be_written_opens_no_session(threaded_router, tmp_path: Path):
    trace, taken = tmp_path / "t.jsonl", tmp_path / "taken"
    write_trace(trace, a_header(), [a_session()])
    taken.write_text("a file")
    address = threaded_router.fake.address
    result = invoke("bench", "replay", "-t", str(trace), "-o", str(taken), address=address)
    check_failed(result, 3, "taken: cannot be written")
    assert threaded_router.fake.conversations == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 3),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 3),
        (grpc.StatusCode.INTERNAL, 3),
        (grpc.StatusCode.UNAVAILABLE, 4),
    ],
)
def test_a_refusal_exits_3_or_4(threaded_router, code, expected):
    async def refuse(conversation: Conversation) -> None:
        await conversation.next()
        await conversation.fail(code, "no", fake_router.error_info("A_REASON"))

    threaded_router.fake.script = refuse
    result = generate(threaded_router, "-", "--json", stdin="a")
    check_failed(result, expected, "error: no [A_REASON]")
    assert json.loads(result.stdout.splitlines()[-1])["reason"] == "A_REASON"


def test_a_folder_gives_its_text_files_sorted(threaded_router, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.md").write_text("three")
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "zeros.bin").write_bytes(b"\0\0")
    generate(threaded_router, str(tmp_path))
    assert sent_texts(threaded_router) == ["one", "two", "three"]


@pytest.mark.parametrize("num_bytes", [2, 100_000])
def test_a_binary_file_that_is_named_exits_2(num_bytes: int, threaded_router, tmp_path):
    (tmp_path / "a.txt").write_text("a text before it")
    (tmp_path / "zeros.bin").write_bytes(b"\0" * num_bytes)
    result = generate(threaded_router, str(tmp_path / "a.txt"), str(tmp_path / "zeros.bin"))
    assert threaded_router.fake.conversations == []
    check_failed(result, 2, "NUL")


def test_a_file_that_is_no_text_further_on_exits_2_and_cancels(threaded_router, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 100_000 + b"\xff")
    result = generate(threaded_router, str(tmp_path / "a.txt"))
    check_failed(result, 2, "not UTF-8 text")
    assert threaded_router.next_end() == "cancelled"


def test_standard_input_is_cut_at_separators():
    split = sources.split_documents
    assert list(split(["one\n", "more\n", "---\n", "two\n"])) == ["one\nmore\n", "two\n"]
    assert list(split(["one\0two\n", "more\0"])) == ["one", "two\nmore"]
    assert list(split(["---\n", "\n", "---\n"])) == []
    assert list(split(["all of --- it\n"])) == ["all of --- it\n"]


def test_as_a_process_with_documents_on_standard_input(threaded_router):
    result = run(threaded_router, "generate", "-q", "Why?", "-", stdin="a\0b\0")
    assert (result.returncode, result.stdout) == (0, "one two three\n")
    assert sent_texts(threaded_router) == ["a", "b"]


def test_documents_leave_as_they_arrive_and_ctrl_c_cancels(threaded_router):
    got_two = threading.Event()

    async def watch(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()
        await conversation.next()
        got_two.set()
        await fake_router.forever()

    threaded_router.fake.script = watch
    process = subprocess.Popen(
        [sys.executable, "-m", "stream2llm.cli.main", "generate", "-q", "Why?", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, ADDRESS: threaded_router.fake.address},
    )
    try:
        process.stdin.write("a\n---\nb\n---\nc")  # and standard input stays open
        process.stdin.flush()
        assert got_two.wait(30)
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "cancelled" in stderr
    assert threaded_router.next_end() == "cancelled"


# -- the rest --------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["generate"],
        ["version"],
        ["model"],
        ["model", "fetch"],
        ["model", "list"],
        ["policy"],
        ["bench", "replay"],
        ["bench", "report"],
    ],
)
def test_every_command_has_help_with_an_example(args: list[str]):
    result = invoke(*args, "--help")
    assert result.exit_code == 0
    assert "Example: stream2llm" in result.stdout or args in ([], ["model"])


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from stream2llm.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'ray', 'vllm', 'torch', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_version_names_what_is_installed(asked: str):
    assert invoke(asked).stdout.startswith("stream2llm 0.")


def test_models_are_listed_and_fetched(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("STREAM2LLM_CACHE", str(tmp_path))
    listed = invoke("model", "list")
    assert "smollm2-135m-instruct" in listed.stdout
    assert "not fetched" in listed.stdout
    unknown = invoke("model", "fetch", "gpt-9")
    check_failed(unknown, 3, "unknown model 'gpt-9'")


# -- a terminal ------------------------------------------------------------------

DRIVES_A_TERMINAL = "safe\n\tkept \x1b]0;title\x07\x1b[2J\r\x9b1A\u202e"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_an_answer_cannot_drive_a_terminal_and_reaches_a_file_as_it_is(
    as_json: bool, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    sink = make_sink(as_json=as_json, quiet=True)
    sink.event(TokenDelta(text=DRIVES_A_TERMINAL, token_ids=(1,), logprobs=()))
    written = stream.getvalue()
    stream.truncate(0)
    stream.seek(0)
    if stream.isatty():
        assert all(char in "\n\t" or char.isprintable() for char in written)
    else:
        assert DRIVES_A_TERMINAL in (json.loads(written)["text"] if as_json else written)
    if as_json:
        assert json.loads(written)["text"] == DRIVES_A_TERMINAL


def test_several_answers_are_asked_for(threaded_router) -> None:
    async def two(conversation: Conversation) -> None:
        await conversation.accept()
        while (await conversation.next()) is not None:
            pass
        for index, text in ((1, "uno"), (0, "one")):
            await conversation.send(delta=pb.TokenDelta(text=text, index=index))
            finished = fake_router.finished(1)
            finished.index = index
            await conversation.send(finished=finished)

    threaded_router.fake.script = two
    result = generate(threaded_router, "-n", "2", "--seed", "7", "-", stdin="text")
    assert result.exit_code == 0
    assert result.stdout == "one\n\n--- answer 2 ---\nuno\n"
    sampling = threaded_router.fake.received[0].open.sampling
    assert (sampling.n, sampling.seed) == (2, 7)


def test_several_answers_are_printed_one_below_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = make_sink(as_json=False, quiet=False)
    sink.event(TokenDelta("one"))
    sink.event(TokenDelta("uno", index=2))
    sink.event(Finished(FinishReason.LENGTH, index=2))
    sink.event(TokenDelta("eins", index=1))
    sink.event(TokenDelta(" two"))
    assert capsys.readouterr().out == "one two"
    sink.event(Finished(FinishReason.LENGTH))
    sink.event(Finished(FinishReason.LENGTH, usage=Usage(0, 9), index=1))
    sink.close()
    said = capsys.readouterr()
    assert said.out == "\n\n--- answer 2 ---\neins\n\n--- answer 3 ---\nuno\n"
    assert said.err.splitlines()[-2] == "9 tokens (length)"


def test_a_servers_error_cannot_drive_a_terminal() -> None:
    shown = exits.describe(InvalidRequestError("no\x1b[2K", reason="R", field="f\r"))
    assert shown == "no\\u001b[2K [R] (field f\\r)"
