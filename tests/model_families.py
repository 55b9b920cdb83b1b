"""Tiny models of the families that people serve, each played on an engine with our scheduler.

They have random weights and the layers of their family. Sessions stream in, are updated behind the
windows of their layers, lose their KV to the host and get it back, and are answered; expected is
what `transformers` answers to the whole prompts.

Run as `python -m tests.model_families [NAME...]`; it writes a JSON line for each.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stream2llm.serving.system.ports import pick_port
from tests.two_engines import NIXL_OPTIONS

WORKS = "works"
# Beyond the largest token of `spread`.
_VOCABULARY = 4096
_MAX_TOKEN = 190
_WINDOW = 64
_SHAPE = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_INTERLEAVED = {"sliding_window": _WINDOW, "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL]}
_TWO_SIZES = {
    **_INTERLEAVED,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "vocab_size_per_layer_input": _VOCABULARY,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_LATENT = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "q_lora_rank": None,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
}
_STATE_SPACE = {"state_size": 16, "num_heads": 8, "head_dim": 32, "n_groups": 1}


_ENGINE = {
    "dtype": "float32",
    "block_size": 32,
    # Room for one session and a half.
    "num_gpu_blocks_override": 26,
    "max_model_len": 512,
    "max_num_batched_tokens": 128,
    "max_num_seqs": 2,
}


@dataclass(frozen=True)
class Family:
    """One row of the table in docs/models.md."""

    name: str
    # What its layers keep, in the table's words.
    layers: str
    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    engine_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    # Part of the error with which such an engine does not start; empty: it works.
    refusal: str = ""
    # Whether only processors without AVX-512 and AMX refuse it.
    is_for_larger_cpus: bool = False
    # Digests cover layers whose KV has one size.
    kv_digest: bool = True


FAMILIES = (
    Family("Llama 3.1", "full", "llama", {"rope_parameters": _LLAMA3_ROPE}),
    Family("Qwen 3", "full", "qwen3"),
    Family("Qwen 3 MoE", "full; experts", "qwen3_moe", _EXPERTS),
    Family("Mixtral", "full; experts", "mixtral", {**_EXPERTS, "sliding_window": None}),
    Family("Gemma 2", "windows and full", "gemma2", _INTERLEAVED),
    Family("Gemma 3", "windows and full", "gemma3_text", _INTERLEAVED),
    Family("Gemma 4", "windows and full, of two sizes", "gemma4_text", _TWO_SIZES, kv_digest=False),
    Family(
        "Mistral 7B v0.1",
        "windows",
        "mistral",
        {"sliding_window": _WINDOW},
        refusal="every layer of MistralForCausalLM has a window",
    ),
    Family(
        "Llama 3.1, FP8 KV",
        "full",
        "llama",
        engine_args={"kv_cache_dtype": "fp8"},
        refusal="FP8 KV cache on CPU requires",
        is_for_larger_cpus=True,
    ),
    Family(
        "DeepSeek V2",
        "MLA; experts",
        "deepseek_v2",
        _LATENT,
        {"num_gpu_blocks_override": 52},  # of 16 tokens, as its backend has them
        refusal="a prefill worker needs enable_chunked_prefill=True",
        is_for_larger_cpus=True,
    ),
    Family("Falcon H1", "state space and full", "falcon_h1", refusal="has state-space layers"),
    Family("Mamba 2", "state space", "mamba2", _STATE_SPACE, refusal="has state-space layers"),
)


class _Oracle:
    """Stands for `ReferenceEngine`: the same weights in `transformers`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def answer(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """The greedy answer, an end of sequence as any token."""
        import torch

        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(max_tokens):
                logits = self._model(torch.tensor([tokens])).logits
                tokens.append(int(logits[0, -1].argmax()))
        return tokens[len(prompt) :]


def write_config(family: Family, folder: Path) -> Any:
    """Writes configuration and tokenizer; returns the configuration."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from tests.tiny_model import make_tiny_model

    config = AutoConfig.for_model(family.model_type, **{**_SHAPE, **family.changes})
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type]]
    make_tiny_model(folder)
    config.save_pretrained(folder)
    return config


def write_model(family: Family, folder: Path) -> _Oracle:
    """Writes a model with random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = write_config(family, folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    model.save_pretrained(folder)
    return _Oracle(model)


def play(family: Family) -> str:
    """Returns WORKS, or the error with which the engine did not start; raises AssertionError."""
    from vllm.config import KVTransferConfig

    from prefill_worker.kv_transfer import kv_transfer
    from prefill_worker.local_engine import LocalEngine
    from tests.scheduling.engine_settings import worker_options

    port = pick_port("127.0.0.1", f"family/{os.getpid()}")
    with TemporaryDirectory() as folder:
        oracle = write_model(family, Path(folder))
        try:
            engine = LocalEngine(
                Path(folder),
                kv_transfer_config=KVTransferConfig(**kv_transfer(NIXL_OPTIONS, swaps=True)),
                options=worker_options(
                    preemption="swap", offload_pool_blocks=40, kv_digest=family.kv_digest
                ),
                environment={"VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)},
                **{**_ENGINE, **family.engine_args},
            )
        except Exception as error:  # what an engine refuses, it refuses with errors of many types
            return f"{type(error).__name__}: {error}"
        _play_sessions(engine, oracle)
        engine.close()
    return WORKS


def _play_sessions(engine: Any, oracle: Any) -> None:
    """Four sessions of ten blocks: each streams in, is updated behind its windows, and is answered."""
    from tests.scheduling.engine_driver import EngineDriver

    driver, rng = EngineDriver(engine, oracle, num_answer_tokens=6), random.Random(5)
    finals = {}
    for name in "abcd":
        first, second, third, other = (_document(rng) for _ in range(4))
        driver.open(name, (ord(name),), hand_over=False)
        for documents in ([first], [first, second, third], [first[:2] + other[2:], third, second]):
            driver.update(name, documents)
            _settle(driver)
        finals[name] = (ord(name), *first[:2], *other[2:], *third, *second, 7)
    for name in finals:
        driver.seal(name, (7,))
    _settle(driver)
    assert driver.answers() == {name: driver.whole_answer(each) for name, each in finals.items()}
    driver.check_empty()
    counters = engine.scheduler.counters
    assert counters.invalidated_tokens > 4 * _WINDOW
    assert counters.restored_tokens, "no KV came back from the host"


def _document(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(_MAX_TOKEN) for _ in range(6))


def _settle(driver: Any) -> None:
    while driver.has_work():
        driver.step()
        driver.check()


def _play_into(pipe: Connection, family: Family) -> None:
    try:
        pipe.send(play(family))
    except Exception:
        pipe.send(f"failed: {traceback.format_exc()}")


def outcome_of(family: Family) -> str:
    """Plays in a process of its own, because vLLM keeps global state; what ends it is an outcome."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_play_into, args=(theirs, family))
    process.start()
    theirs.close()
    try:
        outcome: str = ours.recv()
    except EOFError:
        outcome = "failed: the process died"
    process.join()
    return outcome


def main(names: Sequence[str]) -> None:
    """Plays the families of these names, or all."""
    answers_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM and torch print to stdout as they please
    import transformers  # noqa: F401  imported once, inherited by each process
    import vllm  # noqa: F401

    import prefill_worker.local_engine  # noqa: F401

    for family in FAMILIES:
        if not names or family.name in names:
            answers_to.write(
                json.dumps({"name": family.name, "outcome": outcome_of(family)}) + "\n"
            )
            answers_to.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
