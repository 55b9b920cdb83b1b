"""docs/security.md says of scopes, traffic and certificates what holds for the code."""

from __future__ import annotations

import re
from collections.abc import Mapping

from router.service import SCOPES as ROUTER_SCOPES
from stream2llm.api.grpc_options import SERVICE_NAME
from stream2llm.cluster.controller_http import SCOPES as CONTROLLER_SCOPES
from stream2llm.security.principal import Scope
from tests.routes import GATEWAY_SCOPES
from tests.unit.docs.test_claims import ROOT, table_rows

PAGE = ROOT / "docs" / "security.md"
RUNBOOK = ROOT / "docs" / "runbook.md"
Listed = Mapping[str, Scope | None]


def rows_of(first: str) -> list[list[str]]:
    """The rows of the table whose first column has that name, without its head."""
    return [cells for head, cells in table_rows(PAGE) if head[0] == first][2:]


def listed(column: int) -> Listed:
    """What a column of the table of scopes names, with the scope of its row."""
    found = {}
    for cells in rows_of("scope"):
        scope = None if cells[0] == "none needed" else Scope(cells[0].strip("`"))
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[column]), scope)
    return found


def routes(scopes: Mapping[tuple[str, str], Scope | None]) -> Listed:
    return {f"{method} {path}": scope for (method, path), scope in scopes.items()}


def test_the_table_of_scopes_is_that_of_the_code() -> None:
    prefix = f"/{SERVICE_NAME}/"
    rpcs = {name.removeprefix(prefix).strip("/"): scope for name, scope in ROUTER_SCOPES.items()}
    assert listed(1) == rpcs
    assert listed(2) == routes(CONTROLLER_SCOPES)
    assert listed(3) == routes(GATEWAY_SCOPES)


def test_the_threat_model_names_all_that_an_operator_can_change() -> None:
    (row,) = [cells for cells in rows_of("who") if cells[0] == "an operator (`operator`)"]
    changes = {each for each, scope in listed(2).items() if scope is Scope.OPERATOR}
    assert {each for each in re.findall(r"`([^`]+)`", row[2]) if " " in each} == changes


NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


def test_the_number_of_kinds_that_are_not_encrypted_is_that_of_their_table() -> None:
    (number,) = re.findall(r"^(\w+) kinds of traffic are not ours", PAGE.read_text(), re.MULTILINE)
    assert NUMBERS[number.lower()] == len(rows_of("traffic"))


def test_all_pages_give_a_new_authority_as_many_steps_as_there_are() -> None:
    text = PAGE.read_text()
    steps = re.findall(r"^(\d)\. ", text[text.index("A new **authority**") :], re.MULTILINE)
    pattern = r"new (?:\*\*)?authority(?:\*\*)?\s+takes\s+(\w+)\s+steps"
    said = [each for page in (PAGE, RUNBOOK) for each in re.findall(pattern, page.read_text())]
    assert len(said) == 2
    assert {NUMBERS[each] for each in said} == {len(steps)}
