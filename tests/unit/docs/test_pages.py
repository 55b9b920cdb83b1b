"""What the pages of docs/ name exists, and they use plain technical English.

docs/compatibility.md says what pyproject.toml and the lock say.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from stream2llm.api.errors import ERRORS_BY_STATUS
from tools.reflow import overlong, reflow

ROOT = Path(__file__).parents[3]
# The changelog also describes the past.
PAGES = sorted(
    path
    for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    if path.stem != "changelog"
)
PACKAGES = ("router", "prefill_worker", "decode_worker", "cost_profiles", "stream2llm")
_PATH_IN_CODE = re.compile(r"`((?:[\w.*-]+/)+[\w.*-]+\.(?:py|proto|json|yaml|yml|md|lock|txt))`")
_REASON = re.compile(r"[A-Z][A-Z_]+")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(_PATH_IN_CODE.findall(page.read_text()))
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    ours = {name for name in named if name.split("/")[0] in tops}
    assert not {name for name in ours if not any(ROOT.glob(name))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_has_lines_of_at_most_120_characters(page: Path) -> None:
    assert not overlong(page.read_text()), "run `python -m tools.reflow` on the page"


def test_troubleshooting_has_every_reason_of_an_error_and_no_other() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    known = set(re.findall(r"`([A-Z][A-Z_]+)`", page))
    raised = {reason for package in PACKAGES for reason in _reasons_in(ROOT / package)}
    raised |= {cls.default_reason for cls in ERRORS_BY_STATUS.values()}
    assert len(raised) > 40
    assert not raised - known
    sources = "".join(path.read_text() for each in PACKAGES for path in (ROOT / each).rglob("*.py"))
    assert not {reason for reason in known if f'"{reason}"' not in sources}


def test_prose_is_wrapped_and_nothing_else_is_touched() -> None:
    long = "word " * 30
    verbatim = f"| {long} |\n\n```\n{long}\n```\n\n# {long}\n\n    {long}\n"
    assert reflow(verbatim) == verbatim
    assert overlong(f"short\n\n- {long}\n  more") == [3]
    item = reflow(f"- {long}\n  more").split("\n")
    assert [line[:2] for line in item] == ["- ", "  "]
    assert max(map(len, item)) <= 120
    assert "\n- " not in reflow("x " * 59 + "- " + "y " * 10)


def _reasons_in(folder: Path) -> Iterator[str]:
    """Reasons that are written as `reason="..."` or `default_reason = "..."`."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                value: ast.expr | None = node.value
            elif isinstance(node, ast.Assign) and "default_reason" in ast.dump(node.targets[0]):
                value = node.value
            else:
                continue
            if isinstance(value, ast.Constant) and _REASON.fullmatch(str(value.value)):
                yield str(value.value)


def test_a_table_in_a_list_item_keeps_its_lines() -> None:
    item = "- " + "word " * 40 + "\n  | a | b |\n  |---|---|\n  | 1 | 2 |"
    assert reflow(item).endswith("\n  | a | b |\n  |---|---|\n  | 1 | 2 |")


# -- words --------------------------------------------------------------------------------


# With the generated ones, which have the help texts of metrics, settings and commands. The
# changelog names what was, too; the site has a copy of it.
ALL_PAGES = [
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
# Documents that the repository does not have, and numbers of their parts; s1 may be a session.
NO_DOCUMENTS = re.compile(r"\bDESIGN\b|(?<!session_id=)\b(?i:[sf]\d{1,2}|list of failures)\b")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def found(pattern: re.Pattern[str], text: str) -> list[str]:
    return [text[max(f.start() - 30, 0) : f.end() + 30] for f in pattern.finditer(text)]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
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


def references(source: str) -> set[str]:
    """What a module's texts say of parts of documents that are not here.

    Its own docstring may number them, and a text that is nothing else is a name.
    """
    lines = (ast.get_docstring(ast.parse(source)) or "").split("\n")
    own = {line.split(" ")[0] for line in lines}
    return {
        each
        for text in prose_of(source)
        for each in NO_DOCUMENTS.findall(text)
        if each not in (*own, text)
    }


def test_modules_refer_to_no_document_that_is_not_here() -> None:
    texts = {path: path.read_text() for path in sources() if path != Path(__file__)}
    suspects = {path: text for path, text in texts.items() if NO_DOCUMENTS.search(text)}
    assert not {f"{path}: {each}" for path in suspects for each in references(suspects[path])}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ('"""As in the list of failures."""', {"list of failures"}),
        ('name = f"f16-{number}"', {"f16"}),
        ("x = 1  # S3 again", {"S3"}),
        ('"""Faults:\n\nS1 a fault\n"""\n# -- S1 ---', set()),
        ('opened("s1")', set()),
    ],
)
def test_references_to_such_a_document_are_found(source: str, wanted: set[str]) -> None:
    assert references(source) == wanted


@pytest.mark.parametrize(
    "source",
    ['"""Of two."""', "x = 1  # Of two.", 'x = 1\n"""A field.\n\nOf two.\n"""', "# nobody"],
)
def test_words_that_are_no_terms_are_found(source: str) -> None:
    assert any(found(NO_TERMS, text) for text in prose_of(source))


# -- the table of compatibility -----------------------------------------------------------


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROWS = re.findall(
    r"^\| ([\w-]+) \| `([^`]+)` \| ([\d.]*) ?\|",
    (ROOT / "docs" / "compatibility.md").read_text(),
    re.MULTILINE,
)


def asked_for() -> dict[str, str]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    found = {each.name.lower(): str(each.specifier) for each in map(Requirement, lines)}
    return {**found, "python": PROJECT["requires-python"]}


def locked() -> dict[str, str]:
    text = "".join((ROOT / "requirements" / name).read_text() for name in ("cpu.lock", "torch.txt"))
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(("package", "wanted", "tried"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_is_what_the_project_asks_for_and_the_lock_has(
    package: str, wanted: str, tried: str
) -> None:
    assert set(wanted.split(",")) == set(asked_for()[package].split(","))
    if package != "python":
        assert tried == locked().get(package, "")


def test_what_must_fit_exactly_is_in_the_table() -> None:
    exact = {name for name, wanted in asked_for().items() if wanted.startswith("==")}
    of_development = {"grpcio-tools", "grafana-foundation-sdk"}
    assert exact - of_development <= {row[0] for row in ROWS}
    assert len(ROWS) > 10
