"""The example's own questions: which function does what this sentence says?"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from examples.vector_search.corpus import Text, sentences

MIN_SENTENCE_WORDS, MAX_SENTENCE_WORDS = 7, 25


@dataclass(frozen=True, slots=True)
class Question:
    """A sentence of one text, whose name is the answer."""

    sentence: str
    # The number of the text.
    wanted: int
    name: str

    @property
    def text(self) -> str:
        """As a person asks it."""
        return f'Which function or class is described like this: "{self.sentence}"'

    @property
    def prompt(self) -> str:
        """What the model goes on from: in a chat the small default model talks round the name."""
        return f'The function or class described as "{self.sentence}" is called `'

    def is_answered_by(self, answer: str) -> bool:
        """Whether the answer has the name, as a word of its own."""
        return re.search(rf"(?<!\w){re.escape(self.name)}(?!\w)", answer) is not None


def questions(texts: Sequence[Text], count: int, seed: int = 0) -> list[Question]:
    """So many questions about texts drawn at random; the seed decides which."""
    candidates = list(_candidates(texts))
    return random.Random(f"questions/{seed}").sample(candidates, min(count, len(candidates)))


def _candidates(texts: Sequence[Text]) -> Iterator[Question]:
    """The second sentence of a text, where it is prose, its own, and does not have the name."""
    of_texts = [_second_sentence(text) for text in texts]
    counts = Counter(of_texts)
    for number, (text, sentence) in enumerate(zip(texts, of_texts, strict=True)):
        is_prose = sentence[:1].isupper() and sentence.endswith(".")
        fits = MIN_SENTENCE_WORDS <= len(sentence.split()) <= MAX_SENTENCE_WORDS
        question = Question(sentence, number, text.short_name)
        if is_prose and fits and counts[sentence] == 1 and not question.is_answered_by(sentence):
            yield question


def _second_sentence(text: Text) -> str:
    """Empty where there is none."""
    return "".join(sentences(text.docstring)[1:2])
