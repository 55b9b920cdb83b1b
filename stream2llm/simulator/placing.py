"""Where sessions are placed in virtual time: production's choice, by what routers know."""

from __future__ import annotations

from collections.abc import Sequence

from router.placement import WorkerView, pick
from stream2llm.serving.settings.worker_spec import Role
from stream2llm.simulator.decode import DecodeWorker


class Placing:
    """The sessions of each worker that prefills, by its number: the mixed ones behind the others."""

    def __init__(self, num_prefill: int, num_mixed: int, decode: Sequence[DecodeWorker]) -> None:
        self._num_prefill = num_prefill
        self._num_placed = [0] * (num_prefill + num_mixed)
        # Those among them with a token of their answer, behind which more come from here.
        self._num_answering = [0] * (num_prefill + num_mixed)
        self._decode = decode

    def is_mixed(self, number: int) -> bool:
        """Whether that worker goes on with the answers of what it prefills."""
        return number >= self._num_prefill

    def place(self, num_prompt_tokens: int) -> int:
        """Returns the worker for a session of which so much of the prompt is known."""
        views = [self._view(number) for number in range(len(self._num_placed))]
        chosen = _picked([*views, *self._decode_views()], "prefill", num_prompt_tokens)
        self._num_placed[chosen] += 1
        return chosen

    def _view(self, number: int) -> WorkerView:
        role: Role = "mixed" if self.is_mixed(number) else "prefill"
        placed, answering = self._num_placed[number], self._num_answering[number]
        return WorkerView(f"{number:04}", role, True, placed, answering)

    def begins_answer(self, number: int) -> None:
        """A session of that mixed worker has its first token, and more follow there."""
        self._num_answering[number] += 1

    def leaves(self, number: int) -> None:
        """A session has its last token from that worker."""
        self._num_placed[number] -= 1
        if self.is_mixed(number):
            self._num_answering[number] -= 1

    def pick_decode(self) -> int:
        """Returns the decode worker for a session."""
        return _picked(self._decode_views(), "decode")

    def _decode_views(self) -> list[WorkerView]:
        return [
            WorkerView(f"{number:04}", "decode", True, each.num_sessions)
            for number, each in enumerate(self._decode)
        ]


def _picked(workers: Sequence[WorkerView], role: Role, num_prompt_tokens: int = 0) -> int:
    """Production's choice among workers whose ids are their numbers."""
    chosen = pick(workers, role, num_prompt_tokens)
    assert chosen is not None
    return int(chosen)
