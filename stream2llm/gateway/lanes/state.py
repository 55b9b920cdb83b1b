"""Which response a request continues, and what a connection remembers. Pure.

    no previous response             OPEN    the lane begins anew
    the lane's newest response       APPEND
    an older one of the lane         UPDATE  the responses behind it are forgotten
    one of another lane              FORK    the lane begins anew there; both stay

Nothing changes until a response is complete (`committed`): a request that fails can be
repeated from the same response. All values are immutable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from router.arrangement import Arrangement
from stream2llm.api.errors import InvalidRequestError, OverloadedError
from stream2llm.api.requests import ChatMessage
from stream2llm.gateway.lanes.conversation import Conversation, Given, texts_by_id

LaneName = str
# What a response takes beside its texts, in characters: itself, and its places in tuples.
RESPONSE_CHARS, _PLACE_CHARS = 1024, 8


class Kind(StrEnum):
    """How a request goes on."""

    OPEN = "open"
    APPEND = "append"
    UPDATE = "update"
    FORK = "fork"


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Bounds of what one connection, or one caller without a connection, makes us remember."""

    max_lanes: int = 64
    # Responses that one lane remembers; the oldest are forgotten.
    max_responses: int = 1024
    # Characters of all conversations and documents together.
    max_chars: int = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """A response that can be continued."""

    id: str
    conversation: Conversation
    # Characters that it has beyond the one before.
    num_chars: int
    # How its documents were laid out, with the stable ordering.
    layout: Arrangement = field(default_factory=Arrangement)

    @property
    def alone(self) -> Kept:
        """The same without one before it."""
        return replace(self, num_chars=_size(self.conversation))


@dataclass(frozen=True, slots=True)
class Line:
    """The responses of one lane, oldest first, and the documents that it was sent, by id."""

    responses: tuple[Kept, ...] = ()
    documents: Mapping[str, str] = field(default_factory=dict)
    # Made once: every request of a caller asks all of its lines.
    by_id: Mapping[str, Kept] = field(init=False, repr=False, compare=False)
    # Characters of all texts; a document may count twice.
    num_chars: int = field(init=False, compare=False)
    # With what the responses take beside their texts.
    size_chars: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        named = sum(map(len, self.documents.values()))
        num_chars = named + sum(each.num_chars for each in self.responses)
        beside = sum(map(_size_beside_texts, self.responses))
        object.__setattr__(self, "by_id", {each.id: each for each in self.responses})
        object.__setattr__(self, "num_chars", num_chars)
        object.__setattr__(self, "size_chars", num_chars + beside)


@dataclass(frozen=True, slots=True)
class Step:
    """A request that can be served."""

    lane: LaneName
    kind: Kind
    # The response that it continues.
    base: Kept | None
    # With what the request brings.
    conversation: Conversation
    given: Given
    # Documents that can be named in the lane from then on, by id.
    documents: Mapping[str, str] = field(default_factory=dict)

    @property
    def begins_line(self) -> bool:
        """Whether the lane's responses before it are forgotten, all of them."""
        return self.kind in (Kind.OPEN, Kind.FORK)


