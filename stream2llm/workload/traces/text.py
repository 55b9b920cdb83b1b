"""Real sentences of about so many tokens. Deterministic.

The sentences are those of Python's own help (`pydoc_data.topics`), which every
machine has. A text is a random walk through them that its key decides: equal
keys give equal texts, other keys share no beginning, so that no prefix cache
takes one document for another.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pydoc_data.topics import topics
from typing import Protocol

from stream2llm.api.requests import Content as ClientContent
from stream2llm.workload.traces.format import TOKENS_PER_WORD, Content, Document

CountTokens = Callable[[str], int]
MIN_WORDS, MAX_WORDS = 5, 60


def count_by_words(text: str) -> int:
    """An estimate, for where no tokenizer is given; at least one token."""
    return max(round(len(text.split()) * TOKENS_PER_WORD), 1)


class TextMaker:
    """Makes texts whose length a tokenizer, or an estimate, has counted."""

    def __init__(self, count_tokens: CountTokens = count_by_words) -> None:
        self._count_tokens = count_tokens
        self._sized = [(each, count_tokens(f" {each}")) for each in sentences()]
        # Long enough to cut with, in words.
        self._tokens_per_word = sum(size for _, size in self._sized) / sum(
            len(each.split()) for each, _ in self._sized
        )

    def text(self, num_tokens: int, key: str) -> str:
        """Sentences of about so many tokens, the last one cut between words; "" for none."""
        if num_tokens == 0:
            return ""
        rng = random.Random(key)
        words, left = [], num_tokens
        while left > 0:
            sentence, size = rng.choice(self._sized)
            words.append(sentence if size <= left else self._cut(sentence, left))
            left -= size
        return " ".join(words) + "\n"

    def content(self, num_tokens: int, key: str) -> Content:
        """The same with its true count."""
        text = self.text(num_tokens, key)
        return Content(text, self._count_tokens(text))

    def document(self, document: Document, key: str) -> Document:
        """A document of a token count, with text for it."""
        text = self.text(document.num_tokens, key)
        return Document(document.id, text, self._count_tokens(text))

    def _cut(self, sentence: str, num_tokens: int) -> str:
        num_words = max(round(num_tokens / self._tokens_per_word), 1)
        return " ".join(sentence.split()[:num_words])


class Filler(Protocol):
    """Makes what stands for a token count: text, or token ids."""

    def text(self, num_tokens: int, key: str) -> ClientContent:
        """So many tokens, which the key decides."""


def text_of(content: Content | Document, filler: Filler, key: str) -> ClientContent:
    """What to send: the text of the trace, or filler for its token count; nothing for 0.

    The key names the content within its trace, for instance "q7/c0"; the prefix
    has one key for all sessions, because instructions are equal.
    """
    if content.text is not None:
        return content.text
    return filler.text(content.num_tokens, key)


@cache
def sentences() -> tuple[str, ...]:
    """All of them once, in a fixed order."""
    found = (each for name in sorted(topics) for each in _sentences_of(topics[name]))
    return tuple(dict.fromkeys(found))


def _sentences_of(topic: str) -> Iterator[str]:
    for paragraph in topic.split("\n\n"):
        # Indented: code and tables. With a mark: grammar, lists.
        if paragraph[:1] in (" ", "*", "+", "-", "|", ""):
            continue
        for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(paragraph.split())):
            long_enough = MIN_WORDS <= len(sentence.split()) <= MAX_WORDS
            if long_enough and sentence[0].isupper() and sentence[-1] in ".?!":
                yield sentence
