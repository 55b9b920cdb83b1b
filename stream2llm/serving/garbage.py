"""Keeps Python's garbage collector from stopping a server.

A full collection looks at every container object of the process. A router has
385,000 of them when it starts, nearly all of imports (transformers, torch, Ray), which
live as long as the process: one to two seconds on a busy core, in which all
sessions wait. vLLM does the same for its EngineCore.
"""

from __future__ import annotations

import gc

# Containers that may be made before the young ones are looked at; how many such
# rounds make one of the middle generation; how many of those a full one. Python's own
# are (700, 10, 10): a few events of sessions, nearly all of whose objects end without
# the collector. A round over 10,000 young ones takes a third of a millisecond, one over
# 100,000 that all survived 15, and mostly few did. Cycles, which alone need the
# collector, come with errors and cancelled tasks: those of ten million objects may wait.
_THRESHOLDS = (10_000, 10, 100)


def settle() -> None:
    """To be called once, when everything that lives as long as the process is there.

    Frees what the start left behind, takes the rest out of all later collections, and makes these
    rarer. Stops the process for as long as one full collection takes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
