"""What a configuration's `model` is: a name, which every node resolves for itself, or a path."""

from __future__ import annotations

from pathlib import Path

from stream2llm.models import hub
from stream2llm.models.catalogue import KNOWN_MODELS


def has_name(model: str) -> bool:
    """Whether it is a known name or an id of the hub; a directory that is here wins over an id."""
    return model in KNOWN_MODELS or hub_id_in(model) is not None


def hub_id_in(model: str) -> hub.HubId | None:
    """The id of the hub that it is; None for all else."""
    return None if model in KNOWN_MODELS or Path(model).exists() else hub.hub_id(model)


def require_same_on_all_nodes(model: str) -> None:
    """Raises ModelStoreError for a name that can mean other files on another machine."""
    found = hub_id_in(model)
    if found is not None:
        hub.require_commit(found)
