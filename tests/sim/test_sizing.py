"""`stream2llm plan`: the fewest workers, by the simulator itself."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream2llm.cli.plan import MIN_SESSIONS, Load, enough
from stream2llm.cluster.config_file import parse_config
from stream2llm.engine.arguments import check_arguments
from stream2llm.simulator.play_trace import Machine
from stream2llm.simulator.sizing import Length, Trial, decode_by_memory, fewest, length_of
from stream2llm.simulator.work import Change, Task
from tests.command_lines import cli
from tests.profiles import a_profile

H200 = (
    "--profile",
    "h200_llama-3.1-8b_tp2",
    "--kv-gib",
    "190",
    "--sessions",
    "100",
    "--ttft",
    "0.3",
)


plan = partial(cli, "plan", *H200)


def planned(*args: str) -> dict[str, Any]:
    result = plan("--json", *args)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def a_trial(number: int, *, meets: bool) -> Trial:
    return Trial(number, 0.1, 0.2, 0.3, 0.2, None, meets, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 31, 47, 48])
def test_the_search_finds_the_edge_in_few_runs(needed: int) -> None:
    found = fewest(lambda number: a_trial(number, meets=number >= needed), limit=48)
    assert found.chosen.num_workers == needed
    assert found.fewer == (a_trial(needed - 1, meets=False) if needed > 1 else None)
    assert len(found.tried) <= 12


def test_a_search_that_finds_nothing_ends_at_the_limit() -> None:
    found = fewest(lambda number: a_trial(number, meets=False), limit=48)
    assert found.chosen is None
    assert found.fewer == a_trial(48, meets=False)
    assert [trial.num_workers for trial in found.tried] == [1, 2, 4, 8, 16, 32, 48]


def test_more_load_never_needs_fewer_workers() -> None:
    chosen = [planned("--rate", rate)["chosen"]["num_workers"] for rate in ("2", "10", "40")]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_one_worker_fewer_does_not_meet_the_target() -> None:
    found = planned("--rate", "40")
    chosen, fewer = found["chosen"], found["fewer"]
    assert fewer["num_workers"] == chosen["num_workers"] - 1
    assert chosen["at_quantile_s"] == chosen["p95_s"] <= 0.3 < fewer["p95_s"]
    assert planned("--rate", "40") == found


MIXED = ("--mixed", "--output-tokens", "32", "--inter-token-target-ms", "20")


@pytest.mark.parametrize("of_role", [(), MIXED], ids=["prefill", "mixed"])
def test_the_printed_commands_give_the_same_latencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_role: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    of_all = ("--rate", "40", "--front-ms", "5", "--token-budget", "4096", "--host-gib", "8")
    args = (*of_all, *of_role)
    chosen = planned(*args)["chosen"]
    commands = plan(*args).stdout.strip().splitlines()[-2:]
    ran = [cli(*shlex.split(command)[1:]) for command in commands]
    assert [result.exit_code for result in ran] == [0, 0], ran[-1].output
    row = next(line for line in ran[-1].stdout.splitlines() if "TTFT from seal" in line)
    shown = [float(cell.replace(",", "")) for cell in row.split("|")[7:10]]
    assert shown == [round(chosen[key] * 1000, 1) for key in ("p50_s", "p95_s", "p99_s")]


def test_a_trace_is_a_load_too(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    made = ("trace", "generate", "crawler", "-n", "100", "--rate", "40", "--tokens-only", "-o")
    assert cli(*made, path).exit_code == 0
    of_file, of_generator = planned("--trace", str(path)), planned("--rate", "40")
    assert of_file["tried"] == of_generator["tried"]


def test_the_configuration_can_be_loaded() -> None:
    found = planned("--rate", "40", "--output-tokens", "300", "--decode-tokens-per-s", "40")
    config = parse_config(found["configuration"], source="plan")
    assert config.prefill.replicas == found["chosen"]["num_workers"]
    assert config.decode.replicas == found["decode"]["num_workers"]
    assert (config.prefill.num_gpus, config.decode.num_gpus) == (2, 2)
    check_arguments("prefill", config.prefill.engine)
    check_arguments("decode", config.decode.engine)
    assert config.prefill.engine["kv_cache_memory_bytes"] == 95 * 2**30
    text = plan("--rate", "40").stdout
    part = text.partition("# configuration\n")[2].partition("# the same run")[0]
    assert yaml.safe_load(part) == {"prefill": found["configuration"]["prefill"]}


def test_mixed_workers_are_planned_with_their_answers() -> None:
    found = planned("--rate", "40", *MIXED, "--decode-tokens-per-s", "30")
    chosen, config = found["chosen"], parse_config(found["configuration"], source="plan")
    assert found["role"] == "mixed"
    assert chosen["at_quantile_s"] <= 0.3
    assert chosen["token_s"] <= 1 / 30
    assert not config.has_pairs
    assert config.mixed is not None
    assert (config.mixed.replicas, config.mixed.inter_token_target_ms) == (
        chosen["num_workers"],
        20,
    )
    text = plan("--rate", "40", *MIXED).stdout
    assert f"mixed: at least {chosen['num_workers']} workers" in text
    assert "decode" not in text


def test_answers_that_are_too_slow_need_more_mixed_workers() -> None:
    slow, fast = (
        planned("--rate", "40", "--mixed", "--output-tokens", "32", "--decode-tokens-per-s", speed)
        for speed in ("5", "100")
    )
    assert slow["chosen"]["num_workers"] < fast["chosen"]["num_workers"]
    assert fast["fewer"]["at_quantile_s"] <= 0.3 < 1
    assert fast["fewer"]["token_s"] > 0.01


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--mixed",), "--mixed needs --output-tokens"),
        (("--inter-token-target-ms", "20"), "is for mixed workers"),
    ],
)
def test_options_of_mixed_workers_belong_together(args: tuple[str, ...], message: str) -> None:
    result = plan(*args)
    assert (result.exit_code, result.stdout) == (3, "")
    assert message in result.stderr


def test_what_no_number_meets_is_said_with_its_numbers() -> None:
    result = plan("--rate", "40", "--limit", "1")
    assert result.exit_code == 3
    assert "no number of prefill workers up to 1 meets it" in result.stdout
    assert "<- fewest" not in result.stdout
    assert "# configuration" not in result.stdout


def test_a_load_that_is_mostly_beginning_and_end_gives_a_lower_bound() -> None:
    short, long = plan("--rate", "40").stdout, plan("--rate", "0.5").stdout
    assert "the number of workers is a lower bound; --sessions 3" in short
    assert "prefill: at least " in short
    assert "lower bound" not in long
    assert "prefill: 1 workers" in long
    assert planned("--rate", "40")["is_lower_bound"] is True
    assert planned("--rate", "0.5")["is_lower_bound"] is False


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(0.5, 500, 500), (7.0, 501, 899), (40.0, 900, 900)]
)
def test_without_a_number_there_are_sessions_enough(rate: float, least: int, most: int) -> None:
    load, asked = enough(Load("a profile", None, "crawler", rate, MIN_SESSIONS, 0, 1.0), most=900)
    assert least <= load.sessions <= most
    assert len(asked) == load.sessions
    assert length_of(asked).is_enough is (rate < 40)


def test_all_sessions_at_once_have_no_number_that_is_enough() -> None:
    length = Length(0.0, 3.0, 7)
    assert (length.is_enough, length.sessions_wanted) == (False, 7)


@pytest.mark.parametrize("option", ["--output-tokens", "--decode-tokens-per-s"])
def test_half_of_what_decode_needs_is_refused(option: str) -> None:
    result = plan(option, "10")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "belong together" in result.stderr


@pytest.mark.parametrize("option", ["--output-tokens", "--decode-tokens-per-s"])
def test_an_infinite_decode_figure_is_refused(option: str) -> None:
    result = plan("--output-tokens", "10", "--decode-tokens-per-s", "10", option, "inf")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "not a finite number" in result.stderr


def test_without_a_decode_target_decode_is_left_open() -> None:
    assert "the profile has no times of decode steps" in plan("--rate", "1").stdout


def test_decode_memory_by_hand() -> None:
    machine = Machine(a_profile(), kv_gib=1.0)
    room = machine.num_blocks(1.0) * machine.profile.block_size
    asked = [
        Task(f"q{n}", (Change(float(n), 0, 10, False), Change(n + 1.0, 10, room // 10, True)))
        for n in range(11)
    ]
    # 1 session/s for 100 s each: 100 answers, each a tenth of a worker and its own tokens.
    found = decode_by_memory(machine, asked, output_tokens=100, tokens_per_s=1.0)
    assert (found.num_answers, found.tokens_a_worker) == (100, room)
    assert found.num_workers == -(-100 * (room // 10 + 100) // room)
