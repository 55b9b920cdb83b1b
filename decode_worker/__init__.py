"""The decode worker: pulls the KV blocks and continues from the first token."""
