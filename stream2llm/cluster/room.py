"""Which nodes have room for an actor, and what the others lack. Pure; Ray's own scheduler decides.

A label's selector has Ray's syntax: `VALUE`, `!VALUE`, `in(A, B)`, `!in(A, B)`. A node
without the label matches the negated ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stream2llm.serving.settings.launch import Launch
from stream2llm.serving.settings.placement import Placement

# Ray counts resources in steps of this size.
_STEP = 1e-4
# More nodes than an operator reads in one line.
_MAX_NODES_LISTED = 6
_FIELDS = {"GPU": "num_gpus", "CPU": "num_cpus"}
# In every listing it would be the longest, and it says nothing.
_NODE_ID = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class LabelRule:
    """One label that a node must, or must not, have with one of some values."""

    key: str
    values: frozenset[str]
    is_negated: bool = False

    @classmethod
    def parse(cls, key: str, selector: str) -> LabelRule:
        """Reads a checked selector."""
        plain = selector.removeprefix("!")
        inside = plain.removeprefix("in(").removesuffix(")") if plain.startswith("in(") else plain
        values = frozenset(each.strip() for each in inside.split(","))
        return cls(key, values, selector.startswith("!"))

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels matches."""
        return (labels.get(self.key) in self.values) is not self.is_negated


@dataclass(frozen=True, slots=True)
class Demand:
    """What an actor wants of its node."""

    # By name, CPU and GPU included; none of amount 0.
    resources: Mapping[str, float]
    rules: frozenset[LabelRule] = frozenset()

    @classmethod
    def of(cls, num_cpus: float, num_gpus: float, placement: Placement) -> Demand:
        """The demand of an actor with these options."""
        wanted = {"CPU": num_cpus, "GPU": num_gpus, **placement.resources}
        rules = (LabelRule.parse(key, value) for key, value in placement.labels.items())
        return cls({name: n for name, n in wanted.items() if n}, frozenset(rules))

    @classmethod
    def of_launch(cls, launch: Launch) -> Demand:
        """The demand of a router or worker."""
        return cls.of(launch.num_cpus, launch.num_gpus, launch.placement)

    def is_same(self, other: Demand) -> bool:
        """Whether Ray cannot tell them apart."""
        names = self.resources.keys() | other.resources.keys()
        amounts = ((self.resources.get(n, 0.0), other.resources.get(n, 0.0)) for n in names)
        return self.rules == other.rules and all(abs(a - b) < _STEP for a, b in amounts)


@dataclass(frozen=True, slots=True)
class Node:
    """A living node of a Ray."""

    address: str
    labels: Mapping[str, str]
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why Ray, as it is, will never place an actor."""

    field: str
    text: str


# -- now -------------------------------------------------------------------


def what_is_missing(demand: Demand, nodes: Sequence[Node]) -> str:
    """Returns what each node lacks at present; "" where one lacks nothing."""
    lacking = [(node.address, _lacks(demand, node, node.free)) for node in nodes]
    if not all(lacks for _, lacks in lacking):
        return ""
    each = [f"{address}: {', '.join(lacks)}" for address, lacks in lacking]
    return f"no node has room for it: it needs {_listing(demand)} ({_some(each)})"


def _lacks(demand: Demand, node: Node, have: Mapping[str, float]) -> list[str]:
    labels = [_label(node, r) for r in _rules(demand) if not r.holds(node.labels)]
    short = [f"{have.get(name, 0.0):g} of {n:g} {name} free" for name, n in _short(demand, have)]
    return labels + short


def _short(demand: Demand, have: Mapping[str, float]) -> list[tuple[str, float]]:
    wanted = demand.resources.items()
    return [(name, n) for name, n in wanted if have.get(name, 0.0) + _STEP / 2 < n]


def _label(node: Node, rule: LabelRule) -> str:
    value = node.labels.get(rule.key)
    return f"no label {rule.key}" if value is None else f"{rule.key}={value}"


# -- ever ------------------------------------------------------------------


def refusal_of_one(part: str, demand: Demand, nodes: Sequence[Node]) -> Refusal | None:
    """Returns why no node could hold one actor of the section `part` alone; None if one could."""
    matching = [n for n in nodes if all(rule.holds(n.labels) for rule in demand.rules)]
    if not matching:
        wanted = ", ".join(map(_selector, _rules(demand)))
        have = _some([f"{node.address} {_labels(node, demand)}" for node in nodes])
        field = f"{part}.placement.labels"
        return Refusal(field, f"{field}: no node has {wanted}; there are {have}")
    if any(not _short(demand, node.total) for node in matching):
        return None
    field = f"{part}.{_field(_scarcest(demand, matching))}"
    each = [f"{n.address} {_amounts(demand, n)}" for n in matching]
    text = f"{field}: each worker needs {_listing(demand)} on one node; there are {_some(each)}"
    return Refusal(field, text)


def refusal_of_all(demands: Iterable[tuple[str, Demand]], nodes: Sequence[Node]) -> Refusal | None:
    """Returns which resource all nodes together have too little of for all actors; None: none."""
    needed: dict[str, float] = {}
    fields: dict[str, list[str]] = {}
    for part, demand in demands:
        for name, amount in demand.resources.items():
            needed[name] = needed.get(name, 0.0) + amount
            fields.setdefault(name, []).append(f"{part}.{_field(name)}")
    for name, amount in needed.items():
        present = sum(node.total.get(name, 0.0) for node in nodes)
        if present + _STEP / 2 < amount:
            parts = list(dict.fromkeys(fields[name]))
            text = f"all together need {amount:g} {name}, Ray has {present:g}"
            return Refusal(parts[0], f"{text}; set {' or '.join(parts)}, or replicas, to less")
    return None


def _scarcest(demand: Demand, nodes: Sequence[Node]) -> str:
    """The resource that no node has enough of; else, where two are on different nodes, the first."""
    return next(
        (n for n, amount in demand.resources.items()
         if all(node.total.get(n, 0.0) + _STEP / 2 < amount for node in nodes)),
        next(iter(demand.resources)),
    )  # fmt: skip


def _field(resource: str) -> str:
    return _FIELDS.get(resource, "placement.resources")


# -- texts -----------------------------------------------------------------


def _rules(demand: Demand) -> list[LabelRule]:
    return sorted(demand.rules, key=lambda rule: rule.key)


def _selector(rule: LabelRule) -> str:
    values = sorted(rule.values)
    listing = values[0] if len(values) == 1 else f"in({', '.join(values)})"
    return f"{rule.key}{'!=' if rule.is_negated else '='}{listing}"


def _listing(demand: Demand) -> str:
    amounts = [f"{amount:g} {name}" for name, amount in demand.resources.items()]
    return ", ".join([*amounts, *map(_selector, _rules(demand))]) or "nothing but a node"


def _amounts(demand: Demand, node: Node) -> str:
    return ", ".join(f"{node.total.get(name, 0.0):g} {name}" for name in demand.resources)


def _labels(node: Node, demand: Demand) -> str:
    asked = {rule.key for rule in demand.rules}
    shown = {k: v for k, v in sorted(node.labels.items()) if k != _NODE_ID or k in asked}
    return f"({', '.join(f'{k}={v}' for k, v in shown.items()) or 'no labels'})"


def _some(each: Sequence[str]) -> str:
    more = len(each) - _MAX_NODES_LISTED
    shown = "; ".join(each[:_MAX_NODES_LISTED]) or "no nodes"
    return f"{shown}; and {more} more" if more > 0 else shown
