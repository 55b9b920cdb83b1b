"""Keeps Python's garbage collector from stopping a server.

A full collection traverses every container object of the process. A router has 385,000
of them when it starts, nearly all from imports (transformers, torch, Ray), which live as
long as the process: one to two seconds on a busy core, in which all sessions wait. vLLM
does the same for its EngineCore.
"""

from __future__ import annotations

import gc

# Allocations per young collection; young collections per middle one; middle ones per full
# one. Python's defaults are (700, 10, 10): a few events of sessions, nearly all of whose
# objects are freed without the collector. A collection of 10,000 young objects takes a
# third of a millisecond where few survive; of those that all survive, as when many sessions
# open, 0.15 ms a thousand on an idle core and 0.7 on a busy one. A middle one looks at three
# or four times as many as a young one, and so stays below ten milliseconds. Cycles, which
# alone need the collector, come with errors and cancelled tasks: those of ten million objects
# may wait.
THRESHOLDS = (4_000, 2, 833)


def settle() -> None:
    """Call it once, when everything that lives as long as the process has been created.

    Frees garbage of the start, exempts the rest from later collections, and makes those
    rarer. Stops the process for the duration of one full collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
