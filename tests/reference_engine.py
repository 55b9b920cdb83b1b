"""One plain vLLM engine, in a process of its own: what every answer is compared with.

No scheduler of ours, no transfer, no prefix cache: the final prompt as token
ids in, greedy token ids out. Run as `python -m tests.reference_engine MODEL
MAX_MODEL_LEN`; it reads one JSON request a line and writes one JSON answer a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class ReferenceEngine:
    """The client half: starts the process with the first question, caches answers."""

    def __init__(self, model: Path, max_model_len: int) -> None:
        self._command = [sys.executable, "-m", __name__, str(model), str(max_model_len)]
        self._process: subprocess.Popen[str] | None = None
        self._answers: dict[str, list[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(60)
            self._process.stdout.close()

    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, **sampling: Any
    ) -> list[list[int]]:
        """The answers' token ids; greedy unless `sampling` says otherwise.

        It has vLLM's parameters, and `bad_word_ids` for bad words as token ids.
        """
        params = {"temperature": 0.0, "ignore_eos": True, "max_tokens": max_tokens, **sampling}
        keys = [json.dumps([list(prompt), params]) for prompt in prompts]
        unknown = [key for key in dict.fromkeys(keys) if key not in self._answers]
        if unknown:
            asked = {"prompts": [json.loads(key)[0] for key in unknown], "params": params}
            self._answers.update(zip(unknown, self._ask(asked), strict=True))
        return [self._answers[key] for key in keys]

    def answer(self, prompt: Sequence[int], max_tokens: int, **sampling: Any) -> list[int]:
        """The answer to one prompt."""
        return self.answers([prompt], max_tokens, **sampling)[0]

    def _ask(self, request: dict[str, Any]) -> list[list[int]]:
        process = self._running()
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, f"the reference engine died with status {process.wait(10)}"
        answers: list[list[int]] = json.loads(line)
        return answers

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **_ENVIRONMENT},
                cwd=Path(__file__).parents[1],
            )
        return self._process


def _serve(model: str, max_model_len: int) -> None:
    # vLLM and torch print to stdout as they please: keep the real one for us.
    answers_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_model_len=max_model_len,
        max_num_seqs=16,
        enable_prefix_caching=False,
    )
    for line in sys.stdin:
        request = json.loads(line)
        raw = request["params"]
        bad_word_ids = raw.pop("bad_word_ids", None)
        bias = {int(token_id): bias for token_id, bias in raw.pop("logit_bias", {}).items()}
        constraint = raw.pop("structured_outputs", None)
        params = SamplingParams(detokenize=False, logit_bias=bias or None, **raw)
        params._bad_words_token_ids = bad_word_ids
        if constraint is not None:
            params.structured_outputs = StructuredOutputsParams(**constraint)
        prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        answers_to.write(json.dumps(answers) + "\n")
        answers_to.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
