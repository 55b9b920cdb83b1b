"""Importers on small recordings, bad rows included."""

from __future__ import annotations

import csv
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from stream2llm.workload.traces.anns_traces import anns_items
from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.crawler_csv import crawler_sessions
from stream2llm.workload.traces.format import Document, Event, Item, Scale, Session, SharedDocument
from stream2llm.workload.traces.imports import BadRow, Importing, shortened

HEAD = ("type", "query", "content", "endTime")


def arrivals(step: float = 1.0) -> Any:
    return count(0.0, step)


def write_csv(path: Path, *rows: tuple[object, ...]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def crawled(folder: Path, importing: Importing | None = None) -> tuple[list[Session], list[str]]:
    bad: list[BadRow] = []
    sessions = crawler_sessions(folder, arrivals(), importing or Importing(), bad.append)
    return list(sessions), [str(each).removeprefix(f"{folder}/") for each in bad]


def searched(path: Path, importing: Importing | None = None) -> tuple[list[Item], list[str]]:
    bad: list[BadRow] = []
    items = anns_items(path, arrivals(), importing or Importing(), bad.append)
    return list(items), [str(each).removeprefix(f"{path.parent}/") for each in bad]


# -- crawler ---------------------------------------------------------------------


def test_pages_are_appended_by_their_end_time(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "query_3.csv",
        HEAD,
        ("tavily_search", "Who?", "ignored", "0.9"),
        ("page_scrape", "", "second page", "2.5"),
        ("page_scrape", "", "first\npage", "1.5"),
    )
    (session,), bad = crawled(tmp_path)
    assert bad == []
    assert session.id == "query_3"
    assert session.suffix.text == "Question: Who?\nAnswer:"
    assert [document.text for document in session.documents] == [
        "first\npage\n\n",
        "second page\n\n",
    ]
    assert session.events == (
        Event(1.5, "append", ("p0",)),
        Event(2.5, "append", ("p1",)),
        Event(2.5, "seal"),
    )


def test_slow_sources_delay_the_pages_and_not_the_search(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "query_3.csv",
        HEAD,
        ("tavily_search", "Who?", "", "1.0"),
        ("page_scrape", "", "a page", "1.5"),
    )
    (session,), _ = crawled(tmp_path, Importing(delay_factor=10.0))
    assert [event.at_s for event in session.events] == [6.0, 6.0]


def test_files_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9):
        row = ("page_scrape", "Who?", "text", "1")
        write_csv(tmp_path / f"query_{number}.csv", HEAD, row)
    sessions, _ = crawled(tmp_path)
    assert [(each.id, each.arrival_s) for each in sessions] == [("query_9", 0), ("query_10", 1)]


def test_bad_rows_are_reported_with_their_line_and_left_out(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "query_1.csv",
        HEAD,
        ("tavily_search", "Who?", "", "0.9"),
        ("page_scrape", "", "over\ntwo lines", "1.5"),
        ("page_scrape", "", "", "1.6"),
        ("page_scrape", "", "text", "soon"),
        ("page_scrape", "", "text", "-1"),
        ("telepathy", "", "text", "2"),
        ("page_scrape",),
    )
    (session,), bad = crawled(tmp_path)
    assert len(session.documents) == 1
    assert bad == [
        "query_1.csv, line 5: has no content",
        "query_1.csv, line 6: endTime is no number: 'soon'",
        "query_1.csv, line 7: endTime is no time: '-1'",
        "query_1.csv, line 8: type is 'telepathy', neither tavily_search nor page_scrape",
        "query_1.csv, line 9: endTime is no number: ''",
    ]


def test_files_without_the_column_or_without_pages_are_left_out(tmp_path: Path) -> None:
    write_csv(tmp_path / "query_1.csv", ("type", "query", "endTime"), ("page_scrape", "Q", "1"))
    write_csv(tmp_path / "query_2.csv", HEAD, ("tavily_search", "Q", "", "1"))
    (tmp_path / "query_3.csv").write_text("")
    sessions, bad = crawled(tmp_path)
    assert sessions == []
    assert bad[0] == "query_1.csv, line 1: has no column content"
    assert "query_2.csv: has no usable page" in bad


def test_what_csv_cannot_read_is_reported_with_the_row_s_line(tmp_path: Path) -> None:
    row = ("page_scrape", "Q", "words", "1")
    write_csv(tmp_path / "query_1.csv", HEAD, row, ("page_scrape", "Q", "x" * 500, "1"), row)
    before = csv.field_size_limit(400)
    try:
        (session,), bad = crawled(tmp_path)
    finally:
        csv.field_size_limit(before)
    assert len(session.documents) == 1
    assert bad == [
        "query_1.csv, line 3: cannot be read further: field larger than field limit (400)"
    ]


def test_pages_longer_than_csv_expects_are_read(tmp_path: Path) -> None:
    row = ("page_scrape", "Q", "word " * 100_000, "1")
    write_csv(tmp_path / "query_1.csv", HEAD, row)
    (session,), _ = crawled(tmp_path)
    assert session.documents[0].tokens == 137_000


