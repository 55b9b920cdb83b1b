"""Cost profiles: what recomputing and swapping cost on an accelerator."""
