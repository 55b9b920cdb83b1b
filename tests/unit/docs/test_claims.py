"""What the pages of docs/ say of commands, settings, metrics and modules holds for the code."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT, PyCF_ONLY_AST
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from prefill_worker.policy import POLICIES
from prefill_worker.types import RequestView
from stream2llm.cluster.config_file import parse_config
from stream2llm.workload.traces.read import read_sessions
from tests.command_lines import parse
from tests.model_families import FAMILIES
from tools.reference.pages import PAGES as REFERENCE

ROOT = Path(__file__).parents[3]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
]
# The changelog names what was, too; the site has a copy of it.
PAGES = [page for page in PAGES if page.stem != "changelog"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_PROMPT = re.compile(r"^\$ (?:[A-Z][A-Z0-9_]*=\S* )*")
_SECTIONS = "ray|controller|router|prefill|decode|handover"
# What `make` and the prose of other programs call their own.
_NO_COMMANDS = {*POLICIES, "POLICY"}


def spans(page: Path) -> list[str]:
    """Inline code, each in one line."""
    return [" ".join(each.split()) for each in _SPAN.findall(_FENCE.sub("", page.read_text()))]


def code_lines(page: Path) -> Iterator[str]:
    """Lines of fenced and indented blocks, continued ones joined, without comments.

    The prompt of a shell, and the variables that a command gets behind it, are left out.
    """
    text = page.read_text()
    blocks = _FENCE.findall(text) + re.findall(r"^ {4}.*$", _FENCE.sub("", text), re.MULTILINE)
    for line in "\n".join(blocks).replace("\\\n", " ").split("\n"):
        yield _PROMPT.sub("", line.split(" #")[0].strip())


def table_rows(page: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Each row's cells with those of its table's head."""
    head: list[str] = []
    for line in page.read_text().split("\n"):
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        head = head or cells
        yield head, cells


# -- commands ------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Every `stream2llm ...` in code, as words behind the program's name."""
    for text in [*spans(page), *code_lines(page)]:
        found = re.match(r"(?:.* -- |.*\| |\S*/)?stream2llm ((?:[a-z]+)(?: .*)?)$", text)
        if found and found[1].split()[0] not in _NO_COMMANDS:
            yield shlex.split(found[1].replace("…", ""))


def _options() -> set[str]:
    """The options of every command, and of the programs that read their options with argparse."""
    folders = ("experiments", "cost_profiles", "examples", "tests/simulation", "tools")
    programs = (ROOT / folder for folder in folders)
    sources = [path.read_text() for folder in programs for path in folder.rglob("*.py")]
    return set(re.findall(r"--[a-z][a-z-]+", "\n".join([REFERENCE["cli.md"](), *sources])))


_OPTIONS = _options()


@each_page
def test_command_lines_parse(page: Path) -> None:
    for words in commands(page):
        parse(words)


def test_a_command_line_that_does_not_parse_is_found() -> None:
    with pytest.raises(AssertionError, match="no command retries"):
        parse(["workers", "retries"])
    with pytest.raises(Exception, match="--colour"):
        parse(["status", "--colour"])


# Options of ruff, buf, ray, docker, kubectl, helm, kubernetes-validate, curl, systemctl, useradd
# and aiperf.
_OF_OTHERS = {
    "--fix", "--against", "--generate", "--head", "--working-dir", "--labels", "--resources",
    "--num-gpus", "--node-ip-address", "--port", "--submission-id", "--runtime-env-json",
    "--target", "--build-arg", "--network", "--gpus", "--shm-size", "--ulimit",
    "--from-file", "--rm", "--restart", "--image", "--command", "--create-namespace",
    "--now", "--system", "--home-dir", "--no-deps", "--strict", "--cacert",
    "--tool-call-parser", "--reasoning-parser",
    "--endpoint-type", "--use-server-token-count", "--extra-inputs", "--no-gpu-telemetry",
    "--no-server-metrics", "--isl", "--osl", "--request-count", "--streaming", "--url", "--model", "--concurrency",
    "--tokenizer",
}  # fmt: skip


@each_page
def test_options_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text()))
    assert not named - _OPTIONS - _OF_OTHERS


@each_page
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [re.match(r"make ([a-z0-9-]+)", text) for text in [*spans(page), *code_lines(page)]]
    assert {found[1] for found in named if found} <= targets


def files_of_tests(page: Path) -> set[str]:
    """Files of tests that a page names: by their path, or by the end of it."""
    return set(re.findall(r"[\w/]*\btest_\w+\.py", page.read_text()))


