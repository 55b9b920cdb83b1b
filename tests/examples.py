"""How many examples Hypothesis tries of the session machines, and how."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The fixed examples of `make test` find nothing new however many they are; those of
# `make test-random` do.
TIMES_WHEN_RANDOM = 10


def examples(count: int, steps: int = 50) -> settings:
    """So many examples of so many steps each; more where they are random."""
    is_random = settings.get_current_profile_name().startswith("random")
    return settings(
        max_examples=count * (TIMES_WHEN_RANDOM if is_random else 1),
        stateful_step_count=steps,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
