"""Retrieval frameworks and sessions: `feed` needs none, each of the others the extra of its name."""
