"""Some ten thousand real texts that every installation has: docstrings of Python and packages."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version

# In this order, until there are enough texts; all come with the [cpu] and [gpu] extras.
PACKAGES = ("numpy", "networkx", "aiohttp", "pydantic", "fsspec", "sympy", "ray")
_NOT_DOCUMENTED = {"test", "tests", "idlelib", "site-packages", "encodings", "lib2to3"}
MIN_WORDS, MAX_WORDS = 12, 70
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Text:
    """A function or class, and what its docstring says of it."""

    # Dotted, from the module on; unique in a corpus.
    name: str
    docstring: str

    @property
    def short_name(self) -> str:
        """The name without module and class."""
        return self.name.rpartition(".")[2]

    @property
    def content(self) -> str:
        """The text as a document of a prompt."""
        return f"# `{self.name}`\n{self.docstring}\n\n"


def sources() -> str:
    """Names the sources of the texts with their versions; equal names have equal texts."""
    versions = (f"{name} {version(name)}" for name in PACKAGES)
    return ", ".join((f"python {python_version()}", *versions))


def read_corpus(count: int) -> tuple[Text, ...]:
    """The first so many texts; fewer where the packages have no more."""
    found: dict[str, Text] = {}
    for folder, package in _folders():
        for file in _public_modules(folder):
            module = ".".join((*package, *file.relative_to(folder).with_suffix("").parts))
            for text in texts_in(file.read_text(encoding="utf-8", errors="replace"), module):
                found.setdefault(text.name, text)
            if len(found) >= count:
                return tuple(found.values())[:count]
    return tuple(found.values())


def _folders() -> Iterator[tuple[Path, tuple[str, ...]]]:
    yield Path(sysconfig.get_path("stdlib")), ()
    for name in PACKAGES:
        yield Path(sysconfig.get_path("purelib")) / name, (name,)


def _public_modules(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("_") or path.name in _NOT_DOCUMENTED:
            continue
        if path.is_dir():
            yield from _public_modules(path)
        elif path.suffix == ".py":
            yield path


def texts_in(source: str, module: str) -> Iterator[Text]:
    """The public functions and classes of a module with a docstring worth reading. Pure."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates of code, which some packages have
        return
    yield from _texts_of(tree.body, module)


def _texts_of(body: Iterable[ast.stmt], prefix: str) -> Iterator[Text]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        docstring = beginning(ast.get_docstring(node) or "")
        if len(docstring.split()) >= MIN_WORDS:
            yield Text(name, docstring)
        if isinstance(node, ast.ClassDef):
            yield from _texts_of(node.body, name)


def beginning(docstring: str) -> str:
    """The first whole lines of it, at most MAX_WORDS words."""
    kept: list[str] = []
    num_words = 0
    for line in docstring.strip().splitlines():
        num_words += len(line.split())
        if num_words > MAX_WORDS:
            break
        kept.append(line.strip())
    return "\n".join(kept).strip()


def sentences(docstring: str) -> list[str]:
    """The prose sentences of it, each in one line."""
    paragraphs = docstring.split("\n\n")
    return [
        " ".join(sentence.split())
        for paragraph in paragraphs
        for sentence in _SENTENCE_END.split(paragraph)
    ]
