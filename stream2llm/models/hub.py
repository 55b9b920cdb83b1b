"""Models of the Hugging Face hub, in the hub's own cache (`$HF_HOME`), which other programs share.

An id is `org/name`, or `org/name@revision` with a branch, tag or commit. The token is that of
`huggingface_hub`: `$HF_TOKEN`, or what `hf auth login` has stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stream2llm.models.errors import ModelStoreError

_ID = re.compile(r"([\w-][\w.-]*/[\w.-]*\w)(?:@([\w][\w./-]*))?")
# What an engine and a router read of a model; repositories also hold weights in other formats.
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Without these a snapshot in the cache is half of one; other programs leave out some of the rest.
_NEEDED = ["config.json", "tokenizer*.json", "*.safetensors", "*.jinja"]


@dataclass(frozen=True, slots=True)
class HubId:
    """A model of the hub."""

    repository: str
    # A branch, tag or commit; None: the branch `main`.
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def hub_id(text: str) -> HubId | None:
    """The id that this is the text of; None for a plain name, or a path of another form."""
    matched = _ID.fullmatch(text)
    return HubId(*matched.groups()) if matched else None


def require_commit(model: HubId) -> None:
    """Raises ModelStoreError for an id that means what a machine has fetched last."""
    if not _COMMIT.fullmatch(model.revision or ""):
        raise ModelStoreError(
            f"model {model} names no commit, and each node of a Ray that is joined may have"
            f" fetched another one: name it, as {model.repository}@COMMIT, which `stream2llm model"
            " fetch` prints",
            reason="MODEL_NOT_PINNED",
        )


def find(model: HubId) -> Path:
    """The model's directory in the hub's cache; asks no server. Raises ModelStoreError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            model.repository,
            revision=model.revision,
            allow_patterns=_NEEDED,
            local_files_only=True,
        )
    except HFValidationError as error:
        raise _no_id(model) from error
    except LocalEntryNotFoundError:
        raise _not_fetched(model) from None
    path = Path(found)
    if not (path / "config.json").is_file():
        raise _not_fetched(model)
    return path


def _not_fetched(model: HubId) -> ModelStoreError:
    return ModelStoreError(
        f"model {model} is neither a directory nor in the cache of the Hugging Face hub on this"
        f" machine; get it with: stream2llm model fetch {model}",
        reason="MODEL_NOT_FETCHED",
    )


def _no_id(model: HubId) -> ModelStoreError:
    return ModelStoreError(
        f"{model} is neither a directory nor an id that the Hugging Face hub allows",
        reason="MODEL_NOT_FOUND",
    )


def fetch(model: HubId) -> Path:
    """Downloads what is missing of the model; returns its directory in the hub's cache.

    Raises ModelStoreError where the hub refuses it, cannot be reached, or has no safetensors.
    """
    from huggingface_hub import snapshot_download

    with _refusals_explained(model):
        path = Path(
            snapshot_download(model.repository, revision=model.revision, allow_patterns=_FILES)
        )
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ModelStoreError(
            f"{model} has no config.json with *.safetensors beside it: no model that can be served",
            reason="MODEL_NOT_FOUND",
        )
    return path


def pinned(model: HubId, path: Path) -> HubId:
    """The id with the commit of that directory, which names the same files for ever."""
    return HubId(model.repository, path.name)


@contextmanager
def _refusals_explained(model: HubId) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise _no_id(model) from error
    except errors.GatedRepoError as error:
        raise ModelStoreError(
            f"{model} is gated: accept its terms on its page of the hub, and set HF_TOKEN to a"
            " token of the account that did",
            reason="MODEL_GATED",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelStoreError(
            f"{model.repository} has no revision {model.revision!r}", reason="MODEL_NOT_FOUND"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelStoreError(
            f"the hub has no model {model.repository}, or it is private and HF_TOKEN is not set to"
            " a token that may read it",
            reason="MODEL_NOT_FOUND",
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:  # that nothing answers is an OSError
        raise ModelStoreError(
            f"could not download {model}: {_first_line(error)}",
            reason="DOWNLOAD_FAILED",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
