"""Files, folders and pipes as documents: in any encoding, as they come, nothing lost in silence."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from router.documents import MAX_DOCUMENT_ID_CHARS
from stream2llm.cli.decoding import NotTextError, check_encoding, decode, decode_stream
from stream2llm.cli.main import app
from stream2llm.cli.sources import MAX_ID_CHARS, MAX_NAMED, Reading, SourceError, Sources
from stream2llm.cli.splitting import split_documents
from tests import fake_router
from tests.fake_router import Conversation

TEXT = "Grüße, 世界\n"


def read(
    *paths: object, stdin: bytes | None = None, **reading: object
) -> tuple[list[tuple[str, str]], list[str]]:
    """(id, text) of each document, and the warnings."""
    told: list[str] = []
    source = None if stdin is None else BytesIO(stdin)
    sources = Sources(map(str, paths), source, Reading(**reading), told.append)
    sources.check()
    return [(document.id, document.content) for document in sources.documents()], told


def texts(*paths: object, **options: object) -> list[str]:
    return [text for _, text in read(*paths, **options)[0]]


# -- encodings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding, mark):
    data = mark + TEXT.encode(encoding)
    (tmp_path / "a.txt").write_bytes(data)
    assert texts(tmp_path / "a.txt") == [TEXT]
    assert texts(tmp_path) == [TEXT]
    assert texts("-", stdin=data + "---\nb".encode(encoding)) == [TEXT, "b"]
    byte_by_byte = [data[place : place + 1] for place in range(len(data))]
    assert "".join(decode_stream(byte_by_byte, "utf-8")) == TEXT


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "shift-jis"])
def test_an_encoding_without_a_mark_is_asked_for(tmp_path, encoding):
    text = "世界\n" if encoding == "shift-jis" else "Grüße\n"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    marked = codecs.BOM_UTF8 + TEXT.encode()
    (tmp_path / "b.txt").write_bytes(marked)
    assert texts(tmp_path, encoding=encoding) == [text, TEXT], "a mark is the better witness"
    assert texts("-", stdin=text.encode(encoding), encoding=encoding) == [text]


def test_line_ends_are_those_of_python(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc")
    assert texts(tmp_path) == ["a\nb\nc"]
    assert texts("-", stdin=b"a\r\n---\r\nb\r\n") == ["a\n", "b\n"]


@pytest.mark.parametrize("name", ["no-such", "base64", "utf-8\0", ""])
def test_what_is_no_text_encoding_is_refused(name):
    with pytest.raises(ValueError, match="not a text encoding"):
        check_encoding(name)


def test_bytes_in_another_encoding_are_named_with_their_place():
    with pytest.raises(NotTextError, match=r"not UTF-8 text \(byte 0xfc at 2\); --encoding"):
        decode(b"Gr\xfc", "utf-8")
    with pytest.raises(NotTextError, match="NUL"):
        decode("ab".encode("utf-16-le"), "utf-8")
    with pytest.raises(NotTextError, match="not UTF-16 text"):
        decode(codecs.BOM_UTF16_LE + b"a", "utf-8")


# -- what is left out ------------------------------------------------------------------


def a_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "good.txt").write_text("good")
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes(b"Gr\xfc\xdfe")
    (folder / "zeros.bin").write_bytes(b"\0" * 100)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "itself").symlink_to("itself")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "unreadable").symlink_to("/proc/self/mem")  # root may read all else
    os.mkfifo(folder / "pipe")
    return folder


def test_what_a_folder_has_beside_text_is_left_out_and_named(tmp_path):
    folder = a_folder(tmp_path)
    documents, told = read(folder)
    assert documents == [(f"{folder}/good.txt", "good")]
    whys = dict(line.removeprefix(f"left out {folder}/").split(": ", 1) for line in told)
    assert whys == {
        "empty.txt": "empty",
        "latin.txt": "not UTF-8 text (byte 0xfc at 2); --encoding names another encoding",
        "zeros.bin": whys["zeros.bin"],
        "dangling": "No such file or directory",
        "itself": "Too many levels of symbolic links",
        "sub/up": "a link to a folder; name it to have it read",
        "unreadable": "Input/output error",
        "pipe": "not a regular file",
    }
    assert "NUL" in whys["zeros.bin"]


def test_a_folder_that_is_a_link_is_read_when_it_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    (tmp_path / "link").symlink_to("folder")
    assert texts(tmp_path / "link") == ["a"]


def test_only_so_many_are_named(tmp_path):
    for number in range(MAX_NAMED + 5):
        (tmp_path / f"{number:03}").write_bytes(b"\0")
    (tmp_path / "z").write_text("text")
    documents, told = read(tmp_path)
    assert len(documents) == 1
    assert len(told) == MAX_NAMED + 1
    assert told[-1] == "left out 5 more"


@pytest.mark.parametrize(
    ("source", "stdin", "error"),
    [
        ("-", b"\xfc\n---\n\xfc", "no document in -: 2 left out"),
        ("-", b"", "standard input was empty"),
        ("-", b"\xff\xfe", "standard input was empty"),
        ("-", b"\n---\n\n", "standard input was empty"),
        ("-", None, "standard input is closed"),
        ("-", codecs.BOM_UTF16_LE + b"a\0\n\0-\0-\0-\0\n\0\x00\xdc\x00", "standard input: not UTF-16.* text"),
        ("", None, "'': No such file"),
        ("empty", None, "nothing is there"),
    ],
)  # fmt: skip
def test_sources_without_a_document_are_an_error(tmp_path, source, stdin, error):
    (tmp_path / "empty").mkdir()
    os.chdir(tmp_path)
    with pytest.raises(SourceError, match=error):
        read(source, stdin=stdin)


def test_a_document_of_standard_input_that_is_no_text_is_left_out():
    documents, told = read("-", stdin=b"one\n---\nGr\xfc\xdfe\n---\nt\0wo\n---\nthree")
    assert documents == [("stdin-1", "one\n"), ("stdin-4", "three")]
    assert told[0].startswith("left out stdin-2: not UTF-8 text (byte 0xfc at character 2)")
    assert told[1].startswith("left out stdin-3: it contains NUL characters")


# -- names and ids -----------------------------------------------------------------------


def test_ids_are_unique_and_not_too_long(tmp_path):
    assert MAX_ID_CHARS == MAX_DOCUMENT_ID_CHARS
    deep = tmp_path.joinpath(*["d" * 100] * 4)
    deep.mkdir(parents=True)
    long_names = [deep / "a.txt", deep.parent / "a.txt"]
    for path in (*long_names, tmp_path / "a.txt", tmp_path / "stdin-1"):
        path.write_text("text")
    os.chdir(tmp_path)
    documents, _ = read(*long_names, *long_names, "a.txt", "./a.txt", "stdin-1", "-", stdin=b"x")
    ids = [document_id for document_id, _ in documents]
    assert len(set(ids)) == len(ids) == 8
    assert all(len(document_id) <= MAX_ID_CHARS for document_id in ids)
    assert ids[0].endswith("d/a.txt")
    assert ids[4:] == ["a.txt", "a.txt#2", "stdin-1", "stdin-1#2"]


def test_a_name_that_is_no_text_is_escaped(tmp_path):
    raw = os.fsencode(tmp_path) + b"/a\xe9\nb"
    Path(os.fsdecode(raw)).write_text("text")
    documents, _ = read(tmp_path)
    assert documents == [(f"{tmp_path}/a\\xe9\\nb", "text")]
    with pytest.raises(SourceError, match=r"c\\xe9: No such file"):
        read(os.fsdecode(b"c\xe9"))


@pytest.fixture(autouse=True)
def _stay_here() -> Iterator[None]:
    here = Path.cwd()
    yield
    os.chdir(here)


# -- separators ----------------------------------------------------------------------------


def test_the_first_separator_decides_and_the_other_is_text():
    assert list(split_documents(["a\n---\nb\0c"])) == ["a\n", "b\0c"]
    assert list(split_documents(["a\0b\n---\nc\0"])) == ["a", "b\n---\nc"]
    assert list(split_documents(["a\n---\nb\0c"], null=True)) == ["a\n---\nb", "c"]


def test_a_document_is_there_as_soon_as_its_separator_is():
    def texts() -> Iterator[str]:
        for text, complete in (("a", 0), ("b\0", 1), ("---\n", 1), ("\0", 2), ("c\0d\0", 4)):
            yield text
            assert len(documents) == complete

    documents: list[str] = []
    for document in split_documents(texts()):
        documents.append(document)  # noqa: PERF402 - one by one, as they come
    assert documents == ["ab", "---\n", "c", "d"]


def split_whole(text: str, null: bool) -> list[str]:
    """The same, by looking at the whole text at once."""
    first_line = next(
        (place for place in range(len(text)) if f"\n{text}"[place : place + 5] == "\n---\n"),
        len(text),
    )
    if null or (0 <= text.find("\0") < first_line):
        return [part for part in text.split("\0") if part.strip()]
    documents = [""]
    for line in text.split("\n"):
        documents = (
            [*documents, ""] if line == "---" else [*documents[:-1], documents[-1] + line + "\n"]
        )
    documents[-1] = documents[-1][:-1]
    return [part for part in documents if part.strip()]


@given(
    st.lists(st.sampled_from(["-", "---", "\n", "a", "\0", "---\n", "\n---\n"]), max_size=12),
    st.lists(st.integers(0, 40), max_size=6),
    st.booleans(),
)
def test_pieces_make_no_difference(tokens, cuts, null):
    text = "".join(tokens)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(bounds)]
    assert list(split_documents(pieces, null=null)) == split_whole(text, null)


# -- the command ------------------------------------------------------------------------------


def generate(router, *args: str, stdin: bytes = b"", charset: str = "utf-8") -> Result:
    env = {"STREAM2LLM_ADDRESS": router.fake.address}
    return CliRunner(charset=charset).invoke(
        app, ["generate", "-q", "Why?", *args], input=stdin, env=env
    )


def sent_texts(router) -> list[str]:
    appends = [each.append for each in router.fake.received if each.HasField("append")]
    return [document.text for append in appends for document in append.documents]


def test_a_folder_of_another_encoding_answers_from_nothing_and_fails(threaded_router, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"Gr\xfc\xdfe")
    result = generate(threaded_router, str(tmp_path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"left out {tmp_path}/a.txt: not UTF-8 text" in result.stderr
    assert f"error: no document in {tmp_path}: 1 left out" in result.stderr
    assert threaded_router.next_end() == "cancelled"
    assert generate(threaded_router, str(tmp_path), "--encoding", "latin-1").exit_code == 0


def test_what_is_left_out_is_named_also_when_quiet(threaded_router, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"Gr\xfc\xdfe")
    (tmp_path / "b.txt").write_text("text")
    result = generate(threaded_router, str(tmp_path), "--quiet")
    assert (result.exit_code, result.stdout) == (0, "one two three\n")
    assert len(result.stderr.splitlines()) == 1
    assert sent_texts(threaded_router) == ["text"]


@pytest.mark.parametrize(
    "args", [["--encoding", "no-such", "-"], ["--encoding", "base64", "-"], ["-0", "/"], [""]]
)
def test_bad_options_exit_2(threaded_router, args):
    assert generate(threaded_router, *args).exit_code == 2


def test_null_makes_separator_lines_text(threaded_router):
    assert generate(threaded_router, "-0", "-", stdin=b"a\n---\nb\0c").exit_code == 0
    assert sent_texts(threaded_router) == ["a\n---\nb", "c"]


def test_one_path_twice_in_one_event_has_two_ids(threaded_router, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    path = str(tmp_path / "a.txt")
    assert generate(threaded_router, path, path, "--mode", "once").exit_code == 0
    documents = threaded_router.fake.received[1].append.documents
    assert [document.id for document in documents] == [path, f"{path}#2"]


def command(router, *args: str | bytes) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stream2llm.cli.main", "generate", "-q", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "STREAM2LLM_ADDRESS": router.fake.address},
    )


def test_documents_that_end_in_nul_leave_as_they_arrive(threaded_router):
    got_one = threading.Event()

    async def watch(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()
        got_one.set()
        await fake_router.forever()

    threaded_router.fake.script = watch
    process = command(threaded_router, "Why?", "-")
    try:
        process.stdin.write(b"a\n b\0c")  # and standard input stays open
        process.stdin.flush()
        assert got_one.wait(30)
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert sent_texts(threaded_router) == ["a\n b"]


def test_arguments_and_input_that_are_no_text_give_one_line_each(threaded_router):
    process = command(threaded_router, b"Wh\xe9?", "-")
    _, stderr = process.communicate(b"text", timeout=60)
    assert process.returncode == 3
    (line,) = stderr.splitlines()
    assert b"chat.messages[1].content cannot be encoded in UTF-8" in line

    of_path = generate(threaded_router, os.fsdecode(b"/no/such\xe9"))
    assert of_path.exit_code == 2
    assert of_path.stderr.splitlines() == [r"error: /no/such\xe9: No such file or directory"]

    of_input = generate(threaded_router, "-", stdin=b"Gr\xfc\xdfe")
    assert of_input.exit_code == 2
    assert len(of_input.stderr.splitlines()) == 2
    assert isinstance(of_input.exception, SystemExit), "no traceback"


@pytest.mark.parametrize(
    ("options", "expected"), [([], r"\u4e16"), (["--json"], r'"text": "\u4e16"')]
)
def test_an_answer_is_written_whatever_stdout_can_encode(threaded_router, options, expected):
    async def answer(conversation: Conversation) -> None:
        await conversation.accept()
        while (request := await conversation.next()) is not None:
            if request.HasField("seal"):
                await conversation.answer("世")

    threaded_router.fake.script = answer
    result = generate(threaded_router, *options, "-", stdin=b"text", charset="ascii")
    assert result.exit_code == 0, result.exception
    assert expected in result.stdout
