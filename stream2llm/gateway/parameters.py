"""Parameters of OpenAI's and vLLM's APIs that are not honoured, each with what it may say anyway.

The tables are all there is: a parameter that is honoured from now on leaves its table and
becomes a field of `requests.py`. A parameter that stands nowhere is refused as unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError, UnsupportedError

# Values with which a parameter changes nothing; null is one for all.
Neutral = tuple[Any, ...]

_SAMPLING: Mapping[str, Neutral] = {
    "best_of": (1,),
    "spaces_between_special_tokens": (True,),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "echo": (False,),
    "priority": (0,),
}
_ACCOUNT: Mapping[str, Neutral] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": (),
    "moderation": (),
}
CHAT: Mapping[str, Neutral] = {
    **_SAMPLING,
    **_ACCOUNT,
    "functions": ([],),
    "function_call": ("none", "auto"),
    "chat_template": (),
    "add_special_tokens": (False,),
    "documents": ([],),
    "reasoning_effort": (),
    "verbosity": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
COMPLETION: Mapping[str, Neutral] = {
    **_SAMPLING,
    **_ACCOUNT,
    "suffix": ("",),
    "add_special_tokens": (True,),
}
RESPONSES: Mapping[str, Neutral] = {
    "n": (1,),
    **_SAMPLING,
    **_ACCOUNT,
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({},),
    "truncation": ("disabled",),
    "stream_options": ({}, {"include_obfuscation": False}),
}
# They change no answer: names for the caller's own books.
WITHOUT_EFFECT = frozenset(
    ("user", "metadata", "safety_identifier", "prompt_cache_key", "request_id")
)


def check_others(given: Mapping[str, Any], not_honoured: Mapping[str, Neutral]) -> None:
    """Raises for a parameter that would change the answer, and for one that is unknown.

    `given` has what a request holds beside the parameters that are honoured.
    """
    for name, value in given.items():
        if name in WITHOUT_EFFECT:
            continue
        if name not in not_honoured:
            raise InvalidRequestError(
                f"unknown parameter {arguments.shown(name)}", reason="UNKNOWN_PARAMETER", field=name
            )
        if value is not None and not _is_among(value, not_honoured[name]):
            raise UnsupportedError(
                f"{name} is not supported{_otherwise(not_honoured[name])}", field=name
            )


def _is_among(value: Any, neutral: Iterable[Any]) -> bool:
    """Whether the value is one of them; True is not 1."""
    return any(
        value == each and isinstance(value, bool) is isinstance(each, bool) for each in neutral
    )


def _otherwise(neutral: Neutral) -> str:
    values = " or ".join(map(repr, neutral))
    return f"; it may be left out, or be {values}" if values else "; leave it out"
