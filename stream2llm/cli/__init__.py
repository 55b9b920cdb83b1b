"""The `stream2llm` command."""
