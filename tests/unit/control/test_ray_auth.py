"""The token of a Ray of our own: who can read it, and what Ray's processes start with."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster import ray_auth
from stream2llm.cluster.config import ClusterConfig


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for temporary files with a path as short as the usual one's."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_ray_of_our_own_asks_for_a_token_by_default() -> None:
    assert ClusterConfig().ray.auth_mode == "token"


def test_only_this_user_reads_a_token_and_no_two_are_alike(temp: Path) -> None:
    files = [ray_auth.token_file(name) for name in ("one", "two")]
    for file in files:
        ray_auth.write_token(file)
    assert [mode_of(file) for file in files] == [0o600, 0o600]
    assert mode_of(files[0].parent) == 0o700
    tokens = {file.read_text() for file in files}
    assert [len(token) for token in tokens] == [64, 64]


def test_a_token_never_goes_into_a_file_that_was_there(temp: Path) -> None:
    file = ray_auth.token_file("one")
    file.touch(mode=0o644)
    with pytest.raises(FileExistsError):
        ray_auth.write_token(file)


def test_a_directory_that_others_could_enter_is_closed(temp: Path) -> None:
    (temp / f"stream2llm-{os.getuid()}").mkdir()
    (temp / f"stream2llm-{os.getuid()}").chmod(0o777)
    assert mode_of(ray_auth.private_directory()) == 0o700


def test_a_link_in_place_of_the_directory_is_refused(temp: Path) -> None:
    (temp / f"stream2llm-{os.getuid()}").symlink_to(temp)
    with pytest.raises(UnavailableError, match="not a directory of this user"):
        ray_auth.private_directory()


def test_ray_gets_the_place_of_the_token_and_never_the_token() -> None:
    path = Path("/somewhere/a.token")
    assert ray_auth.own_environment("token", path) == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": None,
        "RAY_AUTH_TOKEN_PATH": "/somewhere/a.token",
    }
    assert ray_auth.own_environment("disabled", path)["RAY_AUTH_TOKEN_PATH"] is None
