"""How the documents of a search come and go while it gets better: several guesses.

Nothing is published about it. The trace generator has one of these models; the
others show what the choice decides.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from stream2llm.workload.document_orders import Lists
from stream2llm.workload.traces.layout import INSERTION_POWER, TOP_K


@dataclass(frozen=True, slots=True)
class UpdateModel:
    """What one update does to a ranking of TOP_K documents."""

    # A new one comes in at TOP_K x u ** this, u uniform in [0, 1): 1 is anywhere.
    insertion_power: float = INSERTION_POWER
    num_new: int = 1
    # All documents are ranked anew, at random.
    reranks: bool = False
    # Nothing falls out, and the first list has one document.
    grows: bool = False

    def redraw(self, session: Lists, rng: random.Random) -> Lists:
        """As many lists of other documents, with sizes drawn from the session's own."""
        ranking = [f"d{number}" for number in range(1 if self.grows else TOP_K)]
        lists, count = [tuple(ranking)], len(ranking)
        for _ in session.lists[1:]:
            if not self.grows:
                del ranking[TOP_K - self.num_new :]
            for _ in range(self.num_new):
                place = int((len(ranking) + 1) * rng.random() ** self.insertion_power)
                ranking.insert(place, f"d{count}")
                count += 1
            if self.reranks:
                rng.shuffle(ranking)
            lists.append(tuple(ranking))
        sizes = sorted(session.sizes.values())
        return Lists(tuple(lists), {f"d{number}": rng.choice(sizes) for number in range(count)})


MODELS: Mapping[str, UpdateModel] = {
    "as the generator": UpdateModel(),
    "at the last place, nearly always": UpdateModel(0.05),
    "rather behind": UpdateModel(0.5),
    "anywhere": UpdateModel(1.0),
    "three at once, near the end": UpdateModel(num_new=3),
    "three at once, anywhere": UpdateModel(1.0, num_new=3),
    "near the end, all ranked anew": UpdateModel(reranks=True),
    "anywhere, none leaves": UpdateModel(1.0, grows=True),
}
