"""The events of a socket: a response's, as other routes write them, and the protocol's own. Pure.

Events are JSON objects. Those of a request with a `stream_id` have the same one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from openai.types import responses as oai
from pydantic import BaseModel

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Answer, Finished, Progress, Usage
from stream2llm.api.requests import ChatMessage
from stream2llm.client.chat_inputs import chat_messages
from stream2llm.gateway.errors import answered, body_of, headers_of
from stream2llm.gateway.forms import EXTENSION, Opening
from stream2llm.gateway.lanes.pieces import Change
from stream2llm.gateway.lanes.requests import CreateRequest
from stream2llm.gateway.lanes.state import Step
from stream2llm.gateway.response_items import messages_of
from stream2llm.gateway.responses import ResponseForm, usage_of

PROGRESS = f"{EXTENSION}.progress"
# The text of an event, by its fields and its lane.
Write = Callable[[dict[str, Any], str | None], str]


class LaneForm(ResponseForm):
    """One response of a lane, as the events of a socket."""

    def __init__(
        self, request: CreateRequest, opening: Opening, step: Step, change: Change, write: Write
    ) -> None:
        super().__init__(request, opening)
        self._write = write
        self._create = request
        self._step = step
        self._change = change

    @property
    def response_id(self) -> str:
        """The response's id."""
        return self._opening.id

    def prepared(self) -> Iterator[str]:
        """The events of a response without an answer."""
        response = self._response("in_progress")
        yield self._event(oai.ResponseCreatedEvent, "response.created", response=response)
        response = self.prepared_response()
        yield self._event(oai.ResponseCompletedEvent, "response.completed", response=response)

    def prepared_response(self) -> oai.Response:
        """A response without an answer, whose usage is that of the sequence as it stands."""
        num_tokens = len(self._change.after.sequence)
        usage = Usage(prompt_tokens=num_tokens, reused_tokens=self._change.num_kept)
        return self._response("completed", usage=usage_of(usage))

    def turns(self, answer: Answer) -> tuple[ChatMessage, ...]:
        """The answer as turns of the conversation: those of a client that sends its items back."""
        self.complete(answer)
        items = [item.model_dump(exclude_none=True) for item in self._output.items]
        return chat_messages(messages_of(items))

    def cancelled(self) -> Iterator[str]:
        """The last event of a response that its client has cancelled."""
        response = self._response("cancelled")
        yield self._event(oai.ResponseIncompleteEvent, "response.incomplete", response=response)

    def _extension(self, finished: Finished) -> dict[str, Any]:
        figures = {
            "computed_tokens": finished.usage.computed_tokens,
            "invalidated_tokens": finished.usage.invalidated_tokens,
            "uncomputed_at_seal_tokens": finished.usage.uncomputed_at_seal_tokens,
            "ttft_from_seal_s": finished.timings.ttft_from_seal_s,
        }
        return {EXTENSION: figures | super()._extension(finished)[EXTENSION]}

    def _response(self, status: str, **fields: Any) -> oai.Response:
        fields[EXTENSION] = self._lane_facts() | fields.get(EXTENSION, {})
        previous = self._create.previous_response_id
        return super()._response(status, previous_response_id=previous, **fields)

    def _lane_facts(self) -> dict[str, Any]:
        """What the request has done to the lane's session, in tokens."""
        return {
            "kind": self._step.kind.value,
            "kept_tokens": self._change.num_kept,
            "replaced_tokens": self._change.num_invalidated,
        }

    def _written(self, event: BaseModel, name: str) -> str:
        fields = event.model_dump(mode="json", exclude_unset=True, by_alias=True)
        return self._write(fields, self._create.stream_id)


def written(event: dict[str, Any], stream_id: str | None) -> str:
    """One event as a socket carries it."""
    lane = {} if stream_id is None else {"stream_id": stream_id}
    return json.dumps({**event, **lane})


def written_as_sse(event: dict[str, Any], stream_id: str | None) -> str:
    """One event as a server-sent event."""
    return f"event: {event['type']}\ndata: {written(event, stream_id)}\n\n"


def error_event(
    error: Stream2LLMError,
    stream_id: str | None = None,
    names: Mapping[str, str] = CreateRequest.names,
) -> str:
    """A request, or a connection, that is refused; `names` as `body_of` takes them."""
    body = body_of(error, names)
    headers = headers_of(error)
    if headers:
        body["error"]["headers"] = headers
    return written({"type": "error", "status": answered(error).status, **body}, stream_id)


def progress_event(progress: Progress, response_id: str, stream_id: str | None) -> str:
    """How far a response's context has come."""
    event = {"type": PROGRESS, "response_id": response_id, "progress": asdict(progress)}
    return written(event, stream_id)


def steer_failed(event: dict[str, Any]) -> str:
    """The answer to input for a response under way, which is not supported."""
    return written(
        {
            "type": "response.steer.failed",
            "sequence_number": 0,
            "error": {
                "type": "invalid_request_error",
                "code": "steering_not_supported",
                "message": "response.steer is not supported: send a response.create",
            },
            "steer": {
                "previous_response_id": event.get("previous_response_id"),
                "input": event.get("input"),
            },
        },
        None,
    )
