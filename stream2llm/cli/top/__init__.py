"""`stream2llm top`: a live view of a whole cluster.

`scrape` asks the controller and every process it names, `view` makes a frozen view of two
scrapes, `render` draws it, `command` loops. Only `scrape` and `command` act.
"""
