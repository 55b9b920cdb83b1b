"""A Triton backend "cpu" that compiles nothing: kernels run in Triton's interpreter.

vLLM's CPU build switches Triton off unless there is a backend of this name. With
TRITON_INTERPRET=1 nothing is ever compiled, so a name is all that this one has. Triton finds it
where `tests/triton_on_cpu` is on PYTHONPATH, by the entry point beside this package.
"""