@each_page
def test_files_of_tests_exist(page: Path) -> None:
    files = [path.as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    for named in files_of_tests(page):
        assert any(path.endswith(f"/{named}") for path in files), named


@each_page
def test_modules_that_are_run_exist(page: Path) -> None:
    for text in [*spans(page), *code_lines(page)]:
        for name in re.findall(r"python -m ([\w.]+)", text):
            assert find_spec(name), name


_FOR_FRAMEWORKS = ("stream2llm.integrations.langchain", "stream2llm.integrations.llama_index")


@each_page
def test_python_is_valid_and_imports_what_there_is(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        tree = compile(block, page.name, "exec", PyCF_ALLOW_TOP_LEVEL_AWAIT | PyCF_ONLY_AST)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert {each.name for each in node.names} <= names_in(node.module)


def names_in(module: str) -> set[str]:
    """What a module defines; of one for a framework, which is not installed here, by its source."""
    if module not in _FOR_FRAMEWORKS:
        return set(dir(import_module(module)))
    spec = find_spec(module)
    tree = ast.parse(Path(spec.origin).read_text())
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {each.name for each in tree.body if isinstance(each, definitions)}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_trace_that_a_page_shows_is_valid(tmp_path: Path) -> None:
    (block,) = blocks("benchmarks.md", "json")
    (tmp_path / "trace.jsonl").write_text(block)
    assert [session.id for session, _ in read_sessions(tmp_path / "trace.jsonl")] == ["q0"]


def test_the_configuration_that_a_page_shows_is_valid() -> None:
    (block,) = blocks("cost-profiles.md", "yaml")
    parse_config(yaml.safe_load(block), source="docs")


# -- settings ------------------------------------------------------------------------


def settings() -> dict[str, str]:
    """Every key of the configuration with its default, as the reference has them."""
    rows = re.findall(
        r"^\| `([\w.]+)` \| [^|]+\| ([^|]+?) \|", REFERENCE["configuration.md"](), re.MULTILINE
    )
    return {key: default.split(" (")[0].strip("`") for key, default in rows}


SETTINGS = settings()


@each_page
def test_settings_exist(page: Path) -> None:
    for text in spans(page):
        for key in re.findall(rf"(?<![\w./])(?:{_SECTIONS})\.(?!init\b|io/)[a-z_.]+", text):
            # What stands below these is vLLM's and the environment's.
            known = re.sub(r"\.(engine|env)\..*", r".\1", key.rstrip("."))
            parts = {
                known,
                *(f"{known}.{each}" for each in ("mode", "max_open_sessions", "labels")),
            }
            assert known.endswith((".py", ".md", ".json")) or parts & SETTINGS.keys(), key


@each_page
def test_defaults_that_a_page_gives_are_those_of_the_code(page: Path) -> None:
    given = re.findall(r"`([\w.]+)` \((\d[\d.,]*)\)", page.read_text())
    for head, cells in table_rows(page):
        if len(cells) > 1 and "default" in head[1]:
            given.append((cells[0].strip("`"), cells[1].strip("`")))
    for key, default in given:
        if key in SETTINGS:
            assert _value(default) == _value(SETTINGS[key]), key


def _value(text: str) -> str | float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return "" if text == "unset" else text


# -- models --------------------------------------------------------------------------


def test_the_table_of_models_is_what_is_tried() -> None:
    rows = [cells for head, cells in table_rows(ROOT / "docs" / "models.md") if head[0] == "model"]
    tried = [[each.name, each.layers, "refused" if each.refusal else "works"] for each in FAMILIES]
    assert [cells[:3] for cells in rows if set(cells[0]) != {"-"} and cells[0] != "model"] == tried


# -- policies ------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["operations.md", "scheduling.md"])
def test_the_table_of_policies_has_all_that_are_built_in(page: str) -> None:
    rows = [cells for head, cells in table_rows(ROOT / "docs" / page) if head[0] == "policy"]
    listed = [_SPAN.findall(cells[0])[0] for cells in rows if "`" in cells[0]]
    assert sorted(listed) == sorted(POLICIES)


def test_the_table_of_what_a_policy_sees_has_all_of_it() -> None:
    rows = [c for h, c in table_rows(ROOT / "docs" / "scheduling.md") if h[:2] == ["field", "unit"]]
    listed = [name for cells in rows for name in _SPAN.findall(cells[0])]
    properties = {n for n, value in vars(RequestView).items() if isinstance(value, property)}
    assert sorted(listed) == sorted({*RequestView._fields, *properties})


# -- metrics -------------------------------------------------------------------------


def metrics() -> dict[str, dict[str, set[str]]]:
    """Every metric of ours with its labels, and the values that are known of each."""
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| ([^|]*) \|", REFERENCE["metrics.md"](), re.MULTILINE)
    found = {}
    for name, labels in rows:
        parts = [re.findall(r"`([^`]+)`", part) for part in labels.split(";")]
        found[name] = {names[0]: set(names[1:]) for names in parts if names}
    return found


METRICS = metrics()


@each_page
def test_metrics_exist_with_their_labels(page: Path) -> None:
    for text in spans(page):
        for name, label, value in re.findall(
            r"(?<!\w)(stream2llm_[a-z_]+)(?:\{(\w+)(?:=\"(\w+)\")?)?", text
        ):
            assert name in METRICS, name
            assert not label or label in METRICS[name], text
            assert not value or value in (METRICS[name][label] or {value}), text


@each_page
def test_tables_of_metrics_name_labels_and_values_that_there_are(page: Path) -> None:
    for head, cells in table_rows(page):
        names = re.findall(r"`(stream2llm_\w+)`", cells[0])
        if head[1:2] != ["labels"] or not names:
            continue
        known = METRICS[names[0]]
        labels = _SPAN.findall(cells[1])
        values = {value for label in labels for value in known[label]}
        named = {each for each in _SPAN.findall(cells[2]) if re.fullmatch("[a-z_]+", each)}
        assert named <= values or not values, names


# -- modules -------------------------------------------------------------------------


@each_page
def test_files_that_a_page_names_without_a_folder_exist(page: Path) -> None:
    named = {text for text in spans(page) if re.fullmatch(r"\w+\.(?:py|proto)", text)}
    there = {path.name for folder in ROOT.glob("[a-z]*") for path in folder.rglob("*.p*")}
    assert named <= there


@each_page
def test_names_in_code_font_occur_in_the_code(page: Path) -> None:
    """Names of log lines, fields, labels and variables: whatever has an underscore inside."""
    names = {text for text in spans(page) if re.fullmatch(r"[A-Za-z]+(?:_[A-Za-z0-9]+)+", text)}
    assert not {name for name in names - METRICS.keys() if name not in _sources()}


@cache
def _sources() -> str:
    folders = [folder for folder in ROOT.glob("[a-z]*") if folder.name not in ("docs", "site")]
    files = [path for folder in folders for path in folder.rglob("*.[pyj][yrsa]*")]
    own = [path for path in files if path.suffix != ".pyc"]
    return "".join(path.read_text() for path in [*own, ROOT / "Makefile"])


def test_code_refers_to_no_file_and_no_document_that_is_not_here() -> None:
    files = [path for folder in ROOT.glob("[a-z]*") for path in folder.rglob("*.[mp][dy]")]
    there = {path.name for path in files}
    for path in files:
        if path.suffix == ".py" and path.parent != Path(__file__).parent:
            text = path.read_text()
            named = re.findall(r"\b(?:docs/|[Ss]ee `?(?:\w+/)*)([\w-]+\.(?:md|py))\b", text)
            assert set(named) <= there, path
            assert not re.search(r"\bDESIGN\b|[Dd]esign document|[Aa]s in the design", text), path


def test_the_map_of_modules_is_that_of_the_import_rules() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    pure = set(contracts["contracts"][2]["source_modules"])
    page = ROOT / "docs" / "architecture.md"
    named: list[str] = []
    for head, (folder, *columns) in table_rows(page):
        if "pure" not in head[1] or not folder.startswith("`"):
            continue
        package = folder.strip("`/").replace("/", ".")
        decides, adapts = (
            [f"{package}.{each}" for each in _SPAN.findall(c)] for c in [*columns, ""][:2]
        )
        named += decides
        assert not pure & set(adapts)
        assert all(map(find_spec, adapts)), adapts
    assert sorted(named) == sorted(pure)


@pytest.mark.parametrize(("table", "contract"), [("layer", 0), ("layer of `serving/`", 1)])
def test_the_map_of_rooms_is_that_of_the_import_rules(table: str, contract: int) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [layer.split(" | ") for layer in contracts["contracts"][contract]["layers"]]
    rows = [c for h, c in table_rows(ROOT / "docs" / "architecture.md") if h[0] == table]
    drawn = [[name.rstrip("/").replace("/", ".") for name in _SPAN.findall(c[0])] for c in rows[2:]]
    assert drawn == layers


@each_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s:]+)\)", _FENCE.sub("", page.read_text())):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        # Made by `make docs`.
        assert file.exists() or name == "changelog.md", target
        assert not anchor or file.parent.name == "reference" or anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
