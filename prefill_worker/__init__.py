"""The prefill worker: turns a growing context into KV blocks and a first token."""
