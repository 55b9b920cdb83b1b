"""What an answer must look like: a JSON schema, a regular expression, a grammar or a choice.

The engines' grammar backends do the work. Checked here is what is cheap to check without
one, and how large a grammar becomes, because compiling takes time and memory for each of its
states: that follows from the size and from bounded repetitions, which are unrolled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError

BAD_STRUCTURED_OUTPUT = "BAD_STRUCTURED_OUTPUT"
FIELD = "sampling.structured_output"
# In UTF-8; of choices, all of them together.
MAX_CONSTRAINT_BYTES = 64 * 1024
MAX_CHOICES = 1000
# Sum of the bounds of all repetitions, each counted up to 1,000. Measured with XGrammar and 49,152
# tokens: 1,000 take 2 to 3 MB and up to 4 s of one core.
MAX_REPETITIONS = 20_000
_MOST_UNROLLED = 1000
# {n}, {n,m} and {n,} of regular expressions and EBNF, ~ n..m of Lark. Possessive: a text of a
# stranger must not make it backtrack.
_REPETITION = re.compile(
    r"\{\s*+([0-9]++)\s*+(?:,\s*+([0-9]*+)\s*+)?\}|~\s*+([0-9]++)(?:\s*+\.\.\s*+([0-9]++))?"
)
_BOUNDS = frozenset(
    f"{side}{what}" for side in ("min", "max") for what in ("Length", "Items", "Properties")
)


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """Constrains the tokens of an answer; exactly one field is set.

    A list that is one item by itself, `choices="yes"`, is a list of one. All else is the
    server's to check, with `validate`. An answer may still end early, at `max_tokens` or a
    stop string.
    """

    json_schema: str | None = None
    """The answer is JSON that this JSON schema, in JSON, allows; see `from_json_schema`."""
    json_object: bool = False
    """The answer is a JSON object."""
    regex: str | None = None
    """The whole answer matches this regular expression."""
    choices: tuple[str, ...] = ()
    """The answer is one of these texts. At most 1,000."""
    grammar: str | None = None
    """The answer is a sentence of this context-free grammar, in EBNF (GBNF) or Lark's syntax."""
    structural_tag: str | None = None
    """Free text with constrained parts between tags: a structural tag of XGrammar, in JSON."""

    def __post_init__(self) -> None:
        if type(self.choices) is not tuple:
            items = arguments.many(self.choices, f"{FIELD}.choices", "a list of texts", str)
            object.__setattr__(self, "choices", tuple(items))  # frozen for everybody else

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any] | bool) -> StructuredOutput:
        """The constraint of a schema as Python has it; pydantic's `model_json_schema()` is one."""
        return cls(json_schema=json.dumps(schema))

    def validate(self) -> None:
        """Raises InvalidRequestError naming the bad field."""
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if len(given) != 1:
            names = ", ".join(each.name for each in fields(self))
            has = f"sets {', '.join(given)}" if given else "sets nothing"
            raise refused(f"{has}; exactly one of {names} must be set")
        (name,) = given
        if name != "json_object":
            self._validate_text(name)
        if name in ("json_schema", "structural_tag"):
            self._validate_json(name)
        elif name in ("regex", "grammar"):
            _check_repetitions(name, _repetitions_of(getattr(self, name)))

    def _validate_text(self, name: str) -> None:
        value: str | tuple[str, ...] = getattr(self, name)
        texts = value if isinstance(value, tuple) else (value,)
        if len(texts) > MAX_CHOICES:
            raise refused(f"has {len(texts)} entries; at most {MAX_CHOICES} are allowed", name)
        if not all(texts):
            raise refused("is empty, or has an empty entry", name)
        num_bytes = sum(len(each.encode()) for each in texts)
        if num_bytes > MAX_CONSTRAINT_BYTES:
            limit = f"at most {MAX_CONSTRAINT_BYTES} are allowed"
            raise refused(f"has {num_bytes} bytes; {limit}", name)

    def _validate_json(self, name: str) -> None:
        try:
            value = json.loads(getattr(self, name))
            num_repetitions = sum(_repetitions_in(value))
        except RecursionError:
            raise refused("is nested too deeply", name) from None
        except ValueError as error:
            raise refused(f"is not JSON: {error}", name) from None
        if not isinstance(value, dict) and not (name == "json_schema" and isinstance(value, bool)):
            raise refused("is not a JSON object", name)
        _check_repetitions(name, num_repetitions)


def _check_repetitions(name: str, count: int) -> None:
    if count > MAX_REPETITIONS:
        raise refused(
            f"has bounded repetitions (as {{n,m}} or maxLength) that add up to {count}, each counted"
            f" up to {_MOST_UNROLLED}; at most {MAX_REPETITIONS} are allowed",
            name,
        )


def _repetitions_in(value: Any) -> Iterator[int]:
    """Yields what each bound of a JSON schema, and each text in it, repeats."""
    if isinstance(value, str):
        yield _repetitions_of(value)
    for key, item in value.items() if isinstance(value, dict) else ():
        if key in _BOUNDS and isinstance(item, int | float):
            yield int(min(item, _MOST_UNROLLED)) if item > 0 else 0  # NaN is not
        yield from _repetitions_in(item)
    for item in value if isinstance(value, list) else ():
        yield from _repetitions_in(item)


def _repetitions_of(text: str) -> int:
    bounds = (filter(None, each) for each in _REPETITION.findall(text))
    return sum(max(map(_bound, numbers)) for numbers in bounds)


def _bound(digits: str) -> int:
    """Returns a number of any length, as long as a text may be."""
    digits = digits.lstrip("0")
    return min(int(digits[:5] or 0), _MOST_UNROLLED)


def refused(why: str, name: str = "") -> InvalidRequestError:
    """The error for a structured output that cannot be; `why` follows the field's name."""
    field = f"{FIELD}.{name}" if name else FIELD
    return InvalidRequestError(f"{field} {why}", reason=BAD_STRUCTURED_OUTPUT, field=field)
