"""Shows the traces that a cluster sends, without a tracing backend: `python -m tools.traces`."""
