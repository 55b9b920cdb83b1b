"""Toy tokenizers of each family, made in milliseconds, as directories of a model without weights.

Every one of them has control tokens as models have them: special ones, ones with
`special: false` as `<tool_call>`, some that are in the model's own vocabulary too (and, in
the SentencePiece kinds, reachable by merges or as a unigram piece), and one that strips
the white space around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.tiny_model import tiny_tokenizer

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
CONTROL = ["<|turn|>", "<|end|>", "[INST]", "<tool_call>", "</think>", "<strips>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|turn|>' + m.role }}{% if m.name %} ({{ m.name | trim }}){% endif %}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1] | trim }}"
    "{% elif m.role == 'system' %}{{ m.content | tojson }}{{ '<tool_call>' }}"
    "{% else %}{{ m.content | trim }}{% endif %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
_MARK = "\u2581"
_TEXT = [
    "the quick brown fox jumps over the lazy dog. hello world, what is this? "
    "Documents: inside the end of it. "
] * 20
_CHARACTERS = [chr(code) for code in range(0x20, 0x7F)]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True, slots=True)
class Family:
    """How the tokenizers of one kind are made."""

    name: str
    make: Callable[[], Tokenizer]
    # With `<s>` put before a prompt.
    has_begin: bool = False
    # And `</s>` put behind it.
    has_end: bool = False

    def __str__(self) -> str:
        return self.name

    def tokenizer(self) -> Tokenizer:
        """With its control tokens and what it puts around a text."""
        tokenizer = self.make()
        tokenizer.add_special_tokens([UNKNOWN, BEGIN, END, *CONTROL[:2]])
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in CONTROL[2:5]])
        strips = AddedToken(CONTROL[5], lstrip=True, rstrip=True, special=True, normalized=False)
        tokenizer.add_special_tokens([strips])
        around = f"{BEGIN} " * self.has_begin + "$A" + f" {END}" * self.has_end
        ends = [(text, tokenizer.token_to_id(text)) for text in (BEGIN, END)]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ends)
        return tokenizer

    def make_model(self, path: Path) -> Path:
        """A model directory, with a chat template."""
        path.mkdir(parents=True, exist_ok=True)
        tokenizer = self.tokenizer()
        tokenizer.save(str(path / "tokenizer.json"))
        wrapper: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "unk_token": UNKNOWN,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        vocab_size = tokenizer.get_vocab_size()
        config = {"model_type": "llama", "vocab_size": vocab_size, "eos_token_id": 2}
        (path / "tokenizer_config.json").write_text(json.dumps(wrapper))
        (path / "config.json").write_text(json.dumps(config))
        return path


def _byte_level(*, add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[UNKNOWN, BEGIN, END, "<|turn|>"],  # in the model's vocabulary too
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer


def _llama3() -> Tokenizer:
    """Byte-level, and looks whole words up before it merges: here a control token is one."""
    spec = json.loads(_byte_level().to_str())
    spec["model"]["ignore_merges"] = True
    spec["model"]["vocab"][CONTROL[3]] = len(spec["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _word_pieces() -> dict[str, None]:
    words = {f"{_MARK}{word}" for word in _TEXT[0].split()} | set(_TEXT[0].split())
    # As HuggingFace's conversion has it: control tokens can be merged from their parts.
    reachable = {text[:n] for text in (BEGIN, END, *CONTROL) for n in range(2, len(text) + 1)}
    prefixes = {word[:n] for word in words for n in range(2, len(word) + 1)}
    return dict.fromkeys(sorted(prefixes) + sorted(reachable, key=len))


def _sentencepiece_bpe() -> models.BPE:
    first = [UNKNOWN, BEGIN, END, *_BYTES, _MARK, *_CHARACTERS]
    pieces = [piece for piece in _word_pieces() if piece not in first]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*first, *pieces]))}
    grown = [piece for piece in [*pieces, BEGIN, END] if piece[:-1] in vocab and len(piece) > 1]
    merges = [(piece[:-1], piece[-1]) for piece in sorted(grown, key=len) if piece[-1] in vocab]
    return models.BPE(
        vocab, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True, ignore_merges=False
    )


def _llama2() -> Tokenizer:
    """As the files of Llama 2 and of Mistral 7B have it."""
    tokenizer = Tokenizer(_sentencepiece_bpe())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_MARK), normalizers.Replace(" ", _MARK)]
    )
    tokenizer.decoder = _sentencepiece_decoder()
    return tokenizer


def _metaspace(model: models.Model, prepend_scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_MARK, prepend_scheme=prepend_scheme, split=prepend_scheme != "first"
    )
    tokenizer.decoder = _sentencepiece_decoder()
    return tokenizer


def _gemma() -> Tokenizer:
    """SentencePiece without a word mark."""
    tokenizer = Tokenizer(_sentencepiece_bpe())
    tokenizer.normalizer = normalizers.Replace(" ", _MARK)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _sentencepiece_decoder() -> Any:
    return decoders.Sequence(
        [
            decoders.Replace(_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def _unigram() -> models.Unigram:
    scores = [(piece, -8.0) for piece in [_MARK, *_CHARACTERS]]
    words = [(piece, -4.0 - 1 / len(piece)) for piece in _word_pieces() if len(piece) > 1]
    control = [(UNKNOWN, 0.0), (BEGIN, 0.0), (END, 0.0)]
    vocab = dict([*control, *((piece, -20.0) for piece in _BYTES), *scores])
    vocab.update((piece, score) for piece, score in words if piece not in vocab)
    return models.Unigram(list(vocab.items()), unk_id=0, byte_fallback=True)


FAMILIES = [
    Family("tiny", tiny_tokenizer, has_begin=True),
    Family("byte-level", _byte_level),
    Family("byte-level-begin", _byte_level, has_begin=True),
    Family("byte-level-marked", lambda: _byte_level(add_prefix_space=True), has_begin=True),
    Family("llama3", _llama3, has_begin=True),
    Family("llama2", _llama2),
    Family("llama2-begin", _llama2, has_begin=True),
    Family("llama2-begin-end", _llama2, has_begin=True, has_end=True),
    Family("metaspace-first", lambda: _metaspace(_sentencepiece_bpe(), "first"), has_begin=True),
    Family("metaspace-always", lambda: _metaspace(_sentencepiece_bpe(), "always")),
    Family("gemma", _gemma, has_begin=True),
    Family("unigram", lambda: _metaspace(_unigram(), "always")),
    Family("unigram-begin-end", lambda: _metaspace(_unigram(), "always"), True, True),
]
