"""Keeps Python's garbage collector from stopping a server.

A full collection looks at every container object of the process. Most of ours
come from imports (transformers, torch, Ray: hundreds of thousands) and live as
long as the process, so that each of them was looked at again for nothing while all
sessions waited.
"""

from __future__ import annotations

import gc

# Containers that may be made before the young ones are looked at; how many such
# rounds make one of the middle generation; how many of those a full one. Python's own
# (700, 10, 10) suit a program of 700 objects: a session's event makes thousands,
# nearly all of which end without the collector. At 10,000 a young round takes
# below a millisecond, one of the middle generation some milliseconds. A hundred
# of these, ten million objects made, before a full one: what
# survives here are sessions, and they have no cycles.
_THRESHOLDS = (10_000, 10, 100)


def settle() -> None:
    """To be called once, when everything that lives as long as the process is there.

    Frees what the start left behind, takes the rest out of all later collections, and makes these
    rarer. Stops the process for as long as one full collection takes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
