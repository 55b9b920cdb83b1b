"""The models that other tests rely on are what those tests need.

Works on the shared cache: converts once, later runs find it there.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from stream2llm.models import convert
from stream2llm.models import store as model_store
from stream2llm.models.catalogue import RandomLlama

pytestmark = pytest.mark.slow

NUM_PROMPT_TOKENS = 200
NUM_EARLY_TOKENS = 50
NUM_ANSWER_TOKENS = 8


def load(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()


def greedy_answers(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    import torch

    ids = torch.tensor(prompts)
    # An answer that ends early would be padded, and pads compare equal.
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_ANSWER_TOKENS,
        min_new_tokens=NUM_ANSWER_TOKENS,
        do_sample=False,
    )
    answers: list[list[int]] = output[:, NUM_PROMPT_TOKENS:].tolist()
    return answers


def with_one_token_changed(prompt: list[int], position: int) -> list[int]:
    changed = list(prompt)
    changed[position] = (changed[position] * 7 + 11) % 49_000 + 3
    return changed


def test_any_early_token_decides_the_answer_of_the_sensitive_model() -> None:
    model = load(model_store.ensure_random_llama("sensitive"))
    rng = random.Random(7)
    prompt = [rng.randrange(3, 49_000) for _ in range(NUM_PROMPT_TOKENS)]
    changed = [with_one_token_changed(prompt, i) for i in range(NUM_EARLY_TOKENS)]
    original, *others = greedy_answers(model, [prompt, *changed])
    assert [i for i, answer in enumerate(others) if answer == original] == []
    assert len(set(original)) > NUM_ANSWER_TOKENS // 2


def test_the_same_recipe_gives_the_same_weights(tmp_path: Path) -> None:
    tokenizer_dir = model_store.fetch_default_model()
    recipe = RandomLlama(64, 1, num_heads=2, num_kv_heads=1, dtype="float32", seed=3)
    for name in ("one", "two"):
        convert.write_random_llama(tmp_path / name, recipe, tokenizer_dir)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_the_default_model_answers_a_question() -> None:
    from transformers import AutoTokenizer

    directory = model_store.fetch_default_model()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = load(directory).generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
