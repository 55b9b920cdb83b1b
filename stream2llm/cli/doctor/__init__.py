"""`stream2llm doctor`: what is wrong with machines, model, configuration and cluster.

`probes` gather facts of a machine, on each node of a Ray where there is one (`remote`);
`machine`, `model` and `cluster` judge them, each check a pure function; `command` prints.
"""