@dataclass(frozen=True, slots=True)
class Lanes:
    """All lanes that share their responses."""

    limits: LaneLimits = LaneLimits()
    lines: Mapping[LaneName, Line] = field(default_factory=dict)

    @property
    def num_chars(self) -> int:
        """Characters remembered."""
        return sum(line.num_chars for line in self.lines.values())

    @property
    def size_chars(self) -> int:
        """The same, with what responses take beside their texts."""
        return sum(line.size_chars for line in self.lines.values())

    def step(
        self,
        lane: LaneName,
        previous_id: str | None,
        given: Given,
        stored: Kept | None = None,
    ) -> Step:
        """What a request does in a lane; raises where it cannot be served.

        `stored` is the previous response where another connection has left it.
        """
        if lane not in self.lines and len(self.lines) >= self.limits.max_lanes:
            raise _too_many(f"{self.limits.max_lanes} lanes are in use", "TOO_MANY_LANES")
        kind, base = self._continued(lane, previous_id, stored)
        before = Conversation() if base is None else base.conversation
        known = {} if base is None else self._documents_at(base)
        documents = texts_by_id(known, given.documents)
        step = Step(lane, kind, base, before.with_input(given, documents), given, documents)
        self._check_size(step)
        return step

    def committed(
        self,
        step: Step,
        response_id: str,
        answer: Sequence[ChatMessage] | None,
        layout: Arrangement = Arrangement(),  # noqa: B008 - frozen
    ) -> Lanes:
        """The lanes after the response to `step`.

        `answer` has the model's turns; it is None where no answer was asked for.
        """
        conversation, num_chars = step.conversation, step.given.num_chars
        if answer is not None:
            conversation = conversation.with_answer(answer)
            num_chars += Given(tuple(answer)).num_chars
        kept = self._kept_before(step)
        if step.begins_line and step.base is not None:
            num_chars += _size(step.base.conversation)
        newest = Kept(response_id, conversation, num_chars, layout)
        line = Line(self._bounded((*kept, newest)), step.documents)
        return replace(self, lines={**self.lines, step.lane: line})

    def find(self, response_id: str) -> Kept | None:
        """The response with this id; None if there is none that can be continued."""
        name = self.lane_of(response_id)
        return None if name is None else self.lines[name].by_id[response_id]

    def with_stored(self, lane: LaneName, response: Kept) -> Lanes:
        """The lanes with another one, which begins with a response of another connection."""
        return replace(self, lines={**self.lines, lane: Line((response.alone,))})

    def lane_of(self, response_id: str) -> LaneName | None:
        """The lane of a response that can be continued; None if there is none."""
        return next((name for name, line in self.lines.items() if response_id in line.by_id), None)

    def without(self, lane: LaneName) -> Lanes:
        """The lanes after one was closed."""
        return replace(self, lines={k: line for k, line in self.lines.items() if k != lane})

    def _documents_at(self, base: Kept) -> Mapping[str, str]:
        """Documents that can be named where a response is continued, by id."""
        source = self.lane_of(base.id)
        sent = {} if source is None else self._line(source).documents
        return {**texts_by_id({}, base.conversation.documents), **sent}

    def _check_size(self, step: Step) -> None:
        freed = self._line(step.lane).num_chars if step.begins_line else 0
        if self.num_chars - freed + step.given.num_chars > self.limits.max_chars:
            raise _too_many(
                f"conversations have more than {self.limits.max_chars} characters",
                "STATE_TOO_LARGE",
            )

    def _line(self, lane: LaneName) -> Line:
        return self.lines.get(lane, Line())

    def _continued(
        self, lane: LaneName, previous_id: str | None, stored: Kept | None
    ) -> tuple[Kind, Kept | None]:
        if previous_id is None:
            return Kind.OPEN, None
        line = self._line(lane)
        if (here := line.by_id.get(previous_id)) is not None:
            return (Kind.APPEND if here is line.responses[-1] else Kind.UPDATE), here
        elsewhere = self.find(previous_id) or stored
        if elsewhere is None:
            raise not_found(previous_id)
        return Kind.FORK, elsewhere

    def _kept_before(self, step: Step) -> tuple[Kept, ...]:
        """The lane's responses up to the one that is continued."""
        if step.begins_line or step.base is None:
            return ()
        responses = self._line(step.lane).responses
        ids = [each.id for each in responses]
        return responses[: ids.index(step.base.id) + 1]

    def _bounded(self, responses: tuple[Kept, ...]) -> tuple[Kept, ...]:
        """Forgets the oldest; what they said is still part of those behind them."""
        num_over = len(responses) - self.limits.max_responses
        if num_over <= 0:
            return responses
        first = responses[num_over]
        forgotten = sum(each.num_chars for each in responses[:num_over])
        return (replace(first, num_chars=first.num_chars + forgotten), *responses[num_over + 1 :])


def not_found(response_id: str) -> InvalidRequestError:
    """The error for a response that is unknown, forgotten or another caller's."""
    return InvalidRequestError(
        f"Previous response with id '{response_id}' not found.",
        reason="PREVIOUS_RESPONSE_NOT_FOUND",
        field="previous_response_id",
    )


def _size(conversation: Conversation) -> int:
    return Given(conversation.turns, conversation.documents).num_chars


def _size_beside_texts(kept: Kept) -> int:
    places = len(kept.conversation.turns) + len(kept.conversation.documents)
    return RESPONSE_CHARS + _PLACE_CHARS * places


def _too_many(what: str, reason: str) -> OverloadedError:
    return OverloadedError(
        f"{what}, which is the limit of a connection; open another one, or begin anew in a lane",
        reason=reason,
    )
