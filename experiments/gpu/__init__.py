"""What only a CUDA device can show, in eight minutes at most: `python -m experiments.gpu`.

plan      which checks there are, what each needs, what fits into the time
report    the one report, as Markdown or JSON
checks    runs one of them in a process of its own, and writes what it found
copies    the pinned pool, and copies beside a step: needs torch alone
steps     the time between two steps of an engine: needs vLLM
machine   what the machine has, asked without importing more than there is
"""
