"""Generated from proto/stream2llm/v1 by `make proto`; never edited."""
