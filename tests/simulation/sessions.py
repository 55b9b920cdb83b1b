"""What simulated clients do: plans of sessions, drawn from the seed, and the answers they expect."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from router.ordering import layout
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.token_step import FinishReason
from stream2llm.client import Document, DocumentRef
from tests.fake_workers import Brain
from tests.simulation.routers import TENANTS
from tests.simulation.vocabulary import text_of
from tests.tiny_model import EOS

Op = Literal["append", "update"]
_FIRST_ID, _LAST_ID = 3, 250
# Tokens of a document; of long ones at most ten fit into a context.
SHORT, LONG = (1, 20), (60, 90)
_PAUSES_S = (0.0, 0.0, 0.0005, 0.02, 0.3, 4.0)


@dataclass(frozen=True, slots=True)
class Change:
    """One event that changes the context."""

    pause_s: float
    op: Op
    # Without content: one that was sent before, by its id.
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """An answer."""

    # With the one that ends it.
    token_ids: list[int]
    text: str
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Plan:
    """One session, from its beginning to the seal."""

    name: str
    tenant: str
    begins_at_s: float
    one_shot: bool
    prefix: tuple[int, ...]
    changes: tuple[Change, ...]
    suffix: tuple[int, ...]
    # Before the seal.
    pause_s: float
    max_tokens: int
    stop_token_id: int | None
    stop_string: str | None
    # Whether the stop string, or the stop token's text, is part of the answer.
    shows_stop: bool
    # Whether the router may lay documents out in another order.
    is_stable: bool
    ttft_slo_ms: int | None
    streamed: bool
    # Whether the client opens the session at another router when its own is lost.
    recovers: bool
    # Seconds after which the client leaves, or stops reading; None: it stays.
    leaves_after_s: float | None
    # How long it takes to read one message.
    read_s: float
    # The context that the changes make.
    context: tuple[int, ...]
    # One-shot only: it names how many of the last tokens count, which is all of them. No session
    # can, so a lost router is asked anew only while nothing of the answer has come.
    is_cut: bool = False
    # How many answers it asks for; all of them are the same.
    num_answers: int = 1

    @property
    def prompt(self) -> list[int]:
        return [*self.prefix, *self.context, *self.suffix]

    @property
    def most_tokens(self) -> int:
        """How long the sequence ever is, its suffix and the whole answer included."""
        sizes: dict[str, int] = {}
        present, most = 0, 0
        for change in self.changes:
            for each in change.documents:
                if each.content is not None:
                    sizes[each.id] = len(each.content)
            added = sum(sizes[each.id] for each in change.documents)
            present = present * (change.op == "append") + added
            most = max(most, present)
        return len(self.prefix) + most + len(self.suffix) + self.max_tokens

    def expected(self, brain: Brain) -> Expected:
        """The whole answer, as one engine that knows all of its end gives it."""
        answer: list[int] = []
        for token_id in brain.answer(self.prompt, self.max_tokens):
            answer.append(token_id)
            is_stop = token_id in (EOS, self.stop_token_id)
            text = text_of(answer if self.shows_stop or not is_stop else answer[:-1])
            if self.stop_string and self.stop_string in text:
                before, found, _ = text.partition(self.stop_string)
                shown = before + found if self.shows_stop else before
                return Expected(answer, shown, FinishReason.STOP_STRING)
            if is_stop:
                return Expected(answer, text, FinishReason.STOP_TOKEN)
        return Expected(answer, text_of(answer), FinishReason.LENGTH)

    @property
    def sampling(self) -> SamplingParameters:
        stops = () if self.stop_token_id is None else (self.stop_token_id,)
        return SamplingParameters(
            max_tokens=self.max_tokens,
            stop_token_ids=stops,
            stop_strings=() if self.stop_string is None else (self.stop_string,),
            include_stop_string=self.shows_stop,
            truncate_prompt_tokens=len(self.prompt) if self.is_cut else None,
            n=self.num_answers,
        )


def draw_plan(random: Random, number: int, brain: Brain, lengths: tuple[int, int] = SHORT) -> Plan:
    """A session of the kinds that clients have; its documents have so many tokens."""
    one_shot = random.random() < 0.2
    is_stable = random.random() < 0.3 and not one_shot
    changes, context = ((), ()) if one_shot else _changes(random, lengths, is_stable=is_stable)
    max_tokens = random.choice((1, 2, 3, 8, 20))
    prefix, suffix = _tokens(random, 1, 6), _tokens(random, 0 if context else 1, 4)
    answer = brain.answer([*prefix, *context, *suffix], max_tokens)
    return Plan(
        name=f"session-{number}",
        tenant=random.choice(TENANTS),
        begins_at_s=random.choice((0.0, 0.0, 0.5, 3.0, 12.0)) * random.random(),
        one_shot=one_shot,
        prefix=prefix,
        changes=changes,
        suffix=suffix,
        pause_s=random.choice(_PAUSES_S),
        max_tokens=max_tokens,
        stop_token_id=answer[max_tokens // 2] if random.random() < 0.2 else None,
        stop_string=_stop_string(random, answer),
        shows_stop=random.random() < 0.3,
        is_stable=is_stable,
        ttft_slo_ms=random.choice((None, 1, 1, 5000)),
        streamed=random.random() < 0.5,
        recovers=random.random() < 0.75,
        leaves_after_s=_leaves_after_s(random),
        read_s=random.choice((0.0, 0.0, 0.0, 0.01)),
        context=context,
    )


def _leaves_after_s(random: Random) -> float | None:
    if random.random() < 0.85:
        return None
    return random.choice((0.05, 0.5, 3.0)) * random.random()


def _stop_string(random: Random, answer: list[int]) -> str | None:
    """A piece of the answer's text, in a third of the sessions."""
    text = text_of(answer)
    begin = random.randrange(len(text)) if text else 0
    piece = text[begin : begin + random.randint(1, 3)]
    # Half a character has no text that could be told in advance.
    return piece if random.random() < 0.33 and piece and "\ufffd" not in piece else None


def _changes(
    random: Random, lengths: tuple[int, int], *, is_stable: bool
) -> tuple[tuple[Change, ...], tuple[int, ...]]:
    changes: list[Change] = []
    known: dict[str, tuple[int, ...]] = {}
    context: list[tuple[int, ...]] = []
    for _ in range(random.randrange(6)):
        documents: list[Document] = []
        op: Op = random.choice(("append", "append", "update"))
        before = list(context)
        if op == "update":
            context.clear()
            kept = [each for each in known if random.random() < 0.6]
            random.shuffle(kept)
            documents += [DocumentRef(each) for each in kept]
            context += [known[each] for each in kept]
        for _ in range(random.randrange(1, 3)):
            name, tokens = f"d{len(known)}", _tokens(random, *lengths)
            known[name] = tokens
            documents.append(Document(list(tokens), name))
            context.append(tokens)
        if op == "update" and is_stable:
            context = layout(before, context)
        changes.append(Change(random.choice(_PAUSES_S), op, tuple(documents)))
    return tuple(changes), tuple(token for document in context for token in document)


def _tokens(random: Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(random.randrange(_FIRST_ID, _LAST_ID) for _ in range(random.randint(least, most)))
