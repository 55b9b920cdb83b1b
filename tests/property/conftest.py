"""Hypothesis on machines that are busy: no time limit for one example."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("stream2llm", deadline=None, print_blob=True)
settings.load_profile("stream2llm")
