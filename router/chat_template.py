"""Renders a model's chat template, and marks which characters the template wrote.

Only text that the template itself wrote may become control tokens. So its literals are
`TemplateText`, strings with a mark per character; roles, names and contents are plain
strings, and operations on plain strings return plain strings. An operation that this
module does not support loses the mark, and never adds it. The template sees its input
unchanged, so it may trim, split, compare and quote it as usual.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from jinja2 import Environment, Template, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import make_attrgetter
from jinja2.nodes import Concat, Const

_OURS, _GIVEN = b"\1", b"\0"


class TemplateText(str):
    """Text with a mark for each character: whether the template wrote it."""

    __slots__ = ("marks",)
    # One byte per character.
    marks: bytes

    def __new__(cls, text: str, marks: bytes | None = None) -> TemplateText:
        """Without `marks` no character is the template's."""
        made = super().__new__(cls, text)
        made.marks = _GIVEN * len(text) if marks is None else marks
        return made

    @classmethod
    def written(cls, text: str) -> TemplateText:
        """Returns text of which the template wrote every character."""
        return cls(text, _OURS * len(text))

    def runs(self) -> Iterable[tuple[str, bool]]:
        """Splits it into (text, whether it is the template's), as long as possible, in order."""
        begin = 0
        while begin < len(self):
            mark = self.marks[begin : begin + 1]
            other = _GIVEN if mark == _OURS else _OURS
            end = self.marks.find(other, begin)
            end = len(self) if end < 0 else end
            yield str.__getitem__(self, slice(begin, end)), mark == _OURS
            begin = end

    def written_end(self) -> TemplateText:
        """Returns what the template wrote behind the last character that it was given."""
        return self[self.marks.rfind(_GIVEN) + 1 :]

    def __str__(self) -> TemplateText:
        return self

    def __add__(self, other: str) -> TemplateText:
        return _joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> TemplateText:
        return _joined((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> TemplateText:
        taken = super().__getitem__(key)
        index = key if isinstance(key, slice) else slice(key, (key.__index__() + 1) or None)
        return TemplateText(taken, self.marks[index])

    def __mul__(self, count: SupportsIndex) -> TemplateText:
        return TemplateText(super().__mul__(count), self.marks * count.__index__())

    def join(self, parts: Iterable[str]) -> TemplateText:
        """As str.join."""
        joined: list[str] = []
        for part in parts:
            joined += [self, part] if joined else [part]
        return _joined(joined)

    def strip(self, characters: str | None = None) -> TemplateText:
        """As str.strip."""
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None) -> TemplateText:
        """As str.lstrip."""
        return self[len(self) - len(super().lstrip(characters)) :]

    def rstrip(self, characters: str | None = None) -> TemplateText:
        """As str.rstrip."""
        return self[: len(super().rstrip(characters))]

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> TemplateText:
        """As str.replace."""
        if not old:
            return TemplateText(super().replace(old, new, count))
        return _like(new).join(self.split(old, count))

    def split(  # type: ignore[override]
        self, separator: str | None = None, maxsplit: SupportsIndex = -1
    ) -> list[TemplateText]:
        """As str.split."""
        parts, begin = [], 0
        for part in super().split(separator, maxsplit):
            begin = self.index(part, begin)
            parts.append(self[begin : begin + len(part)])
            begin += len(part) + len(separator or "")
        return parts


def _like(text: str) -> TemplateText:
    return text if isinstance(text, TemplateText) else TemplateText(text)


def _joined(parts: Iterable[str]) -> TemplateText:
    marked = [_like(part) for part in parts]
    return TemplateText("".join(marked), b"".join(part.marks for part in marked))


class ChatRenderer:
    """One chat template, compiled. Thread-safe."""

    def __init__(self, template: str, special_tokens: Mapping[str, Any]) -> None:
        """`special_tokens`: bos_token and the like, each a text or a list of texts."""
        self._template = _compile(template)
        # They belong to the model, so they count as the template's text.
        self._special_tokens = {name: _written(given) for name, given in special_tokens.items()}
        self.source = template
        # Names that no client may give another meaning.
        self.reserved_names = frozenset(
            {*_OWN_VARIABLES, *special_tokens, *self._template.environment.globals}
        )

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> TemplateText:
        """Renders a conversation, by default up to the beginning of the model's answer.

        Raises the template's errors.
        """
        rendered = self._template.render(
            {
                **(variables or {}),
                **self._special_tokens,
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _like(rendered)


# What `render` sets itself, and what callers of transformers' own renderer set.
_OWN_VARIABLES = (
    *("messages", "tools", "documents", "add_generation_prompt"),
    *("continue_final_message", "chat_template", "tokenize"),
)


def _written(given: Any) -> Any:
    if isinstance(given, str):
        return TemplateText.written(given)
    return [_written(each) for each in given] if isinstance(given, list) else given


def _compile(template: str) -> Template:
    """Compiles it as transformers does, in the same sandbox, with marked literals."""
    from transformers.utils import chat_template_utils  # here: importing it takes seconds

    plain: Template = chat_template_utils._compile_jinja_template(template)
    # Not optimised: folding literals into a list or a dictionary would lose their marks.
    environment = plain.environment.overlay(optimized=False)
    vars(environment).update(
        code_generator_class=_MarkingCodeGenerator,
        concat=_joined,
        written=TemplateText.written,
        join_texts=_join_texts,
        filters={**environment.filters, "join": _join_filter},
    )
    return environment.from_string(template)


def _join_texts(parts: Iterable[Any]) -> TemplateText:
    """Implements the operator `~`."""
    return _joined(map(str, parts))


@pass_environment
def _join_filter(
    environment: Environment,
    parts: Iterable[Any],
    separator: str = "",
    attribute: str | int | None = None,
) -> TemplateText:
    chosen = parts if attribute is None else map(make_attrgetter(environment, attribute), parts)
    return _like(separator).join(map(str, chosen))


class _MarkingCodeGenerator(CodeGenerator):
    """Compiles the template's literals to text that is marked as the template's."""

    def visit_Const(self, node: Const, frame: Frame) -> None:  # noqa: N802 - jinja
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.written({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: Concat, frame: Frame) -> None:  # noqa: N802 - jinja
        self.write("environment.join_texts((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.written({super()._output_const_repr(group)})"
