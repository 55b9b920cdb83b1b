"""Stock vLLM and Stream2LLM side by side: same model, machine, cores, memory and traces.

scaling    the paper's regime on a smaller engine       cells     what is run, in which order
systems    what a driver asks of a system               schedule  traces of turns, KV memory
drive      plays a trace in real time                   machine   what others compute meanwhile
engines    one host process that owns an engine: messages, host, stock, ours, link
answering  how each baseline uses an engine             cluster   ours as a whole: cluster_link, _host
starting   starts engines and the cluster, ends them    progress  what is done, and the time left
verdicts   better, equal or worse                       runner    all of it
command    its command line

`python -m experiments baselines`, or `make bench-baselines`. docs/benchmarks.md says how and why.
"""
