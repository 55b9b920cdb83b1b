"""Which extra brings a module that the base installation, which is the client, lacks."""

from __future__ import annotations

ENGINE = ("cpu", "gpu")
SERVER = ("server",)
# Import name -> the extras that bring it, any of which will do.
# tests/unit/test_dependencies.py holds this against the imports and pyproject.toml.
EXTRAS_OF = {
    "aiohttp": SERVER,
    "cryptography": SERVER,
    "fastapi": SERVER,
    "gguf": ENGINE,
    "grpc_health": SERVER,
    "grpc_reflection": SERVER,
    "huggingface_hub": SERVER,
    "jinja2": SERVER,
    "jwt": SERVER,
    "langchain_core": ("langchain",),
    "llama_index": ("llama-index",),
    "matplotlib": ("plot",),
    "msgspec": ENGINE,
    "nixl": ENGINE,
    "numpy": SERVER,
    "openai": SERVER,
    "opentelemetry": SERVER,
    "packaging": SERVER,
    "prometheus_client": SERVER,
    "psutil": SERVER,
    "pydantic": SERVER,
    "ray": SERVER,
    "sortedcontainers": SERVER,
    "starlette": SERVER,
    "tokenizers": SERVER,
    "torch": ENGINE,
    "transformers": SERVER,
    "uvicorn": SERVER,
    "vllm": ENGINE,
    "xgrammar": ENGINE,
    "yaml": SERVER,
    "zmq": ENGINE,
}


def not_installed(module: str | None) -> str | None:
    """A line that names the module and the command that installs it; None for one of no extra."""
    top = (module or "").partition(".")[0]
    return f"{top} is not installed: {install_command(top)}" if top in EXTRAS_OF else None


def install_command(module: str) -> str:
    """`pip install 'stream2llm[server]'`, or the two commands of which one will do."""
    return " or ".join(f"pip install 'stream2llm[{extra}]'" for extra in EXTRAS_OF[module])
