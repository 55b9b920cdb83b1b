"""Trace files: what is read, and what is refused with file, line and key."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream2llm.workload.traces.check import SeenIds, TraceError
from stream2llm.workload.traces.format import Content, Document, Event, SharedDocument
from stream2llm.workload.traces.read import TraceReader, read_sessions
from stream2llm.workload.traces.write import write_trace
from tests.traces import a_header, a_session, plain_header, plain_session, write_lines

Plain = dict[str, Any]


def read_all(path: Path) -> list[Any]:
    return [session for session, _ in read_sessions(path)]


def test_a_hand_written_file_is_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", plain_header(), plain_session())
    (session,) = read_all(path)
    assert session.documents == (Document("a", tokens=100),)
    assert session.events == (Event(0.5, "append", ("a",)), Event(0.5, "seal"))


def test_sessions_share_documents_of_earlier_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    shared = SharedDocument(Document("s", "Shared text."))
    events = (Event(0.1, "update", ("s", "a")), Event(0.2, "seal"))
    write_trace(path, a_header(), [shared, a_session(events=events)])
    ((_, table),) = read_sessions(path)
    assert table["s"].text == "Shared text."
    assert set(table) == {"s", "a", "b"}


WRONG_SESSIONS: list[tuple[Callable[[Plain], object], str]] = [
    (lambda s: s.update(arrival_s="0"), "arrival_s: Input should be a valid number (got '0')"),
    (lambda s: s.update(arrival_s=-1), "arrival_s: -1.0 is before"),
    (lambda s: s.update(colour="red"), "colour: unknown key"),
    (lambda s: s.pop("suffix"), "suffix: is missing"),
    (lambda s: s.update(line="sesion"), "line: must be header, document or session"),
    (lambda s: s.update(output_tokens=0), "output_tokens: Input should be greater than 0 (got 0)"),
    (lambda s: s.update(id=""), "id: String should have at least 1 character"),
    (lambda s: s.update(id="first"), "id: a session 'first' came before"),
    (lambda s: s.update(prefix={}), "prefix: needs a text or a number of tokens"),
    (lambda s: s["documents"][0].update(tokens=0), "documents.0.tokens: Input should be greater than 0"),
    (lambda s: s["documents"][0].update(tokens=1.5), "documents.0.tokens: Input should be a valid"),
    (lambda s: s["documents"][0].pop("tokens"), "documents.0: needs a text or a number of tokens"),
    (lambda s: s["documents"][0].update(text=""), "documents.0.text: String should have at least 1"),
    (lambda s: s["documents"].append({"id": "a", "tokens": 1}), "documents.1.id: 'a' is defined"),
    (lambda s: s["events"].pop(), "events: exactly one seal, and it is the last (got 0)"),
    (lambda s: s["events"].reverse(), "events: exactly one seal, and it is the last"),
    (lambda s: s["events"][1].update(at_s=0.25), "events.1.at_s: 0.25 is before 0.5"),
    (lambda s: s["events"][0].update(kind="add"), "events.0.kind: Input should be 'append'"),
    (lambda s: s["events"][0].update(documents=["z"]), "events.0.documents: names 'z', which no"),
    (lambda s: s["events"][0].update(documents=[]), "events.0.documents: is empty"),
    (lambda s: s["events"][1].update(documents=["a"]), "events.1.documents: a seal brings no"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    WRONG_SESSIONS,
    ids=lambda value: value[:30] if isinstance(value, str) else "change",
)
def test_a_wrong_session_is_refused_with_its_line_and_key(
    change: Callable[[Plain], object], message: str, tmp_path: Path
) -> None:
    wrong = plain_session("second")
    change(wrong)
    path = write_lines(tmp_path / "t.jsonl", plain_header(), plain_session("first"), wrong)
    with pytest.raises(TraceError) as caught:
        read_all(path)
    assert str(caught.value).startswith(f"{path}, line 3: {message}")
    assert caught.value.field == message.split(":")[0]


def test_every_wrong_value_of_a_line_is_named(tmp_path: Path) -> None:
    wrong = plain_session()
    wrong["id"] = ""
    wrong["documents"][0]["tokens"] = -1
    path = write_lines(tmp_path / "t.jsonl", plain_header(), wrong)
    with pytest.raises(TraceError, match=r"line 2: id: .*; documents\.0\.tokens: "):
        read_all(path)


@pytest.mark.parametrize(
    "line",
    ["{", "", "[1]", '{"line": "session", "arrival_s": NaN}', '{"line": "header"}', "\udcff"],
)
def test_a_line_that_is_no_item_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_lines(path, plain_header(), plain_session())
    with path.open("ab") as file:
        file.write(line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(TraceError, match="line 3: "):
        read_all(path)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", plain_header(), plain_session())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TraceError, match="line 2: not JSON") as caught:
        read_all(path)
    assert caught.value.field is None


def test_the_first_line_is_the_header(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", plain_session())
    with pytest.raises(TraceError, match="line 1: line: the first line is the header"):
        TraceReader(path)
    second = write_lines(tmp_path / "u.jsonl", plain_header(), plain_header())
    with pytest.raises(TraceError, match="line 2: line: a second header"):
        read_all(second)


def test_another_version_is_refused(tmp_path: Path) -> None:
    header = plain_header() | {"schema_version": 3}
    path = write_lines(tmp_path / "t.jsonl", header)
    with pytest.raises(TraceError, match="line 1: schema_version: Input should be 1 or 2"):
        TraceReader(path)


@pytest.mark.parametrize("version", [1, 2])
def test_a_session_may_say_how_long_its_answer_was(version: int, tmp_path: Path) -> None:
    header = plain_header() | {"schema_version": version}
    sessions = (plain_session("q0") | {"output_tokens": 7}, plain_session("q1"))
    with TraceReader(write_lines(tmp_path / "t.jsonl", header, *sessions)) as reader:
        assert [session.output_tokens for session in reader] == [7, None]


def test_numbered_ids_are_told_apart_and_take_no_memory() -> None:
    seen, others = SeenIds(), ["r", "r01", "-1", "7a", "r5000"]
    for name in (*others, *(f"r{number}" for number in range(1000))):
        assert name not in seen
        seen.add(name)
        seen.add(name)
        assert name in seen
    assert not [name for name in ("r1000", "r4999", "r5001", "r00", "-", "1") if name in seen]
    size = len(pickle.dumps(seen))
    for number in range(1000, 5000):
        seen.add(f"r{number}")
    assert len(pickle.dumps(seen)) <= size + 16


def test_scale_factors_are_positive(tmp_path: Path) -> None:
    header = plain_header() | {"scale": {"time": 0}}
    path = write_lines(tmp_path / "t.jsonl", header)
    with pytest.raises(TraceError, match=r"line 1: scale\.time: Input should be greater than 0"):
        TraceReader(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.jsonl: cannot be read: No such file"):
        TraceReader(tmp_path / "none.jsonl")


def test_what_could_not_be_read_is_not_written_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("old")
    wrong = a_session("second", arrival_s=float("nan"))
    with pytest.raises(TraceError, match="line 3: arrival_s"):
        write_trace(path, a_header(), [a_session("first"), wrong])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sizes_come_from_the_count_or_from_the_words() -> None:
    assert Content(text="one two three", tokens=7).num_tokens == 7
    assert Content(text="one two three").num_tokens == 4  # 3 x 1.37
    assert Content(text="").num_tokens == 0
    assert Document("a", "word").num_tokens == 1


def test_lists_follow_the_events() -> None:
    assert list(a_session().lists()) == [("a",), ("b", "a")]
