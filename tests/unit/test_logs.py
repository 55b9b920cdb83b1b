"""No log line and no printed line can be forged, wherever its text comes from."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stream2llm.api.trace_context import TraceContext
from stream2llm.serving.actor.root_cause import find_root_cause
from stream2llm.serving.observability import log_context, logs

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "stream2llm",
    "router",
    "prefill_worker",
    "decode_worker",
    "cost_profiles",
    "experiments",
    "examples",
)
METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
# What ends or rewrites a line somewhere: in a terminal, an editor, a log shipper.
HOSTILE = "x\nERROR:router:forged\r\x1b[2K\x0b\x0c\x00\x7f\x85\x9b1A\u2028\u2029\u202e\u2066\ud800"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger; what a test does to it is undone."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], logger.level = before, level


def written(record: logging.LogRecord) -> str:
    return logs.TextFormatter().format(record)


def a_record(message: str, *args: Any, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("router", logging.INFO, "f.py", 1, message, args, exc_info)


def failed(text: str) -> Any:
    try:
        raise ValueError(text)
    except ValueError as error:
        return (type(error), error, error.__traceback__)


class Hostile:
    """For placeholders that take numbers, too."""

    def __str__(self) -> str:
        return HOSTILE

    __repr__ = __str__

    def __int__(self) -> int:
        return 7

    def __float__(self) -> float:
        return 7.0

    def __index__(self) -> int:
        return 7


def log_calls() -> list[tuple[str, str, int]]:
    """(where, format string, number of arguments) of every log call in the tree."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if _is_log_call(node):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    found.append((where, *_format_of(node)))
    return found


def _is_log_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in METHODS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in {"_log", "_logger", "log", "logger"}
    )


def _format_of(call: ast.Call) -> tuple[str, int]:
    text = ast.literal_eval(call.args[0])
    return text, text.replace("%%", "").count("%")


@pytest.mark.parametrize(("where", "text", "count"), log_calls(), ids=lambda each: str(each)[:40])
def test_no_log_call_in_the_tree_can_write_a_second_line(where: str, text: str, count: int) -> None:
    line = written(a_record(text, *[Hostile()] * count))
    assert line.splitlines() == [line]
    assert line.isprintable()


def test_the_walk_finds_the_log_calls() -> None:
    assert len(log_calls()) > 20


def test_the_levels_and_names_of_others_cannot_forge_either() -> None:
    record = a_record("harmless")
    record.name = HOSTILE
    assert written(record).isprintable()


def test_a_stack_trace_keeps_its_lines_and_cannot_begin_a_record() -> None:
    lines = written(a_record("broke", exc_info=failed(HOSTILE))).split("\n")
    assert lines[0].endswith("Z INFO router: broke")
    assert len(lines) > 3
    assert all(line.startswith(logs.TRACE_MARK) and line.isprintable() for line in lines[1:])
    assert lines[-1].startswith(f"{logs.TRACE_MARK}ERROR:router:forged")


def test_a_trace_that_another_handler_formatted_is_not_taken_over() -> None:
    record = a_record("broke", exc_info=failed(HOSTILE))
    logging.Formatter().format(record)
    assert "\x1b" not in written(record)


def test_a_process_logs_safely_and_only_once(root: logging.Logger) -> None:
    stream = io.StringIO()
    root.handlers[:] = [logging.StreamHandler(stream)]  # pytest's own are no part of this
    logs.configure()
    logs.configure()
    logging.getLogger("anything").info("id=%s", HOSTILE)
    assert len(root.handlers) == 1
    assert stream.getvalue().count("\n") == 1


def test_a_library_with_handlers_of_its_own_is_guarded() -> None:
    stream = io.StringIO()
    library = logging.getLogger("some_library")
    library.propagate = False
    library.addHandler(logging.StreamHandler(stream))
    logs.guard("some_library")
    logs.guard("some_library")
    library.warning("two lines\nof %s", HOSTILE)
    library.handlers.clear()
    assert stream.getvalue().split("\n")[:1] == ["two lines"]
    assert stream.getvalue().count("\n") == 2
    assert "\x1b" not in stream.getvalue()


