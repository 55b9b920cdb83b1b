"""Which generators are kept away from a step."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from stream2llm.engine.cpu_worker import take_discarded


def test_only_generators_of_discarded_rows_are_taken() -> None:
    generators = {0: "a", 2: "b", 3: "c"}
    assert take_discarded(generators, [1, 2]) == {2: "b"}
    assert generators == {0: "a", 3: "c"}
