"""Dataclass parameters of commands, whose fields are options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from stream2llm.cli.option_groups import expanded


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="How wide.")]
    unit: Annotated[str, typer.Option(envvar="UNIT")] = "m"


app = typer.Typer()


@app.command()
@expanded
def draw(name: str, colour: str = "red", *, size: Size) -> None:
    typer.echo(f"{name} {colour} {size}")


def test_the_fields_are_options_and_the_command_gets_the_dataclass() -> None:
    done = CliRunner().invoke(app, ["box", "--width", "3"], env={"UNIT": "cm"})
    assert done.output == f"box red {Size(3, 'cm')}\n"


def test_a_field_without_a_default_is_required() -> None:
    done = CliRunner().invoke(app, ["box", "--colour", "blue"])
    assert done.exit_code == 2
    assert "--width" in done.output
