"""Models by their ids of the Hugging Face hub, with its own client and a hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from stream2llm.cluster import preflight
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.models import node_path
from stream2llm.models.errors import ModelStoreError
from stream2llm.models.hub import HubId, hub_id
from stream2llm.models.node_path import same_on_all_nodes
from stream2llm.models.store import fetch_model, resolve_model
from stream2llm.serving.actor.actor_shell import with_model_of_node
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import WorkerSpec
from tests.fakes.hub import COMMIT, FakeHub, serving

FILES = {
    "config.json": b'{"max_position_embeddings": 77}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights again",
}


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when the hub's client is imported."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, and this process as one of its clients, with an empty cache."""
    with serving(FakeHub(files=dict(FILES))) as made:
        point_to(made.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(node_path, "LINKS", tmp_path / "links")
        yield made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("Qwen/Qwen2.5-0.5B@v1", HubId("Qwen/Qwen2.5-0.5B", "v1")),
        ("org/name@refs/pr/1", HubId("org/name", "refs/pr/1")),
        ("name", None),
        ("/abs/name", None),
        ("./org/name", None),
        ("../name", None),
        ("a/b/c", None),
        ("org/name@", None),
        ("~/name", None),
    ],
)
def test_an_id_is_told_from_a_name_and_a_path(text: str, expected: HubId | None) -> None:
    assert hub_id(text) == expected


def test_what_was_fetched_is_found_without_a_server(hub: FakeHub) -> None:
    lines: list[str] = []
    fetched = fetch_model("org/tiny@v1", progress=lines.append)
    assert {path.name for path in fetched.iterdir()} == set(FILES) - {"pytorch_model.bin"}
    assert lines == [f"ready; in a configuration: model: org/tiny@{COMMIT}"]
    asked = len(hub.requests)
    assert resolve_model("org/tiny@v1") == resolve_model(f"org/tiny@{COMMIT}") == fetched
    assert len(hub.requests) == asked
    with pytest.raises(ModelStoreError, match=r"model fetch org/tiny@other$") as caught:
        resolve_model("org/tiny@other")
    assert caught.value.reason == "MODEL_NOT_FETCHED"


def test_a_snapshot_that_is_not_whole_is_fetched_again(hub: FakeHub) -> None:
    fetched = fetch_model("org/tiny")
    (fetched / "model.safetensors").unlink()
    with pytest.raises(ModelStoreError, match="model fetch org/tiny"):
        resolve_model("org/tiny")
    assert fetch_model("org/tiny") == resolve_model("org/tiny") == fetched


def test_a_directory_wins_over_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    (tmp_path / "org" / "tiny" / "config.json").write_text("{}")
    assert resolve_model("org/tiny") == tmp_path / "org" / "tiny"


def test_a_gated_model_names_what_to_accept_and_to_set(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(ModelStoreError, match=r"org/tiny is gated: accept .* HF_TOKEN") as caught:
        fetch_model("org/tiny")
    assert caught.value.reason == "MODEL_GATED"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (fetch_model("org/tiny") / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("org/other", r"has no model org/other, or it is private"),
        ("org/tiny@v9", r"org/tiny has no revision 'v9'"),
    ],
)
def test_what_the_hub_has_not_is_named(hub: FakeHub, name: str, problem: str) -> None:
    with pytest.raises(ModelStoreError, match=problem) as caught:
        fetch_model(name)
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_an_id_that_the_hub_does_not_allow_is_named() -> None:
    for use in (resolve_model, fetch_model):
        with pytest.raises(ModelStoreError, match=r"org/a\.\.b is neither a directory nor an id"):
            use("org/a..b")


def test_a_repository_without_safetensors_is_refused(hub: FakeHub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(ModelStoreError, match="no model that can be served"):
        fetch_model("org/tiny")


def test_a_hub_that_does_not_answer_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:1", monkeypatch)
    with pytest.raises(ModelStoreError, match="could not download org/tiny: ") as caught:
        fetch_model("org/tiny")
    assert caught.value.reason == "DOWNLOAD_FAILED"


def test_the_command_takes_hub_and_cache_from_the_environment(tmp_path: Path) -> None:
    with serving(FakeHub(files=dict(FILES))) as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "stream2llm.cli.main", "model", "fetch", "org/tiny"]
        ended = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stderr
    path = Path(ended.stdout.strip())
    assert path == tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    assert f"model: org/tiny@{COMMIT}" in ended.stderr


