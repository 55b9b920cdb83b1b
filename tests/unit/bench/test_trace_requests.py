"""Importers of public recordings of requests, on made-up rows in the files' own syntax."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stream2llm.workload.replay.plan import Planner
from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.format import Document, Event, Item, Scale, Session, SharedDocument
from stream2llm.workload.traces.imports import BadRow
from stream2llm.workload.traces.mooncake_jsonl import mooncake_items
from stream2llm.workload.traces.read import TraceReader
from stream2llm.workload.traces.requests import Streaming, azure_sessions, burstgpt_sessions
from stream2llm.workload.traces.text import TextMaker
from tests.command_lines import check_failed, cli

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
# Windows' line ends, seven digits, no line end after the last row: as published.
AZURE_2023 = (
    f"{AZURE}\r\n2023-11-16 10:00:00.1234567,900,12\r\n2023-11-16 10:00:00.1234568,41,7\r\n"
    "2023-11-16 10:00:02.6234567,7,300"
)
AZURE_2024 = (
    f"{AZURE}\n2024-05-10 00:00:00.250000+00:00,900,12\n2024-05-10 00:00:01+00:00,41,7\n"
    "2024-05-10 02:00:03.500000+02:00,7,300\n"
)
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
BURSTGPT_1 = (
    f"{BURSTGPT}\n5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,41,0,41,Conversation log\n"
    "118,GPT-4,417,276,693,API log\n"
)
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5.25,s-1,3.5,ChatGPT,472,18,490,Conversation log\n7.75,,2,GPT-4,417.0,276.0,693,API log\n"
)


class Import:
    """What came of one, and what it reported."""

    def __init__(
        self, importer: Callable[..., Iterator[Item]], path: Path, *args: Any, **options: Any
    ) -> None:
        self.bad: list[BadRow] = []
        self.items = list(
            importer(path, *(args or (Scale(), Streaming())), self.bad.append, **options)
        )

    @property
    def sessions(self) -> list[Session]:
        return [item for item in self.items if isinstance(item, Session)]

    @property
    def sizes(self) -> list[tuple[float, int, int | None]]:
        """Arrival, prompt and answer of each."""
        shared = {i.document.id: i.document for i in self.items if isinstance(i, SharedDocument)}
        return [
            (
                each.arrival_s,
                sum(d.num_tokens for d in each.document_table(shared).values()),
                each.output_tokens,
            )
            for each in self.sessions
        ]


def a_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recording"
    path.write_bytes(text.encode())
    return path


def lines(*requests: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(request)}\n" for request in requests)


def a_request(timestamp: Any, hash_ids: Any, input_length: int, **more: Any) -> dict[str, Any]:
    values = {"timestamp": timestamp, "input_length": input_length, "output_length": 9}
    return {**values, "hash_ids": hash_ids, **more}


# -- Azure ------------------------------------------------------------------------------


def test_azure_2023_keeps_the_seventh_digit(tmp_path: Path) -> None:
    found = Import(azure_sessions, a_file(tmp_path, AZURE_2023))
    assert found.bad == []
    assert found.sizes == [(0.0, 900, 12), (1e-7, 41, 7), (2.5, 7, 300)]


def test_azure_2024_reckons_with_zones_and_whole_seconds(tmp_path: Path) -> None:
    found = Import(azure_sessions, a_file(tmp_path, AZURE_2024))
    assert found.bad == []
    assert found.sizes == [(0.0, 900, 12), (0.75, 41, 7), (3.25, 7, 300)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
def test_marks_and_line_ends_change_nothing(mark: str, end: str, tmp_path: Path) -> None:
    recordings = {
        azure_sessions: AZURE_2024,
        burstgpt_sessions: BURSTGPT_1,
        mooncake_items: lines(a_request(0, [1], 12), a_request(1500, [2], 30)),
    }
    for importer, text in recordings.items():
        plain = Import(importer, a_file(tmp_path, text))
        other = Import(importer, a_file(tmp_path, mark + text.replace("\n", end)))
        assert other.items == plain.items
        assert [bad[1:] for bad in other.bad] == [bad[1:] for bad in plain.bad]
        assert len(plain.items) > 1


def test_a_request_is_a_session_that_appends_its_prompt_and_seals(tmp_path: Path) -> None:
    first = Import(azure_sessions, a_file(tmp_path, AZURE_2023)).sessions[0]
    assert first.documents == (Document("d0", tokens=900),)
    assert first.events == (Event(0.0, "append", ("d0",)), Event(0.0, "seal"))
    assert (first.id, first.prefix.num_tokens, first.suffix.num_tokens) == ("r0", 0, 0)


def test_a_prompt_may_come_in_parts(tmp_path: Path) -> None:
    found = Import(azure_sessions, a_file(tmp_path, AZURE_2023), Scale(), Streaming(10, 0.5))
    assert [len(each.documents) for each in found.sessions] == [10, 10, 7]
    assert [size for _, size, _ in found.sizes] == [900, 41, 7]
    last = found.sessions[-1]
    appends = [Event(number / 2, "append", (f"d{number}",)) for number in range(7)]
    assert last.events == (*appends, Event(3.0, "seal"))


def test_scales_change_prompts_and_arrivals_and_not_answers(tmp_path: Path) -> None:
    found = Import(
        azure_sessions, a_file(tmp_path, AZURE_2024), Scale(tokens=0.1, load=0.5), Streaming()
    )
    assert found.sizes == [(0.0, 90, 12), (1.5, 4, 7), (6.5, 1, 300)]


# -- BurstGPT ---------------------------------------------------------------------------


def test_burstgpt_leaves_out_what_was_not_answered(tmp_path: Path) -> None:
    path = a_file(tmp_path, BURSTGPT_1)
    found = Import(burstgpt_sessions, path)
    assert found.sizes == [(0.0, 472, 18), (113.0, 417, 276)]
    assert [session.id for session in found.sessions] == ["r0", "r1"]
    assert list(map(str, found.bad)) == [
        f"{path}, line 3: Response tokens is '0'; must be 1 to 100,000,000"
    ]


def test_burstgpt_may_have_more_columns_and_fractions(tmp_path: Path) -> None:
    found = Import(burstgpt_sessions, a_file(tmp_path, BURSTGPT_3))
    assert found.bad == []
    assert found.sizes == [(0.0, 472, 18), (2.5, 417, 276)]


# -- Mooncake ---------------------------------------------------------------------------


def test_mooncake_s_equal_blocks_are_one_document(tmp_path: Path) -> None:
    text = lines(
        a_request(27, [4, 5, 6], 1100), a_request(3027.5, [4, 5, 9], 1536, output_length=1)
    )
    found = Import(mooncake_items, a_file(tmp_path, text))
    assert found.bad == []
    assert found.sizes == [(0.0, 1100, 9), (3.0005, 1536, 1)]
    shared = [item.document for item in found.items if isinstance(item, SharedDocument)]
    sizes = {document.id: document.tokens for document in shared}
    assert sizes == {"h4": 512, "h5": 512, "h6/76": 76, "h9": 512}
    assert [each.events[0].documents for each in found.sessions] == [
        ("h4", "h5", "h6/76"),
        ("h4", "h5", "h9"),
    ]


def test_mooncake_s_common_beginning_is_common_text_at_replay(tmp_path: Path) -> None:
    text = lines(a_request(0, [4, 5], 600), a_request(0, [4, 6], 600))
    found = Import(mooncake_items, a_file(tmp_path, text))
    shared = {i.document.id: i.document for i in found.items if isinstance(i, SharedDocument)}
    one, other = Planner(TextMaker()).plan(found.sessions, shared)
    texts = [[document.content for document in each.steps[0].documents] for each in (one, other)]
    assert texts[0][0] == texts[1][0]
    assert texts[0][1] != texts[1][1]


def test_mooncake_s_blocks_are_spread_over_the_parts(tmp_path: Path) -> None:
    path = a_file(tmp_path, lines(a_request(0, [1, 2, 3, 4, 5], 2200)))
    (session,) = Import(mooncake_items, path, Scale(tokens=0.25), Streaming(2, 1.0)).sessions
    first, second, seal = session.events
    assert [len(each.documents) for each in (first, second)] in ([2, 3], [3, 2])
    assert first.documents + second.documents == ("h1", "h2", "h3", "h4", "h5/152")
    assert (second.at_s, seal.at_s) == (1.0, 1.0)


def test_mooncake_without_hashes_shares_nothing(tmp_path: Path) -> None:
    request = a_request(0, [], 700)
    without = {key: value for key, value in request.items() if key != "hash_ids"}
    found = Import(mooncake_items, a_file(tmp_path, lines(request, without)))
    assert [each.documents for each in found.sessions] == [(Document("d0", tokens=700),)] * 2


def test_another_block_size_is_told(tmp_path: Path) -> None:
    path = a_file(tmp_path, lines(a_request(0, [1, 2], 20)))
    assert "has 2 hash_ids for 20 tokens; 1 blocks of 512 hold them" in str(
        Import(mooncake_items, path).bad[0]
    )
    assert Import(partial(mooncake_items, block_tokens=16), path).sizes == [(0.0, 20, 9)]


# -- rows that cannot be used -------------------------------------------------------------


@pytest.mark.parametrize(
    ("importer", "good", "bad", "message"),
    [
        (azure_sessions, "2024-05-10 00:00:00,1,1", "yesterday,1,1", "TIMESTAMP is no time: 'yesterday'"),
        (azure_sessions, "2024-05-10 00:00:00,1,1", "2024-05-10 00:00:00,x,1", "ContextTokens is no whole number: 'x'"),
        (azure_sessions, "2024-05-10 00:00:00,1,1", "2024-05-10 00:00:00,1", "GeneratedTokens is no whole number: ''"),
        (azure_sessions, "2024-05-10 00:00:00,1,1", "2024-05-10 00:00:00,0,1", "ContextTokens is '0'; must be 1 to"),
        (azure_sessions, "2024-05-10 00:00:00,1,1", "2024-05-10 00:00:00,1e300,1", "ContextTokens is '1e300'; must be"),
        (burstgpt_sessions, "1,M,1,1,2,L", "soon,M,1,1,2,L", "Timestamp is no number of seconds: 'soon'"),
        (burstgpt_sessions, "1,M,1,1,2,L", "nan,M,1,1,2,L", "'nan' is no time"),
        (burstgpt_sessions, "1,M,1,1,2,L", "1,M,1.5,1,2,L", "Request tokens is no whole number: '1.5'"),
    ],
)  # fmt: skip
def test_a_bad_row_is_left_out_and_named(
    importer: Any, good: str, bad: str, message: str, tmp_path: Path
) -> None:
    header = AZURE if importer is azure_sessions else BURSTGPT
    path = a_file(tmp_path, f"{header}\n{good}\n\n{bad}\n{good}\n")
    found = Import(importer, path)
    assert len(found.sessions) == 2
    (problem,) = found.bad
    assert str(problem).startswith(f"{path}, line 4: {message}")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is no JSON object"),
        ('{"timestamp": 1, "output_length": 1}', "has no input_length"),
        (json.dumps(a_request("0", [1], 5)), "timestamp is no number of milliseconds"),
        (json.dumps(a_request(float("nan"), [1], 5)), "timestamp is no number of"),
        (json.dumps(a_request(0, [1], 5, output_length=True)), "output_length is no whole number"),
        (json.dumps(a_request(0, "1", 5)), "hash_ids is no list of whole numbers"),
        (json.dumps(a_request(0, [1.5], 5)), "hash_ids is no list of whole numbers"),
        (json.dumps(a_request(0, [1, 1], 600)), "hash_ids has one block twice"),
    ],
)
def test_a_bad_line_is_left_out_and_named(bad: str, message: str, tmp_path: Path) -> None:
    good = lines(a_request(0, [1], 5))
    path = a_file(tmp_path, f"{good}\n{bad}\n{good}")
    found = Import(mooncake_items, path)
    assert len(found.sessions) == 2
    (problem,) = found.bad
    assert str(problem).startswith(f"{path}, line 3: {message}")


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        (azure_sessions, f"{AZURE}\n2024-05-10 00:00:02,1,1\n2024-05-10 00:00:00,1,1\n"),
        (burstgpt_sessions, f"{BURSTGPT}\n3,M,1,1,2,L\n1,M,1,1,2,L\n"),
        (mooncake_items, "\n" + lines(a_request(2000, [1], 5), a_request(0, [2], 5))),
    ],
)
def test_a_recording_whose_time_goes_back_is_refused(
    importer: Any, text: str, tmp_path: Path
) -> None:
    path = a_file(tmp_path, text)
    with pytest.raises(TraceError, match=f"{path}, line 3: is 2 s before line 2; .* sort the file"):
        Import(importer, path)


def test_another_file_is_told_by_its_columns(tmp_path: Path) -> None:
    path = a_file(tmp_path, BURSTGPT_1)
    message = f"{path}, line 1: has no column TIMESTAMP, ContextTokens, GeneratedTokens .it has: Timestamp, Model"
    with pytest.raises(TraceError, match=message):
        Import(azure_sessions, path)


def test_a_recording_of_any_length_takes_little_memory(tmp_path: Path) -> None:
    rows = "".join(f"{number},M,100,10,110,L\n" for number in range(4000))
    path = a_file(tmp_path, f"{BURSTGPT}\n{rows}")
    sessions = burstgpt_sessions(path, Scale(), Streaming(), lambda problem: None)
    next(sessions)
    tracemalloc.start()
    assert sum(1 for _ in sessions) == 3999
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Its sessions together take some megabytes.
    assert peak_bytes < 500_000


# -- the command ------------------------------------------------------------------------


run = partial(cli, "trace", "import")


def test_the_command_writes_a_trace_that_can_be_read(tmp_path: Path) -> None:
    path, output = a_file(tmp_path, BURSTGPT_1), tmp_path / "t.jsonl"
    result = run("burstgpt", path, "--documents", 2, "--gap", 1, "-o", output)
    check_failed(result, 0, "line 3: Response tokens is '0'")
    assert "2 sessions, 4 appends and updates, 889 tokens in sealed prompts" in result.stdout
    with TraceReader(output) as reader:
        assert [session.output_tokens for session in reader] == [18, 276]
        assert reader.header.provenance.startswith("stream2llm trace import burstgpt: ")
        assert (reader.header.shape, reader.header.seed) == (None, None)


def test_the_command_takes_the_first_sessions_only(tmp_path: Path) -> None:
    text = lines(*(a_request(number, [number], 5) for number in range(4)))
    path, output = a_file(tmp_path, text), tmp_path / "t.jsonl"
    assert run("mooncake", path, "--max-sessions", 2, "-o", output).exit_code == 0
    with TraceReader(output) as reader:
        assert [session.arrival_s for session in reader] == [0.0, 0.001]
        assert set(reader.shared) == {"h0/5", "h1/5"}


@pytest.mark.parametrize("name", ["azure", "burstgpt", "mooncake"])
def test_the_command_refuses_what_it_cannot_read_and_writes_nothing(
    name: str, tmp_path: Path
) -> None:
    for text, message in (
        (None, "cannot be read: No such file"),
        ("{}\n", "has no"),
        ("", "nothing"),
    ):
        path = tmp_path / "missing" if text is None else a_file(tmp_path, text)
        result = run(name, path, "-o", tmp_path / "t.jsonl")
        check_failed(result, 3, message)
        assert not (tmp_path / "t.jsonl").exists()
