"""Bad words as the token sequences that vLLM makes of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from router.encoder import TextEncoder
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import BAD_SAMPLING, BadWord, TokenSequence, check_bad_words


def token_sequences(words: Sequence[BadWord], encoder: TextEncoder) -> tuple[TokenSequence, ...]:
    """Returns the sequences of all words.

    Raises InvalidRequestError for a word without a token, or too many tokens together.
    """
    sequences: list[TokenSequence] = []
    for index, word in enumerate(words):
        forms = [word] if isinstance(word, tuple) else _forms(word, encoder)
        if not forms:
            field = f"sampling.bad_words[{index}]"
            raise InvalidRequestError(
                f"{field} has no token behind its leading white space; give token ids instead",
                reason=BAD_SAMPLING,
                field=field,
            )
        sequences += forms
        check_bad_words(sequences)
    return tuple(sequences)


def _forms(word: str, encoder: TextEncoder) -> list[TokenSequence]:
    """Returns a word's tokens, and those with a space before it if only the first is another one.

    This is vLLM's rule: a form with a space that is longer or shorter is left out.
    """
    bare, spaced = (_ids(space + word.lstrip(), encoder) for space in ("", " "))
    if not bare:
        return []
    is_other = len(spaced) == len(bare) and spaced[0] != bare[0]
    return [bare, spaced] if is_other else [bare]


def _ids(text: str, encoder: TextEncoder) -> TokenSequence:
    return tuple(encoder.encode(encoder.parts(text, is_first=True)).tolist())
