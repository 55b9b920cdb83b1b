"""What a worker's answers use, by tenant. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.serving.settings.tenant_options import ALL_ALIKE, TenantsOptions


@dataclass(slots=True)
class AnswerUse:
    """Usage of a worker by the answers of one tenant, or of all that are not configured."""

    num_waiting: int = 0
    num_running: int = 0
    # Context and answer of those that run.
    held_tokens: int = 0
    # By all steps since the worker started.
    decoded_tokens: int = 0


class AnswerUses:
    """Usage by the answers of all tenants."""

    def __init__(self, tenants: TenantsOptions = ALL_ALIKE) -> None:
        self._tenants = tenants
        # By `TenantsOptions.label`.
        self.by_label = {label: AnswerUse() for label in tenants.labels}

    def count(self, tenant: str, num_prompt_tokens: int) -> AnswerCount:
        """Counts an answer, which waits for its first step here; `leave` ends that."""
        return AnswerCount(self.by_label[self._tenants.label(tenant)], num_prompt_tokens)


class AnswerCount:
    """One answer's part in the usage of its tenant."""

    def __init__(self, use: AnswerUse, num_prompt_tokens: int) -> None:
        self._use = use
        self._num_tokens = num_prompt_tokens
        self.is_running = False
        use.num_waiting += 1

    def stepped(self, num_tokens: int) -> None:
        """A step has brought tokens; with the first one the answer runs."""
        use = self._use
        if not self.is_running:
            self.is_running = True
            use.num_waiting -= 1
            use.num_running += 1
            use.held_tokens += self._num_tokens
        self._num_tokens += num_tokens
        use.held_tokens += num_tokens
        use.decoded_tokens += num_tokens

    def leave(self) -> int:
        """The answer has ended; returns the tokens of its context and of what it has."""
        if self.is_running:
            self._use.num_running -= 1
            self._use.held_tokens -= self._num_tokens
        else:
            self._use.num_waiting -= 1
        return self._num_tokens
