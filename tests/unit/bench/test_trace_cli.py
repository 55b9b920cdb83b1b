"""`stream2llm trace`, as a user calls it."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from stream2llm.workload.traces.read import TraceReader
from tests.command_lines import check_failed, cli
from tests.traces import plain_header, plain_session, write_lines

run = partial(cli, "trace")


@pytest.mark.parametrize("shape", ["crawler", "anns"])
def test_generate_writes_a_trace_and_prints_its_fit(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    result = run("generate", shape, "-n", 40, "--scale-tokens", 0.02, "--output", path)
    assert result.exit_code == 0, result.output
    assert "| tokens | P50 |" in result.stdout
    assert "too few to judge" in result.stdout
    assert "MISSED" not in result.stdout
    with TraceReader(path) as reader:
        assert reader.header.scale.tokens == 0.02
        sessions = list(reader)
    assert len(sessions) == 40
    assert all(document.text for session in sessions for document in session.documents)


def test_equal_options_give_equal_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        run("generate", "anns", "--queries", 20, "--seed", seed, "--tokens-only", "-o", path)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


def test_arrivals_come_from_a_file(tmp_path: Path) -> None:
    times, path = tmp_path / "times.txt", tmp_path / "t.jsonl"
    times.write_text("5\n6\n8\n")
    args = ("generate", "crawler", "-n", 3, "--arrivals", times, "--tokens-only", "-o", path)
    assert run(*args, "--scale-load", 2).exit_code == 0
    with TraceReader(path) as reader:
        assert [session.arrival_s for session in reader] == [0.0, 0.5, 1.5]
    refused = run("generate", "crawler", "-n", 4, "--arrivals", times, "-o", path)
    check_failed(refused, 3, "has 3 arrivals; 4 are needed")


@pytest.mark.parametrize(
    ("bursts", "figures"),
    [("phases", "bursts=phases=0.145,5.7,"), ("gamma=4", "bursts=gamma=4.0,")],
)
def test_the_header_has_the_figures_of_bursts(bursts: str, figures: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    args = ("generate", "anns", "-n", 3, "--rate", 2, "--tokens-only", "-o", path)
    assert run(*args, "--bursts", bursts).exit_code == 0
    with TraceReader(path) as reader:
        assert figures in reader.header.provenance
        assert "rate=2.0, " in reader.header.provenance
    check_failed(run(*args, "--bursts", "phases=2,1"), 3, "they must be gamma=CV")


def test_import_reports_bad_rows_on_stderr(tmp_path: Path) -> None:
    with (tmp_path / "query_0.csv").open("w", newline="") as file:
        rows = [("type", "query", "content", "endTime"), ("page_scrape", "Q", "text", "1")]
        csv.writer(file).writerows([*rows, ("page_scrape", "Q", "", "2")])
    result = run("import", "crawler", tmp_path, "-o", tmp_path / "t.jsonl")
    check_failed(result, 0, "query_0.csv, line 3: has no content")
    assert "1 sessions, 1 appends and updates" in result.stdout


def test_an_import_of_nothing_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "query_0.csv").write_text("type,query,content,endTime\n")
    result = run("import", "crawler", tmp_path, "-o", tmp_path / "t.jsonl")
    check_failed(result, 3, "nothing in it can be imported")
    assert not (tmp_path / "t.jsonl").exists()


def test_a_model_s_tokenizer_counts(tmp_path: Path) -> None:
    """Here one that splits at blanks: as many tokens as words."""
    model, path = tmp_path / "model", tmp_path / "t.jsonl"
    model.mkdir()
    (model / "config.json").write_text("{}")
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(model / "tokenizer.json"))
    args = ("-n", 3, "--scale-tokens", 0.01, "--tokenizer", model, "-o", path)
    assert run("generate", "crawler", *args).exit_code == 0
    with TraceReader(path) as reader:
        assert reader.header.counted_by == f"tokenizer {model}"
        for document in (each for session in reader for each in session.documents):
            assert document.tokens == len(document.text.split())


def test_show_checks_and_sums_up(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", plain_header(), plain_session())
    assert "1 sessions, 1 appends and updates, 106 tokens" in run("show", path).stdout
    write_lines(path, plain_header(), plain_session() | {"events": []})
    result = run("show", path)
    check_failed(result, 3, f"{path}, line 2: events: exactly one seal", "(field events)")


def test_show_of_a_trace_without_sessions(tmp_path: Path) -> None:
    header = plain_header() | {"shape": "anns"}
    result = run("show", write_lines(tmp_path / "t.jsonl", header))
    assert result.exit_code == 0, result.output
    assert "no arrivals" in result.stdout
