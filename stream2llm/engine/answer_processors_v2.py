"""The processors of answer_penalty.py and answer_bad_words.py for vLLM's model runner V2.

V2 applies them behind its own penalties, so what these lack is subtracted as it is. It names
requests by slots, which keep their tokens on the device: those of the prompt, and behind them
what this engine has sampled. A slot may get another request, or the same one anew.

Runs inside the engine's worker process.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.sample.logits_processor import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)

from stream2llm.engine.answer_bad_words import completed_by, longer_words
from stream2llm.engine.answer_penalty import num_answer_tokens

R = TypeVar("R")


class AnswerProcessor(LogitsProcessor, Generic[R]):
    """Has a request's part for each slot whose request needs one.

    Raises ValueError where vLLM drafts tokens: those are in no slot.
    """

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        if vllm_config.speculative_config is not None:
            raise ValueError("a worker takes no speculative_config")
        self._states = req_states
        self._parts: dict[int, R] = {}

    @abstractmethod
    def part(self, params: SamplingParams) -> R | None:
        """Returns what a request needs; None when that is nothing."""

    @abstractmethod
    def change(
        self, part: R, slot: int, row: int, logits: torch.Tensor, ctx: LogitsContext
    ) -> None:
        """Changes the logits of a request, in place."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Takes a request into its slot; returns whether its logits will be changed."""
        self._parts.pop(req_idx, None)
        part = self.part(sampling_params)
        if part is not None:
            self._parts[req_idx] = part
        return part is not None

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Changes the logits, in place; a row is a request's."""
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            part = self._parts.get(slot)
            if part is not None:
                self.change(part, slot, row, logits, ctx)
        return logits

    def tokens(self, slot: int, begin: int, end: int) -> torch.Tensor:
        """Returns a slot's tokens [begin, end), on the device."""
        tokens: torch.Tensor = self._states.all_token_ids.gpu[slot, begin:end]
        return tokens

    def prompt_len(self, slot: int) -> int:
        """Returns how many of a slot's tokens are its prompt."""
        return int(self._states.prompt_len.np[slot])


@dataclass(slots=True)
class _Penalties:
    """The penalties of one request; what it has of the answer comes with its first step."""

    num_tokens: int
    presence: float
    frequency: float
    counted: _Counted | None = None


@dataclass(slots=True)
class _Counted:
    """The answer's tokens in a prompt, each once, and how often they are there."""

    at: torch.Tensor
    counts: torch.Tensor
    # Whether this engine has sampled each, too: vLLM counts its presence.
    sampled: torch.Tensor


class AnswerPenalty(AnswerProcessor[_Penalties]):
    """Subtracts what vLLM's presence and frequency penalties lack for the answer's tokens."""

    def part(self, params: SamplingParams) -> _Penalties | None:
        """Returns the penalties of a request whose prompt has a part of the answer."""
        num_tokens = num_answer_tokens(params)
        presence, frequency = params.presence_penalty, params.frequency_penalty
        if not num_tokens or not (presence or frequency):
            return None
        return _Penalties(num_tokens, presence, frequency)

    def change(
        self, part: _Penalties, slot: int, row: int, logits: torch.Tensor, ctx: LogitsContext
    ) -> None:
        """Lowers the logits of the answer's tokens in the prompt."""
        if part.counted is None:
            part.counted = self._count(part.num_tokens, slot)
        counted = part.counted
        # What this row's token follows: one of the prompt, or the last that was sampled.
        is_sampled = ctx.pos[row] >= self.prompt_len(slot)
        counted.sampled |= (counted.at == ctx.input_ids[row]) & is_sampled
        lacking = part.frequency * counted.counts + part.presence * ~counted.sampled
        logits[row, counted.at] -= lacking.to(logits.dtype)

    def _count(self, num_tokens: int, slot: int) -> _Counted:
        """Reads a slot that got its request with this step."""
        end, known = self.prompt_len(slot), int(self._states.prefill_len.np[slot])
        at, counts = self.tokens(slot, end - num_tokens, end).long().unique(return_counts=True)
        # Some of an answer that vLLM has preempted is sampled already.
        return _Counted(at, counts, torch.isin(at, self.tokens(slot, end, known).long()))


@dataclass(slots=True)
class _Words:
    """The bad words of one request; so many tokens of its prompt are the answer's."""

    words: list[list[int]]
    num_tokens: int

    @property
    def most_before(self) -> int:
        """So many tokens of a word at most stand before the one that completes it."""
        return max(map(len, self.words)) - 1


class AnswerBadWords(AnswerProcessor[_Words]):
    """Masks tokens that complete a bad word which begins among the answer's in the prompt."""

    def part(self, params: SamplingParams) -> _Words | None:
        """Returns the longer bad words of a request whose prompt has a part of the answer."""
        words, num_tokens = longer_words(params), num_answer_tokens(params)
        return _Words(words, num_tokens) if words and num_tokens else None

    def change(
        self, part: _Words, slot: int, row: int, logits: torch.Tensor, ctx: LogitsContext
    ) -> None:
        """Masks the tokens that would complete a word."""
        prompt_len = self.prompt_len(slot)
        num_sampled = max(int(ctx.seq_lens_upper_bound_np[row]) - prompt_len, 0)
        if num_sampled >= part.most_before:
            return
        begin = prompt_len - min(part.num_tokens, part.most_before)
        known: list[Any] = self.tokens(slot, begin, prompt_len + num_sampled).tolist()
        before, sampled = known[: prompt_len - begin], known[prompt_len - begin :]
        for token_id in completed_by(part.words, before, sampled):
            logits[row, token_id] = -torch.inf
