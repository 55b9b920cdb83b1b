"""Stock vLLM and Stream2LLM side by side: same model, machine, cores, memory and traces.

scaling    the paper's regime on a smaller engine   cells     what is run, in which order
systems    what a driver asks of a system           memory    KV blocks for a pressure cell
drive      plays a trace in real time               schedule  traces of turns
engines    one host process that owns an engine: messages, host, stock, ours, link
answering  how each baseline uses an engine             cluster   ours as a whole
verdicts   better, equal or worse                   runner    all of it
command    its command line

`python -m experiments baselines`, or `make bench-baselines`. docs/benchmarks.md says how and why.
"""
