"""A change of a session's sequence, as prefill gets it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.serving.sessions.prefix import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Splice:
    """Makes `sequence` of one that begins with the same `keep_tokens` tokens."""

    keep_tokens: int
    sequence: Tokens
    # Tokens of new content in the event.
    num_new_tokens: int
    # Whether the sequence is unchanged.
    is_empty: bool

    @property
    def tail(self) -> Tokens:
        """The tokens that follow those kept."""
        return self.sequence[self.keep_tokens :]

    def then(self, following: Splice) -> Splice:
        """Joins both into one."""
        return Splice(
            min(self.keep_tokens, following.keep_tokens),
            following.sequence,
            self.num_new_tokens + following.num_new_tokens,
            self.is_empty and following.is_empty,
        )
