"""The generated pages of docs/reference/ say what the code says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, Field

from tools.reference import commands, configuration, metrics, protos
from tools.reference.markdown import WIDTH, one_line, prose, table
from tools.reference.pages import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_committed_page_is_what_the_code_gives(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run `make docs-reference` and commit"


def test_every_metric_of_ours_begins_with_our_name() -> None:
    rows = [line for line in PAGES["metrics.md"]().split("\n") if line.startswith("| `")]
    assert len(rows) > 30
    assert all(row.startswith("| `stream2llm_") for row in rows)


def test_a_setting_shows_its_type_default_and_limits() -> None:
    class Part(BaseModel):
        """What it is for."""

        model_config = ConfigDict(use_attribute_docstrings=True)

        size_bytes: int = Field(default=4 * 1024 * 1024, ge=1)
        """Its
        size."""
        name: str | None = None
        """Its name."""

    (section,) = configuration.sections(Part.model_json_schema())
    assert section.startswith("## Top level\n\nWhat it is for.\n")
    assert "| `size_bytes` | integer | `4194304` (4 MiB) | ≥ 1 | Its size. |" in section
    assert "| `name` | text | unset |  | Its name. |" in section


def test_a_setting_without_a_description_is_refused() -> None:
    class Part(BaseModel):
        """What it is for."""

        size: int = 0

    with pytest.raises(ValueError, match="size has no description"):
        list(configuration.sections(Part.model_json_schema()))


def test_a_metric_shows_its_labels_and_the_values_it_has() -> None:
    group = metrics.Group("Ours", "All of them.")
    counter = Counter("things", "Things, by kind.", ("kind", "who"), registry=group.registry)
    assert "| `things_total` | counter | `kind`; `who` | Things, by kind. |" in _text([group])
    counter.labels("red", "<anybody>")
    assert "| `kind`: `red`; `who` |" in _text([group])


def test_a_command_shows_usage_help_and_options_also_one_that_is_forwarded() -> None:
    app, other = typer.Typer(), typer.Typer()

    @app.command()
    def first(size: int = typer.Option(3, help="How many.")) -> None:
        """Do it.

        Example: stream2llm first --size 4
        """

    @app.command()
    def second() -> None:
        """A stand-in."""

    @other.command()
    def real() -> None:
        """The real one."""

    one, two = commands.sections(app, {"second": lambda: other})
    assert one.startswith("## stream2llm first\n\n```\nstream2llm first [OPTIONS]\n```\n\nDo it.")
    assert "```\nstream2llm first --size 4\n```" in one
    assert r"How many. \[default: 3\]" in one
    assert "The real one." in two


def test_an_option_without_help_is_refused() -> None:
    app = typer.Typer()

    @app.command()
    def first(size: int = 3) -> None:
        """Do it."""

    @app.command()
    def second() -> None:
        """Or this."""

    with pytest.raises(ValueError, match="--size"):
        list(commands.sections(app, {}))


def test_a_message_shows_oneofs_maps_and_links(tmp_path: Path) -> None:
    one, two = _proto_sections(
        tmp_path,
        """
        // Thing is a thing,
        // as one sees.
        message Thing {
          // What it holds.
          oneof holds {
            // Another one.
            Other other = 1;
          }
          // How many of each.
          map<string, uint32> counts = 2;
        }
        // Other has nothing.
        message Other {}
        """,
    )
    assert one.startswith("## Thing\n\nThing is a thing, as one sees.\n")
    assert "| 1 | `other` | one of `holds`: [Other](#other) | Another one. |" in one
    assert "| 2 | `counts` | map of string to uint32 | How many of each. |" in one
    assert two == "## Other\n\nOther has nothing.\n\nNo fields."


def test_a_proto_field_without_a_comment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size has no comment"):
        _proto_sections(tmp_path, "message Thing { uint32 size = 1; }")


def test_prose_is_reflowed_and_indented_blocks_are_code() -> None:
    text = prose("word " * 100 + "\n\n    make docs\n")
    assert max(map(len, text.split("\n"))) <= WIDTH
    assert text.endswith("```\nmake docs\n```")


def test_a_pipe_in_a_cell_does_not_end_it() -> None:
    assert table(["a"], [["x|y"]]).endswith("| x\\|y |")


def test_text_in_a_cell_is_no_markup_but_for_code() -> None:
    assert one_line("In [0, 1],\n `a[0]` of <b>") == r"In \[0, 1\], `a[0]` of \<b>"


def _text(groups: list[metrics.Group]) -> str:
    sections: Iterator[str] = metrics.sections(groups)
    return "\n".join(sections)


def _proto_sections(folder: Path, body: str) -> list[str]:
    (folder / "a.proto").write_text(f'syntax = "proto3"; package p;\n{body}')
    (file,) = protos.describe(folder, ["a.proto"])
    return list(protos.sections(file))
