"""The reference of the HTTP API: each route's parameters, and the statuses of errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from stream2llm.api.errors import ERRORS_BY_STATUS
from stream2llm.gateway import parameters
from stream2llm.gateway.errors import answered
from stream2llm.gateway.requests import AnswerRequest
from tools.reference.markdown import code, prose, table


def sections(routes: Mapping[str, type[AnswerRequest]]) -> Iterator[str]:
    """Yields one section for each route, and that of errors."""
    for route, kind in routes.items():
        yield "\n\n".join(
            [f"## {code(f'POST {route}')}", _honoured(kind), _not_honoured(kind.not_honoured)]
        )
    yield f"## Errors\n\n{_errors()}"


def _honoured(kind: type[AnswerRequest]) -> str:
    rows = [(code(name), _type(field.annotation)) for name, field in kind.model_fields.items()]
    return table(("parameter", "type"), rows)


def _type(annotation: Any) -> str:
    return code(" | ".join(_names(annotation)))


def _names(annotation: Any) -> Iterator[str]:
    """Yields the names of the types that a value may have, but for null."""
    if get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _names(each)
    elif get_origin(annotation) is Literal:
        yield from map(repr, get_args(annotation))
    elif annotation is not NoneType:
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        # A generic type is a type too, and its name lacks what it is made of.
        text = str(annotation) if get_args(annotation) else text
        yield re.sub(r"[\w.]+\.(\w+)", r"\1", text)


def _not_honoured(names: Mapping[str, parameters.Neutral]) -> str:
    rows = [
        (code(name), ", ".join(code(repr(value)) for value in neutral))
        for name, neutral in names.items()
    ]
    without = ", ".join(map(code, sorted(parameters.WITHOUT_EFFECT)))
    refused = table(("refused", "but for"), rows)
    return f"{refused}\n\n{prose(f'Taken, and without effect: {without}.')}"


def _errors() -> str:
    rows = []
    for kind in ERRORS_BY_STATUS.values():
        status, kind_name = answered(kind("", retry_after_s=1.0))
        rows.append((code(kind.__name__), code(kind.status_name), str(status.value), kind_name))
    return table(("error", "status of gRPC", "status of HTTP", "type"), rows)
