"""One session at a model prefill worker: its tokens, and what is computed of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from stream2llm.api.errors import InternalError
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.token_bytes import token_list


@dataclass(eq=False)
class Prefilled:
    """One session: its tokens, and how many of them are computed."""

    opening: Any
    sequence: list[int] = field(default_factory=list)
    computed: int = 0
    # All that was computed, and what of it was in vain.
    num_computed: int = 0
    invalidated: int = 0
    revision: int = 0
    stable_tokens: int = 0
    seal: Any = None
    uncomputed_at_seal: int = 0
    # Those of the present offer, and its name.
    offered: int = 0
    offer: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    # Where steps are planned (planned.py): its name there, and whether it has its first token.
    name: str = ""
    is_answered: bool = False
    # Tokens that the last event has kept.
    num_kept: int = 0

    @property
    def num_to_compute(self) -> int:
        """The last token waits for the seal."""
        held_back = 0 if self.seal else 1
        return max(len(self.sequence) - held_back - self.computed, 0)

    def apply(self, request: Any) -> None:
        """Takes a splice or the seal; raises InternalError for one that makes no sense."""
        is_seal = request.HasField("seal")
        splice = request.seal.splice if is_seal else request.splice
        in_order = self.seal is None and splice.revision > self.revision
        if not in_order or splice.keep_tokens > len(self.sequence):
            raise InternalError(f"the router has sent a splice that cannot be: {request}")
        self.num_kept = splice.keep_tokens
        self.sequence[splice.keep_tokens :] = token_list(splice.token_ids, "token_ids")
        self.invalidated += max(self.computed - splice.keep_tokens, 0)
        self.computed = min(self.computed, splice.keep_tokens)
        self.offered = min(self.offered, splice.keep_tokens)
        self.revision, self.stable_tokens = splice.revision, splice.stable_tokens
        if is_seal:
            self.seal = request.seal
            self.uncomputed_at_seal = self.num_to_compute
        self.changed.set()

    def progress(self) -> pb.PrefillProgress:
        return pb.PrefillProgress(
            revision=self.revision,
            known_tokens=len(self.sequence),
            prefilled_tokens=self.computed,
            computed_tokens=self.num_computed,
            invalidated_tokens=self.invalidated,
        )