def test_clients_name_a_model_by_what_stands_behind_the_slash() -> None:
    assert ClusterConfig(model="org/tiny@v1").model_name == "tiny"
    assert ClusterConfig(model="/models/tiny@v1").model_name == "tiny@v1"
    assert ClusterConfig(model="org/tiny", served_model_name="mine").model_name == "mine"


# -- the submitting machine of a Ray that is joined ----------------------------


def test_a_joined_ray_s_model_need_not_be_here(hub: FakeHub) -> None:
    model = f"org/tiny@{COMMIT}"
    config = ClusterConfig.model_validate({"model": model, "ray": {"address": "auto"}})
    assert preflight.find_model(config, on_this_machine=False) is None
    with pytest.raises(ModelStoreError, match="model fetch org/tiny"):
        preflight.find_model(config, on_this_machine=True)


def test_a_node_finds_the_model_that_the_submitting_machine_has_not(hub: FakeHub) -> None:
    config = ClusterConfig(model="org/tiny")
    router, prefill, _ = (each.spec for each in lay_out(config, None, {}, Factories()))
    assert isinstance(router, RouterSpec)
    assert isinstance(prefill, WorkerSpec)
    with pytest.raises(ModelStoreError, match="model fetch org/tiny"):
        with_model_of_node(prefill)
    fetched = fetch_model("org/tiny")
    assert Path(with_model_of_node(prefill).model_path).samefile(fetched)
    found = with_model_of_node(router)
    assert (found.model_path, found.max_model_len) == (str(fetched), 77)


def test_workers_of_nodes_with_other_caches_load_the_model_by_the_same_path(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's engines hand KV over only where the paths of their models are equal."""
    model = f"org/tiny@{COMMIT}"
    config = ClusterConfig.model_validate({"model": model, "ray": {"address": "auto"}})
    paths, found = set(), []
    for node in ("a", "b"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / node))
        here = fetch_model(model)
        # The submitting machine is one of the nodes.
        _, prefill, decode = (each.spec for each in lay_out(config, here, {}, Factories()))
        for spec in (prefill, decode):
            assert isinstance(spec, WorkerSpec)
            paths.add(with_model_of_node(spec).model_path)
        assert Path(next(iter(paths))).samefile(here)
        found.append(here)
    assert (len(paths), found[0] == found[1]) == (1, False)


def test_a_link_in_a_directory_that_others_can_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, elsewhere, found = (tmp_path / name for name in ("links", "elsewhere", "found"))
    found.mkdir()
    monkeypatch.setattr(node_path, "LINKS", links)
    assert same_on_all_nodes("org/a@b", found).samefile(found)
    links.chmod(0o777)
    elsewhere.symlink_to(found)
    for where in (links, elsewhere):
        monkeypatch.setattr(node_path, "LINKS", where)
        with pytest.raises(ModelStoreError, match="only this user can change"):
            same_on_all_nodes("org/a@b", found)


@pytest.mark.parametrize("model", ["org/tiny", "org/tiny@main", "org/tiny@v1"])
def test_nodes_of_a_joined_ray_need_an_id_with_its_commit(hub: FakeHub, model: str) -> None:
    with pytest.raises(ModelStoreError, match="names no commit") as refused:
        preflight.find_model(ClusterConfig(model=model), on_this_machine=False)
    assert refused.value.reason == "MODEL_NOT_PINNED"


def test_engines_limits_are_kept_where_the_node_finds_the_model(hub: FakeHub) -> None:
    fetch_model("org/tiny")
    config = ClusterConfig.model_validate(
        {"model": "org/tiny", "decode": {"engine": {"max_model_len": 60}}}
    )
    router = lay_out(config, None, {}, Factories())[0].spec
    assert isinstance(router, RouterSpec)
    assert with_model_of_node(router).max_model_len == 60


def test_the_directory_of_the_submitting_machine_is_taken_where_the_node_has_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text("{}")
    prefill = lay_out(ClusterConfig(model="org/tiny"), tmp_path, {}, Factories())[1].spec
    assert isinstance(prefill, WorkerSpec)
    assert with_model_of_node(prefill) is prefill
