"""The sessions whose answers must be those of one engine given the final prompt."""

from __future__ import annotations

from tests.streams import Stream


def _stream(
    name: str, *events: tuple[str, str], stable: str | None = None, **lengths: int
) -> Stream:
    """`events` are ("append" | "update", "names separated by blanks").

    `stable`: the session has stable ordering, and the names stand so at the seal.
    """
    split = tuple((kind, tuple(names.split())) for kind, names in events)
    laid_out = None if stable is None else tuple(stable.split())
    return Stream(name, split, lengths, laid_out=laid_out)


CASES = [
    # -- one-shot and append-mode
    _stream("one document at once", ("append", "a"), a=300),
    _stream("three documents in one event", ("append", "a b c"), a=40, b=50, c=60),
    _stream("three appends", ("append", "a"), ("append", "b"), ("append", "c"), a=100, b=33, c=64),
    _stream("no document"),
    _stream("an empty document", ("append", "a"), a=0),
    _stream("empty documents between others", ("append", "a e b"), ("append", "e2"), a=9, e=0, b=8, e2=0),
    _stream("documents of one token", ("append", "a"), ("append", "b"), ("append", "c"), a=1, b=1, c=1),
    _stream("a document of thousands of tokens", ("append", "a"), ("append", "b"), a=2500, b=30),
    _stream("two documents of thousands of tokens", ("append", "a"), ("append", "b"), a=1500, b=1700),
    _stream("a prompt that fills its last block", ("append", "a"), ("append", "b"), a=20, b=32),
    _stream("a prompt of whole blocks but one token", ("append", "a"), ("append", "b"), a=20, b=31),
    _stream("a prompt one token into a block", ("append", "a"), ("append", "b"), a=20, b=33),
    _stream("the same document twice in one append", ("append", "a b"), ("append", "a2"), a=70, b=30, a2=70),
    # -- update-mode
    _stream("update changes the last document", ("update", "a b"), ("update", "a c"), a=90, b=50, c=61),
    _stream("update changes the first document", ("update", "a b"), ("update", "c b"), a=90, b=50, c=90),
    _stream("update changes a middle document", ("update", "a b c"), ("update", "a d c"), a=70, b=70, c=70, d=70),
    _stream("update changes everything", ("update", "a b"), ("update", "c d"), a=90, b=50, c=61, d=80),
    _stream("update changes the order", ("update", "a b c"), ("update", "c a b"), a=50, b=40, c=30),
    _stream("update shortens the context", ("update", "a b c"), ("update", "a"), a=90, b=50, c=61),
    _stream("update shortens to whole blocks", ("update", "a b"), ("update", "a"), a=57, b=50),
    _stream("update shortens to nothing", ("update", "a b"), ("update", ""), a=90, b=50),
    _stream("update to nothing and back", ("update", "a b"), ("update", ""), ("update", "a b"), a=90, b=50),
    _stream("A, then B, then A again", ("update", "a"), ("update", "b"), ("update", "a"), a=130, b=130),
    _stream("update repeats a document", ("update", "a b"), ("update", "a a b"), a=45, b=50),
    _stream("update repeats the same list", ("update", "a b"), ("update", "a b"), a=45, b=50),
    _stream("update inserts in front", ("update", "a"), ("update", "b a"), ("update", "c b a"), a=45, b=50, c=33),
    _stream("update lengthens", ("update", "a"), ("update", "a b"), ("update", "a b c"), a=200, b=20, c=100),
    _stream("update of thousands of tokens", ("update", "a b"), ("update", "a c"), a=1300, b=900, c=1100),
    # -- update-mode, stable ordering
    _stream("stable, inserts in front", ("update", "a"), ("update", "b a"), ("update", "c b a"), stable="a b c", a=45, b=50, c=33),
    _stream("stable, one leaves and one joins", ("update", "a b c"), ("update", "d c a"), stable="a d c", a=90, b=50, c=61, d=70),
    _stream("stable, mixed with appends", ("append", "a b"), ("update", "c b"), ("append", "d"), ("update", "d b c"), stable="c b d", a=64, b=32, c=96, d=31),
    _stream("stable, repeats a document", ("update", "a b"), ("update", "b a a"), stable="a b a", a=45, b=50),
    # -- mixed
    _stream("append, update, append", ("append", "a b"), ("update", "b"), ("append", "c"), a=90, b=50, c=61),
    _stream("update, append, update", ("update", "a"), ("append", "b"), ("update", "a c b"), a=64, b=32, c=96),
    _stream("update drops what was appended", ("append", "a"), ("append", "b"), ("update", "a"), ("append", "c"), a=64, b=64, c=1),
]  # fmt: skip
