"""One path for a model on every node, whatever the nodes' caches are called.

vLLM's NIXL connector refuses to hand KV over between engines whose `model` differs, and that is
a path. So workers of several nodes load a model that has a name through a link that is called
the same everywhere.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from urllib.parse import quote

from stream2llm.models.errors import ModelStoreError

# Not the temporary directory of the environment, which nodes may set to different ones.
LINKS = Path(f"/tmp/stream2llm-models-{os.getuid()}")


def same_on_all_nodes(name: str, found: Path) -> Path:
    """Returns the path of a link to `found`, made from the model's name alone.

    `name` has to mean the same files everywhere. Raises ModelStoreError where the link cannot
    be made, or another user could change it.
    """
    link = LINKS / quote(name, safe="")
    try:
        LINKS.mkdir(mode=0o700, exist_ok=True)
        _require_ours(LINKS)
        if not link.is_symlink() or link.readlink() != found:
            _replace(link, found)
    except OSError as error:
        raise ModelStoreError(f"could not make the link {link} to {found}: {error}") from error
    return link


def _require_ours(links: Path) -> None:
    status = links.lstat()
    is_ours = links.is_dir() and not links.is_symlink() and status.st_uid == os.getuid()
    if not is_ours or status.st_mode & 0o022:
        raise ModelStoreError(
            f"{links} is not a directory that only this user can change: remove it"
        )


def _replace(link: Path, found: Path) -> None:
    """In one step: another worker of the node may load the model through it."""
    made = link.with_name(f".{uuid.uuid4().hex}")
    made.symlink_to(found)
    made.replace(link)
