"""Reflows the prose of Markdown files to at most 120 characters a line.

`python -m tools.reflow FILE...` changes the files in place.

Tables, code, headings, HTML and link definitions stay as they are; so does a paragraph
whose lines are short enough, so that changing one word changes one line.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.reference.markdown import WIDTH

_FENCE = re.compile(r"\s*(```|~~~)")
_VERBATIM = re.compile(r"(\s{4,}|\s*\||#|<|>|!|\[[^]]+\]:|::: |\$)")
_ROW = re.compile(r"\s*\|")
_ITEM = re.compile(r"(\s*)([-*+]|\d+\.)(\s+)")
_MEANS_SOMETHING = re.compile(r"([-*+#>|]|\d+[.)])(\s|$)|>|\||```|~~~|::: ")


@dataclass(frozen=True)
class Block:
    """A paragraph or a list item; or one line of anything else."""

    lines: list[str]
    is_prose: bool


def reflow(text: str) -> str:
    """Returns the text with every overlong paragraph and list item wrapped anew."""
    blocks = _blocks(text.split("\n"))
    return "\n".join(line for block in blocks for line in _wrapped(block))


def overlong(text: str) -> list[int]:
    """Returns the numbers, from 1, of prose lines that exceed WIDTH and can be wrapped."""
    found, number = [], 1
    for block in _blocks(text.split("\n")):
        if _wrapped(block) != block.lines:
            found += [number + i for i, line in enumerate(block.lines) if len(line) > WIDTH]
        number += len(block.lines)
    return found


def _blocks(lines: Sequence[str]) -> Iterator[Block]:
    in_code, open_block = False, Block([], is_prose=True)
    for line in lines:
        is_fence = bool(_FENCE.match(line))
        if _goes_on(open_block, line) and not in_code and not is_fence:
            open_block.lines.append(line)
            continue
        if open_block.lines:
            yield open_block
        is_prose = not (in_code or is_fence or _VERBATIM.match(line)) and bool(line.strip())
        block = Block([line], is_prose)
        open_block = block if is_prose else Block([], is_prose=True)
        if not is_prose:
            yield block
        in_code ^= is_fence
    if open_block.lines:
        yield open_block


def _goes_on(block: Block, line: str) -> bool:
    """Whether the line belongs to the paragraph or list item before it."""
    if not block.lines or not line.strip() or _ITEM.match(line) or _ROW.match(line):
        return False
    return bool(_ITEM.match(block.lines[0])) or not _VERBATIM.match(line)


def _wrapped(block: Block) -> list[str]:
    if not block.is_prose or all(len(line) <= WIDTH for line in block.lines):
        return block.lines
    item = _ITEM.match(block.lines[0])
    first = item[0] if item else ""
    text = " ".join(line.strip() for line in block.lines)[len(first.strip()) :].strip()
    for width in range(WIDTH, WIDTH - 30, -1):
        lines = textwrap.wrap(
            text,
            width,
            initial_indent=first,
            subsequent_indent=" " * len(first),
            break_long_words=False,
            break_on_hyphens=False,
        )
        # A word such as "-" or "#" at the beginning of a line would be markup.
        if not any(_MEANS_SOMETHING.match(line.lstrip()) for line in lines[1:]):
            return lines
    return lines


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        text = path.read_text()
        if (new := reflow(text)) != text:
            path.write_text(new)
            print(f"reflowed {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
