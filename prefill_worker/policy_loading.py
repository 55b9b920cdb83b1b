"""Policies by name or import path: found, checked, and kept from ending an engine.

A policy that is not in `POLICIES` is given as `package.module:name`, where the name
is a function like those in `policy.py`, or a `Policy`. Pure, but for the import.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prefill_worker.policy import POLICIES, Policy, Rank, RankKey
from prefill_worker.types import RequestView
from stream2llm.api.errors import InvalidRequestError, describe

# What foreign code may raise; a script without a `__main__` guard calls sys.exit.
_FAILURES = (Exception, SystemExit)
# What a policy is tried with: nothing known, idle, new tokens, sealed, loading from the host.
_SAMPLES = (
    RequestView("empty", False, 1, 1, 0, 0, 0),
    RequestView("idle", False, 2, 2, 65, 64, 4),
    RequestView("open", False, 3, 5, 90, 64, 4, last_event_work=300),
    RequestView("sealed", True, 4, 4, 90, 0, 0, 80, guard_number=1),
    RequestView("loading", True, 5, 3, 90, 32, 4, 80, host_start=2, host_stop=4, is_loading=True),
)


def require_policy(name: str, import_paths: Iterable[str] = (), field: str = "policy") -> str:
    """The name, if it is in `POLICIES` or among these paths; imports nothing.

    Raises InvalidRequestError that lists what there is.
    """
    known = (*POLICIES, *import_paths)
    if name not in known:
        raise InvalidRequestError(
            f"no scheduling policy is called {name!r}; there are {', '.join(known)}",
            reason="UNKNOWN_POLICY",
            field=field,
        )
    return name


def find_policy(name: str, field: str = "policy") -> Policy:
    """The policy of that name, or at that import path, which is imported.

    Raises InvalidRequestError naming the field for a name that is none, for a path
    that leads nowhere, and for something there that does not work as a policy.
    """
    if ":" not in name:
        return POLICIES[require_policy(name, field=field)]
    policy = _as_policy(name, _imported(name, field), field)
    try:
        for view in _SAMPLES:
            policy.serving_key(view, view.has_claim)
            policy.eviction_key(view)
    except _FAILURES as error:
        raise _bad(name, f"failed for {view}: {describe(error)}", field) from error
    return policy


def find_policies(import_paths: Iterable[str]) -> dict[str, Policy]:
    """All that a worker may follow, by name; raises what `find_policy` raises."""
    return {**POLICIES, **{path: find_policy(path) for path in import_paths}}


def _imported(path: str, field: str) -> Any:
    module, _, names = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except _FAILURES as error:
        advice = _NOT_FOUND if isinstance(error, ModuleNotFoundError) else ""
        raise _bad(path, f"cannot be imported: {describe(error)}{advice}", field) from error
    return found


_NOT_FOUND = "; install it, or name its folder in PYTHONPATH"


def _as_policy(path: str, found: Any, field: str) -> Policy:
    if isinstance(found, Policy):
        keep = found.keep and _checked(found.keep)
        return found._replace(name=path, serve=_checked(found.serve), keep=keep)
    if callable(found):
        return Policy(path, _checked(found))
    problem = f"is a {type(found).__name__}, neither a function of a RequestView nor a Policy"
    raise _bad(path, problem, field)


def _checked(rank: Rank) -> Rank:
    """The same order, with the arrival to break ties; raises TypeError for other keys."""

    def key_of(view: RequestView) -> RankKey:
        key: Any = rank(view)
        if not isinstance(key, tuple) or not all(isinstance(part, int) for part in key):
            raise TypeError(f"the key is {key!r}, not a tuple of whole numbers")
        return (*key, view.arrival)

    return key_of


def _bad(path: str, problem: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field}: the policy {path} {problem}", reason="BAD_POLICY", field=field
    )


@dataclass(slots=True)
class Guard:
    """Holds the first error of a guarded policy; from then on its stand-in ranks."""

    error: BaseException | None = None

    def around(self, policy: Policy, stand_in: Policy) -> Policy:
        """The policy, with functions that never raise."""
        serve = self._either(policy.serve, stand_in.serve)
        if policy.keep is None:
            return policy._replace(serve=serve)
        return policy._replace(serve=serve, keep=self._either(policy.keep, stand_in.serve))

    def _either(self, rank: Rank, stand_in: Rank) -> Rank:
        def key_of(view: RequestView) -> RankKey:
            if self.error is None:
                try:
                    return rank(view)
                except _FAILURES as error:  # the guard's owner logs it
                    self.error = error
            return stand_in(view)

        return key_of
