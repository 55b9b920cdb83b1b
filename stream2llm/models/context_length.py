"""The context length that a model's own files give it."""

from __future__ import annotations

import json
from pathlib import Path

from stream2llm.api.errors import InvalidRequestError

# Stands for a config.json that does not say.
DEFAULT_MAX_MODEL_LEN = 8192


def context_length(model_path: Path) -> int:
    """Tokens that the model was made for; raises InvalidRequestError for a broken config.json."""
    path = model_path / "config.json"
    try:
        return int(
            json.loads(path.read_text()).get("max_position_embeddings", DEFAULT_MAX_MODEL_LEN)
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidRequestError(
            f"{path} is no model's config.json: {error}", field="model"
        ) from error
