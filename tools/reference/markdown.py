"""Markdown elements of generated pages."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from stream2llm.workload.table import Table, markdown

WIDTH = 120


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of text; cells must not contain line breaks, pipes are escaped."""
    return markdown(Table(header, list(rows), num_left=len(header)))


def code(text: str) -> str:
    """Returns text in code font."""
    return f"`{text}`" if "`" not in text else f"`` {text} ``"


def one_line(text: str) -> str:
    """Returns a comment, docstring or help text as one line of a table; keeps `code` markup."""
    parts = re.split(r"(`[^`]*`)", _joined(text))
    return "".join(
        part if part.startswith("`") else re.sub(r"([\[\]<*])", r"\\\1", part) for part in parts
    )


def prose(text: str) -> str:
    """Reflows paragraphs to lines of at most WIDTH characters; indented blocks become code."""
    blocks = re.split(r"\n\s*\n", textwrap.dedent(text).strip("\n"))
    return "\n\n".join(_block(block) for block in blocks if block.strip())


def page(title: str, source: str, introduction: str, sections: Iterable[str]) -> str:
    """Returns a whole page, with a note for those who would edit it."""
    note = f"<!-- Generated from {source} by `make docs-reference`. Edit that, not this. -->"
    return "\n\n".join([note, f"# {title}", prose(introduction), *sections]) + "\n"


def _block(block: str) -> str:
    if block.startswith("    "):
        return f"```\n{textwrap.dedent(block)}\n```"
    return textwrap.fill(_joined(block), WIDTH, break_long_words=False, break_on_hyphens=False)


def _joined(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
