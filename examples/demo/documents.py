"""What the demo asks about, and when its documents arrive.

The documents are topics of `pydoc_data`, which every Python has. Three ways of
retrieving them have the same clock: the final list is complete at the same
moment in all three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stream2llm.client import ChatMessage, Document

CountTokens = Callable[[str], int]

# In the order in which the answer wants them: what matters most comes last.
TOPICS = ("assert", "raise", "exceptions", "try", "with", "context-managers")
# What a rough first search finds besides.
NOISE_TOPICS = ("while", "return")
QUESTION = "What is the purpose of a context manager?"
SLOT = "{{context}}"

MAX_CONTEXT_TOKENS = 2_000
MAX_DOCUMENT_TOKENS = 340


class Way(StrEnum):
    """How the context reaches the server."""

    ONCE = "at once"
    APPEND = "append"
    UPDATE = "update"


EXPLANATIONS: dict[Way, str] = {
    Way.ONCE: "waits for all documents, then sends one request, as without Stream2LLM",
    Way.APPEND: "sends each document when it arrives; prefill runs meanwhile",
    Way.UPDATE: "sends a rough list at once, then refinements that replace its tail",
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something retrieval has found, `at_s` after it began."""

    at_s: float
    # The documents to send: more of them, or the whole new list.
    documents: tuple[Document, ...]
    replaces: bool = False


def documents_from(
    topics: Mapping[str, str], names: Sequence[str], count_tokens: CountTokens
) -> tuple[Document, ...]:
    """The named topics, each trimmed at a paragraph to its share of the context."""
    share = min(MAX_DOCUMENT_TOKENS, MAX_CONTEXT_TOKENS // len(names))
    return tuple(
        Document(trimmed(f"# {name}\n\n{topics[name].strip()}", share, count_tokens), id=name)
        for name in names
    )


def trimmed(text: str, max_tokens: int, count_tokens: CountTokens) -> str:
    """The longest beginning in whole paragraphs that fits; ends in an empty line."""
    kept: list[str] = []
    for paragraph in text.split("\n\n"):
        if count_tokens(_joined([*kept, paragraph])) > max_tokens:
            break
        kept.append(paragraph)
    while kept and _announces(kept[-1]):
        kept.pop()
    return _joined(kept)


def _joined(paragraphs: Sequence[str]) -> str:
    return "".join(f"{paragraph}\n\n" for paragraph in paragraphs)


def _announces(paragraph: str) -> bool:
    """Whether it is a heading or an introduction of something that was cut off."""
    return paragraph.endswith(("==", "--", ":"))


def arrivals_of(
    way: Way, documents: Sequence[Document], noise: Sequence[Document], gap_s: float
) -> tuple[Arrival, ...]:
    """When what arrives; the last arrival completes the list, at the same time in all ways."""
    if way is Way.ONCE:
        return (Arrival(gap_s * len(documents), tuple(documents)),)
    if way is Way.APPEND:
        return tuple(
            Arrival(gap_s * number, (document,)) for number, document in enumerate(documents, 1)
        )
    return _refinements(documents, noise, gap_s)


def _refinements(
    documents: Sequence[Document], noise: Sequence[Document], gap_s: float
) -> tuple[Arrival, ...]:
    """A rough list, then three that keep ever more of its beginning."""
    first, second, third, fourth, fifth, last = documents
    x, y = noise
    lists = (
        (1, (first, second, x, fourth, third, y)),
        (3, (first, second, third, fourth, x, fifth)),
        (5, (first, second, third, fourth, fifth, x)),
        (6, (first, second, third, fourth, fifth, last)),
    )
    return tuple(Arrival(gap_s * at, new_list, replaces=True) for at, new_list in lists)


def conversation(way: Way, run_id: str) -> list[ChatMessage]:
    """The chat; its first line is new each time, so that no prefix cache knows what follows."""
    system = f"Run {run_id}, {way}. You answer questions from the documents, in one sentence."
    return [ChatMessage("system", system), ChatMessage("user", f"{SLOT}Question: {QUESTION}")]
