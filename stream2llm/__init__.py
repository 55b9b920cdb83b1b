"""LLM serving that overlaps prefill with a context that is still streaming in.

What users import: the client, the configuration, the errors, the command line.
"""

__version__ = "0.1.0"