def test_a_recording_is_cut_and_stretched_to_scale(tmp_path: Path) -> None:
    write_csv(tmp_path / "query_1.csv", HEAD, ("page_scrape", "Q", "one two three four", "2"))
    importing = Importing(Scale(tokens=0.5, time=10.0), len, tokens_only=True)
    (session,), _ = crawled(tmp_path, importing)
    assert session.documents == (Document("p0", tokens=len("one two\n\n")),)
    assert session.events[-1] == Event(20.0, "seal")


def test_text_cannot_be_made_longer() -> None:
    with pytest.raises(TraceError, match="cannot be made longer"):
        Importing(Scale(tokens=2.0))


def test_a_cut_ends_with_a_word() -> None:
    assert shortened("alpha beta gamma", 0.5) == "alpha"
    assert shortened("alpha beta", 1.0) == "alpha beta"
    assert shortened("unbreakable", 0.5) == "unbrea"


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"has no query_\*\.csv"):
        crawled(tmp_path)


def test_too_few_arrivals_end_the_import(tmp_path: Path) -> None:
    write_csv(tmp_path / "query_1.csv", HEAD, ("page_scrape", "Q", "text", "1"))
    with pytest.raises(TraceError, match="more sessions than there are arrivals"):
        list(crawler_sessions(tmp_path, iter([]), Importing(), lambda _: None))


# -- ANNS ------------------------------------------------------------------------

WINDOWS = ("StartTime_us", "EndTime_us", "PipelinePool")


def a_search(tmp_path: Path, *rows: tuple[object, ...], corpus: dict[str, str]) -> Path:
    write_csv(tmp_path / "res" / "0.csv", WINDOWS, *rows)
    part = tmp_path / "retrieved_corpus_content.part.0.json"
    part.write_text(json.dumps(corpus))
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"0": {"query": "Who?", "trace_file": "0.csv"}}))
    return path


def test_windows_become_updates_that_name_shared_documents(tmp_path: Path) -> None:
    rows = [(1_000_000, 4_000_000, "(11,12)"), (4_000_000, 4_250_000, "(13,11)")]
    path = a_search(tmp_path, *rows, corpus={"11": "a", "12": "b", "13": "c", "99": "unused"})
    items, bad = searched(path)
    assert bad == []
    shared = [item.document.id for item in items if isinstance(item, SharedDocument)]
    assert shared == ["11", "12", "13"]
    session = items[-1]
    assert isinstance(session, Session)
    assert session.events == (
        Event(3.0, "update", ("11", "12")),
        Event(3.25, "update", ("13", "11")),
        Event(3.25, "seal"),
    )


def test_bad_windows_are_reported_with_their_line(tmp_path: Path) -> None:
    rows = [
        (0, 1_000_000, "(11,12)"),
        (0, "x", "(11)"),
        (5, 1, "(11)"),
        (1, 2, "()"),
        (1, 2, "(11,eleven)"),
    ]
    items, bad = searched(a_search(tmp_path, *rows, corpus={"11": "a"}))
    assert bad == [
        "res/0.csv, line 3: could not convert string to float: 'x'",
        "res/0.csv, line 4: the window from 5 to 1 us is no time",
        "res/0.csv, line 5: PipelinePool names no document",
        "res/0.csv, line 6: PipelinePool has 'eleven', which is no document id",
        "res/0.csv: names documents without a text: 12",
    ]
    session = items[-1]
    assert isinstance(session, Session)
    assert session.events == (Event(1.0, "update", ("11",)), Event(1.0, "seal"))


def test_bad_queries_of_the_map_are_left_out(tmp_path: Path) -> None:
    path = a_search(tmp_path, (0, 1_000_000, "(11)"), corpus={"11": "a"})
    good = json.loads(path.read_text())["0"]
    missing = {"query": "Q", "trace_file": "none.csv"}
    path.write_text(json.dumps({"7": {"query": "Q"}, "8": missing, "9": "Q", "0": good}))
    items, bad = searched(path)
    assert [item.id for item in items if isinstance(item, Session)] == ["0"]
    assert bad[0] == "map.json: query 7: has no trace_file"
    assert "none.csv: cannot be read: No such file" in bad[1]
    assert bad[2] == "map.json: query 9: is no JSON object"


def test_text_that_utf8_cannot_hold_is_repaired(tmp_path: Path) -> None:
    items, _ = searched(a_search(tmp_path, (0, 1, "(11)"), corpus={"11": "half \ud83d emoji"}))
    assert items[0] == SharedDocument(Document("11", "half ? emoji\n\n", 4))


def test_a_search_without_a_map_or_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"map\.json: cannot be read"):
        searched(tmp_path / "map.json")
    (tmp_path / "map.json").write_text("{}")
    with pytest.raises(TraceError, match="has no retrieved_corpus_content"):
        searched(tmp_path / "map.json")
