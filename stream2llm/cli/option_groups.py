"""Options that several commands share, as one dataclass parameter of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from typing import Any, get_type_hints


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Makes the fields of a command's dataclass parameters options of the command.

    A field is annotated as a parameter would be: `Annotated[str, typer.Option(...)]`. The
    command is called with the dataclasses; typer, which reads the signature, sees the fields.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    own = [each for name, each in signature.parameters.items() if name not in groups]
    parameters = [*own, *(each for group in groups.values() for each in _parameters(group))]

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: group(**{each.name: values.pop(each.name) for each in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    changed: Any = run
    changed.__signature__ = signature.replace(parameters=parameters)
    changed.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameters(group: Any) -> Iterator[Parameter]:
    types = get_type_hints(group, include_extras=True)
    for each in fields(group):
        default = _default(each)
        yield Parameter(
            each.name, Parameter.KEYWORD_ONLY, default=default, annotation=types[each.name]
        )


def _default(field: Field[Any]) -> Any:
    return Parameter.empty if field.default is MISSING else field.default
