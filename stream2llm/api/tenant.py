"""Whose session it is, and how that tenant ranks among others; set by the router alone."""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.api.errors import InvalidRequestError

MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
MIN_PRIORITY, MAX_PRIORITY = -100, 100
MAX_NAME_CHARS = 1024


@dataclass(frozen=True, slots=True)
class TenantShare:
    """A tenant, as those that serve its sessions know it."""

    # Empty where callers are not distinguished.
    name: str = ""
    # Share of the work in proportion to those of other tenants of its priority.
    weight: float = 1.0
    # Tenants of a higher one are served before those of a lower one.
    priority: int = 0

    def validate(self, field: str) -> None:
        """Raises InvalidRequestError for values that no configuration allows."""
        if len(self.name) > MAX_NAME_CHARS:
            raise InvalidRequestError(
                f"the tenant's name has {len(self.name)} characters; at most {MAX_NAME_CHARS} are"
                " taken",
                field=f"{field}.name",
            )
        # Not a number is in no range.
        if not MIN_WEIGHT <= self.weight <= MAX_WEIGHT:
            raise InvalidRequestError(
                f"the tenant's weight is {self.weight}; {MIN_WEIGHT} to {MAX_WEIGHT:g} are taken",
                field=f"{field}.weight",
            )
        if not MIN_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidRequestError(
                f"the tenant's priority is {self.priority}; {MIN_PRIORITY} to {MAX_PRIORITY} are"
                " taken",
                field=f"{field}.priority",
            )


# The tenant of all sessions where callers are not distinguished.
ONE_TENANT = TenantShare()
