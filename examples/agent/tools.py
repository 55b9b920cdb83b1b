"""The agent's tools: what Python itself knows of a function or class, and which are asked."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_WORDS = 90
_DOTTED = re.compile(r"\b[a-z_]\w*(?:\.\w+)+")


def described(name: str) -> str:
    """The beginning of its docstring."""
    words = (inspect.getdoc(pkgutil.resolve_name(name)) or "It has no docstring.").split(" ")
    return " ".join(words[:MAX_WORDS])


def signature(name: str) -> str:
    """Returns the signature of a function, or that Python knows none."""
    try:
        return f"{name}{inspect.signature(pkgutil.resolve_name(name))}"
    except (TypeError, ValueError):  # not callable, or written in C
        return f"{name} has no signature that Python knows."


def neighbours(name: str) -> str:
    """Names up to 20 others of its module."""
    module = inspect.getmodule(pkgutil.resolve_name(name))
    public = [each for each in vars(module) if not each.startswith("_")] if module else []
    return f"Beside {name} there are: {', '.join(public[:20])}."


TOOLS: Mapping[str, Callable[[str], str]] = {
    "description": described,
    "signature": signature,
    "neighbours": neighbours,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A tool, and what it is asked for."""

    tool: str
    name: str

    def result(self) -> str:
        """Runs it; a name that Python does not know is a result, too."""
        try:
            text = TOOLS[self.tool](self.name)
        except (ImportError, AttributeError) as error:
            text = f"It cannot be found: {error}"
        return f"# {self.tool} of {self.name}\n{text}\n\n"


def calls_for(question: str) -> tuple[Call, ...]:
    """Every tool for every dotted name of the question. Pure.

    A rule in place of the model's choice, for which the default model is too small.
    """
    names = dict.fromkeys(_DOTTED.findall(question))
    return tuple(Call(tool, name) for name in names for tool in TOOLS)
