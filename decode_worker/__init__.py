"""The decode worker: reads the KV blocks of a prompt and continues from the first token."""
