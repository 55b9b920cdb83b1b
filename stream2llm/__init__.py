"""LLM serving that overlaps prefill with a context that is still streaming in.

What users import: the client, the configuration, the errors, the command line.
"""

# The one place; the distribution's metadata are made from it. Not the other way round: a Ray job
# brings this folder to nodes on which another version may be installed, or none.
__version__ = "0.2.0"
