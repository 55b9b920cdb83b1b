"""Writes the generated pages of docs/reference/: `make docs-reference`.

One pure function per kind of page turns a model (a JSON schema, a list of metrics, a
command tree, a proto file) into Markdown. Only `pages.py` knows where the models come
from. The pages are committed; a unit test compares them.
"""
