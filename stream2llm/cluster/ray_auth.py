"""The authentication token of a Ray that this process starts.

Ray runs whatever is posted to its job agent, so its port is a shell for everyone who
reaches it. With token authentication every RPC and every HTTP request carries a secret;
Ray's processes read it from the file that RAY_AUTH_TOKEN_PATH names and inherit that
variable from each other. The secret itself is in no environment, command line or log.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

# A compiled module whose stub does not list them.
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from stream2llm.api.errors import UnavailableError

# Ray's sockets are below this directory, and their paths may have 107 characters.
MAX_DIRECTORY_CHARS = 36
MODE_VARIABLE = "RAY_AUTH_MODE"


def private_directory() -> Path:
    """Returns a directory that only this user can enter; creates it if necessary.

    Raises UnavailableError when another user has put something in its place.
    """
    name = f"stream2llm-{os.getuid()}"
    base = tempfile.gettempdir()
    path = Path(base if len(base) + len(name) < MAX_DIRECTORY_CHARS else "/tmp") / name
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnavailableError(f"{path}: not a directory of this user; remove it, or set TMPDIR")
    path.chmod(0o700)
    return path


def token_file(cluster_id: str) -> Path:
    """Returns the path of the token of a cluster's own Ray while it runs."""
    return private_directory() / f"{cluster_id}.token"


def write_token(path: Path) -> None:
    """Writes a new token to a file that only this user can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def own_environment(mode: str, path: Path) -> dict[str, str | None]:
    """Returns variables for the processes of our own Ray; None removes a variable."""
    return {
        MODE_VARIABLE: mode,
        "RAY_AUTH_TOKEN": None,  # it would take precedence over the file
        "RAY_AUTH_TOKEN_PATH": str(path) if mode == "token" else None,
    }


def read_again() -> None:
    """Resets Ray's cached mode and token; one process may use several Rays.

    In this order: a thread of Ray that is still ending looks for the token while the mode
    requires one, and aborts the process when there is none.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
