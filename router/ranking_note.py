"""The sentence that gives the model the ranking of documents laid out in another order. Pure.

It goes between the documents and the suffix; with a chat template it is in the turn of
the context slot, right behind the documents.
"""

from __future__ import annotations

from router.arrangement import Arrangement
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.options import DocumentOrdering

RANKING, IDS = "{ranking}", "{ids}"
DEFAULT_RANKING_NOTE = (
    "\n\nNumbered in the order in which they stand above, the documents are,"
    " from the most to the least relevant: {ranking}.\n"
)
MAX_RANKING_NOTE_CHARS = 2_000


def check_ranking_note(template: str | None, ordering: DocumentOrdering) -> None:
    """Raises InvalidRequestError unless a session may have this template."""
    if template is None:
        return
    if ordering is not DocumentOrdering.STABLE:
        raise _bad_note("needs open.ordering stable")
    if len(template) > MAX_RANKING_NOTE_CHARS:
        message = f"has {len(template)} characters; at most {MAX_RANKING_NOTE_CHARS} are allowed"
        raise _bad_note(message)
    counts = [template.count(name) for name in (RANKING, IDS)]
    if max(counts) > 1:  # the lists may be long
        raise _bad_note(f"has {RANKING} or {IDS} more than once")
    if template and not any(counts):
        raise _bad_note(f"has neither {RANKING} nor {IDS}")


def ranking_note(template: str | None, arrangement: Arrangement) -> str:
    """Returns the note for these documents; empty if they are in the order of the ranking.

    None stands for the router's own template.
    """
    places = arrangement.hidden_ranking()
    if not places or template == "":
        return ""
    seen = [place for place, each in enumerate(arrangement.documents) if len(each.tokens)]
    numbers = {place: str(number) for number, place in enumerate(seen, start=1)}
    # A document appended without an id has only its number.
    ids = (arrangement.documents[place].document_id or numbers[place] for place in places)
    ranking = ", ".join(numbers[place] for place in places)
    text = DEFAULT_RANKING_NOTE if template is None else template
    # In this order, because an id may contain anything.
    return text.replace(RANKING, ranking).replace(IDS, ", ".join(ids))


def _bad_note(message: str) -> InvalidRequestError:
    field = "open.ranking_note"
    return InvalidRequestError(f"{field} {message}", reason="BAD_RANKING_NOTE", field=field)
