"""Pages, docstrings, comments and help texts use plain technical English and the field's terms."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
# With the generated ones, which have the help texts of metrics, settings and commands. The
# changelog names what was, too; the site has a copy of it.
PAGES = [
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.stem != "changelog"),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
]
NO_TERMS = re.compile(
    r"\b(?i:nobody|somebody|anybody|whoever|host pool|step tokens|fetch(?:es)? ahead)\b"
    r"|\b(?i:(?:is|are|was|were|been|not|has|had) told|as in the design|the design (?:document|wants))\b"
    # A sentence, a cell of a table or a comment without a subject.
    r"|(?:^\s*|\. |\| |# )Of ",
    re.MULTILINE,
)
# Documents that the repository does not have, and numbers of their parts.
NO_DOCUMENTS = re.compile(r"\bDESIGN\b|\b[SF]\d{1,2}\b")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def found(pattern: re.Pattern[str], text: str) -> list[str]:
    return [text[max(f.start() - 30, 0) : f.end() + 30] for f in pattern.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_in_plain_terms_and_names_no_document_that_is_not_here(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    assert not found(NO_TERMS, text) + found(NO_DOCUMENTS, text)


def sources() -> list[Path]:
    """The Python files that are not generated."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    folders = (ROOT / name for name in (*packages["root_packages"], "tests"))
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return [path for path in files if path.parent != ROOT / "stream2llm/api/v1"]


def prose_of(source: str, *, has_messages: bool = True) -> Iterator[str]:
    """The docstrings, those of fields among them, the comments, and all other strings."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
            case ast.Constant(value=str(text)) if has_messages:
                yield text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def test_examples_of_deployments_are_in_plain_terms() -> None:
    files = [path for path in (ROOT / "deploy").rglob("*") if path.suffix not in ("", ".json")]
    texts = {path: path.read_text() for path in files if path.is_file()}
    assert len(texts) > 20
    assert not [f"{path}: {each}" for path, text in texts.items() for each in found(NO_TERMS, text)]


def test_docstrings_comments_and_messages_are_in_plain_terms() -> None:
    wrong = []
    for path in sources():
        source = path.read_text()
        # Few files have such words at all, and only those are taken apart.
        if not (re.search(r'(?:^|[.#"|]) *Of ', source, re.MULTILINE) or NO_TERMS.search(source)):
            continue
        texts = prose_of(source, has_messages=ROOT / "tests" not in path.parents)
        wrong += [f"{path}: {each}" for text in texts for each in found(NO_TERMS, text)]
    assert not wrong


@pytest.mark.parametrize(
    "source",
    ['"""Of two."""', "x = 1  # Of two.", 'x = 1\n"""A field.\n\nOf two.\n"""', "# nobody"],
)
def test_words_that_are_no_terms_are_found(source: str) -> None:
    assert any(found(NO_TERMS, text) for text in prose_of(source))
