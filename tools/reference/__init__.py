"""Writes the generated pages of docs/reference/: `make docs-reference`.

One pure function for each kind of page turns a model (a JSON schema, a list of
metrics, a command tree, a proto file) into Markdown. `pages.py` alone knows
where the models come from. The pages are committed; a unit test compares them.
"""
