"""A model directory with a real tokenizer and no weights, made in milliseconds.

The vocabulary is byte-level: the 256 bytes, a few merges and three special
tokens, so any text can be encoded and a character may span several tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

EOS, BOS, IM_START = 0, 1, 2
SPECIAL = ["<|end|>", "<|begin|>", "<|turn|>"]
CHAT_TEMPLATE = (
    "{% if tools %}<|turn|>tools\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' and loop.first %}{{ raise_exception('user first') }}{% endif %}"
    "<|turn|>{{ m.role }}\n{{ m.content | trim }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    "{% if enable_thinking is false %}<think></think>{% endif %}"
)
_TEXT = ["the quick brown fox jumps over the lazy dog. hello world, what is this? "] * 20


def tiny_tokenizer(*, with_bos: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", BOS)]
        )
    return tokenizer


def make_tiny_model(
    path: Path,
    *,
    with_bos: bool = False,
    with_chat: bool = True,
    vocab_size: int = 512,
    markers: Sequence[str] = (),
) -> Path:
    """The model's vocabulary is padded beyond the tokenizer's, as is usual.

    `markers` are tokens of their own that are not special, as `<think>` is in most models.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(with_bos=with_bos)
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in markers])
    tokenizer.save(str(path / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[EOS],
        "bos_token": SPECIAL[BOS],
        "clean_up_tokenization_spaces": False,
    }
    if with_chat:
        tokenizer_config["chat_template"] = CHAT_TEMPLATE
    config = {"model_type": "llama", "vocab_size": vocab_size, "eos_token_id": EOS}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, IM_START]}))
    return path