def test_only_one_place_decides_how_we_log() -> None:
    texts = {p: p.read_text() for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    ours = [
        p.name for p, text in texts.items() if "basicConfig(" in text or "StreamHandler(" in text
    ]
    assert ours == ["logs.py"]


@pytest.mark.parametrize("text", [HOSTILE, "a\tb\n", "naïve 漢字 🙂", ""])
def test_text_for_a_terminal_keeps_its_lines_and_letters(text: str) -> None:
    shown = logs.for_terminal(text)
    assert all(char in "\n\t" or char.isprintable() for char in shown)
    assert [c for c in shown if c in "\n\t"] == [c for c in text if c in "\n\t"]
    assert logs.one_line("naïve 漢字 🙂") == "naïve 漢字 🙂"


def test_escaped_json_is_still_the_same_json() -> None:
    value = {"text": HOSTILE}
    shown = logs.for_terminal(json.dumps(value, ensure_ascii=False))
    assert json.loads(shown) == value


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    line = logs.JsonFormatter().format(record)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    loaded: dict[str, Any] = json.loads(line)
    return loaded


def test_a_structured_line_is_one_json_object_whatever_it_carries() -> None:
    fields = as_json(a_record("text=%s", HOSTILE, exc_info=failed(HOSTILE)))
    assert fields["message"] == f"text={HOSTILE}"
    assert HOSTILE.partition("\n")[0] in fields["exception"]
    assert (fields["level"], fields["logger"]) == ("INFO", "router")
    assert not {"session_id", "trace_id", "span_id"} & fields.keys()


def test_a_structured_line_names_its_process_s_part_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STREAM2LLM_OWNER", "cluster/prefill-1/2/")
    fields = as_json(a_record("x"))
    assert (fields["component"], fields["incarnation"]) == ("prefill-1", 2)
    monkeypatch.delenv("STREAM2LLM_OWNER")
    assert "component" not in as_json(a_record("x"))


def test_a_line_says_when_and_who(monkeypatch: pytest.MonkeyPatch) -> None:
    record = a_record("died name=%s", "x")
    record.created = 1_795_990_400.1234
    monkeypatch.setenv("STREAM2LLM_OWNER", "cluster/prefill-1%/2/")
    assert written(record) == "2026-11-29T22:13:20.123Z INFO prefill-1%/2 router: died name=x"
    monkeypatch.delenv("STREAM2LLM_OWNER")
    assert written(record) == "2026-11-29T22:13:20.123Z INFO router: died name=x"


async def test_a_structured_line_has_its_own_task_s_session() -> None:
    async def line_of(name: str) -> dict[str, Any]:
        context = log_context.LogContext(TraceContext(name * 32, name * 16, True))
        log_context.bind(context)
        await asyncio.sleep(0)
        context.session_id = name
        # Tasks that it starts are its own.
        return await asyncio.create_task(asyncio.to_thread(as_json, a_record("x")))

    for name, fields in zip("ab", await asyncio.gather(line_of("a"), line_of("b")), strict=True):
        assert fields["session_id"] == name
        assert (fields["trace_id"], fields["span_id"]) == (name * 32, name * 16)


def test_logs_are_structured_where_that_is_asked_for(root: logging.Logger) -> None:
    stream = io.StringIO()
    library = logging.getLogger("some_library")
    library.handlers[:] = [logging.StreamHandler(stream)]
    root.handlers[:] = [logging.StreamHandler(stream)]
    logs.configure(log_format="json")
    logs.guard("some_library", "json")
    library.propagate = False
    library.warning("from %s", "outside")
    root.warning("from us")
    library.handlers.clear()
    messages = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert messages == ["from outside", "from us"]


def test_the_cause_of_a_failed_start_is_found_in_a_structured_log() -> None:
    record = a_record("engine_failed", exc_info=failed("no such device"))
    log = "\n".join(["plain", logs.JsonFormatter().format(record), "{no json"])
    assert find_root_cause(log) == ("ValueError", "no such device")
