"""Writes model directories: a converted GGUF, or random weights.

Separate from `store` because it imports torch and transformers: the slow half.
Independent of cache, locks and network.

Purpose of the random models: a trained small model does not detect wrong KV, because it
answers much the same over a damaged context. A random one does, if every token of the
prompt affects its answer. With transformers' plain initialisation that is not so: at
initializer_range 0.1, 2-4 layers, 200 prompt tokens, 64-93 % of one-token changes
changed the 8 greedy tokens (attention selects few tokens, and a layer's contribution is
small beside the residual). `attention_gain` and `depth_gain` change this. The preset
`sensitive`, greedy, float32, CPU, 200-token prompts (4 of English text, 3 of random
ids), each of the first 100 tokens changed alone: the first 50 always changed the answer
(350 of 350), all 100 in 696 of 700 cases, on the random prompts in 300 of 300.
Exchanging two neighbouring 32-token blocks of a 1,024-token prompt changed it in 30 of
30 cases. Answers had 5-8 different tokens of 8. So a test of exactness takes several
prompts of random ids. On one such prompt float32 and float64 logits differed by 1e-5 of
their standard deviation, far less than the usual distance between the best two.
"""

from __future__ import annotations

import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream2llm.models.catalogue import RandomLlama

SMOLLM2_CONTEXT_TOKENS = 8192
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def convert_gguf(gguf: Path, directory: Path) -> None:
    """Dequantize a GGUF file to bfloat16 safetensors, with its tokenizer, and check the result."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    _quiet_transformers()
    # The loader draws a progress bar there; errors are exceptions.
    with redirect_stderr(StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
        )
    # The weights are dense now; an engine that read this would look for GGUF blocks.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _save_weights(model, directory)
    _gguf_tokenizer(gguf).save_pretrained(directory)
    verify_model(directory, SMOLLM2_CONTEXT_TOKENS)


def _save_weights(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    # safetensors writes 0600; a cache may be shared between users.
    for weights in directory.glob("*.safetensors"):
        weights.chmod(0o644)


def _gguf_tokenizer(gguf: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    # Some versions of transformers lose the template in this conversion.
    if not tokenizer.chat_template:
        tokenizer.chat_template = _gguf_chat_template(gguf)
    return tokenizer


def _gguf_chat_template(gguf: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.chat_template")
    if field is None:
        raise ValueError(f"{gguf.name} carries no chat template")
    return str(field.contents())


def write_random_llama(directory: Path, recipe: RandomLlama, tokenizer_dir: Path) -> None:
    """Writes the model of a recipe. The same recipe gives the same weights."""
    import torch
    from transformers import LlamaForCausalLM

    _quiet_transformers()
    # The caller's random state must not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(_llama_config(recipe, tokenizer_dir))
    _sensitize(model, recipe.attention_gain, recipe.depth_gain)
    _save_weights(model.to(getattr(torch, recipe.dtype)), directory)
    _copy_tokenizer(tokenizer_dir, directory)
    verify_model(directory, recipe.max_position_embeddings)


def _llama_config(recipe: RandomLlama, tokenizer_dir: Path) -> Any:
    from transformers import AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, local_files_only=True)
    return LlamaConfig(
        vocab_size=recipe.vocab_size or len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=2 * recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=recipe.tie_word_embeddings,
        initializer_range=recipe.initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _sensitize(model: Any, attention_gain: float, depth_gain: float) -> None:
    import torch

    with torch.no_grad():
        for depth, layer in enumerate(model.model.layers):
            layer.self_attn.q_proj.weight.mul_(attention_gain)
            layer.self_attn.k_proj.weight.mul_(attention_gain)
            layer.self_attn.o_proj.weight.mul_(depth_gain**depth)
            layer.mlp.down_proj.weight.mul_(depth_gain**depth)


def _copy_tokenizer(source: Path, directory: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, directory / name)


def verify_model(directory: Path, context_tokens: int) -> None:
    """Loads the model as its users will; raises ValueError when it is not as it should be."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    if model.config.max_position_embeddings != context_tokens:
        raise ValueError(f"{directory} has a context of {model.config.max_position_embeddings}")
    if hasattr(model.config, "quantization_config"):
        raise ValueError(f"{directory} still says it is quantized")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    question = [{"role": "user", "content": "Are you there?"}]
    rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    if "Are you there?" not in rendered:
        raise ValueError(f"the chat template of {directory} loses the question: {rendered!r}")


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
