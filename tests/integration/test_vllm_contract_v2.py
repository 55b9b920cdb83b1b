"""What we use of vLLM's model runner V2, so that a new version fails here, in words.

Its modules are made of Triton kernels, so they are read here, not imported. docs/model-runners.md
says what each of this is for.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("vllm")

pytestmark = pytest.mark.integration


def source(module: str, name: str) -> str:
    """The source of a class, or of one of its methods ("Class.method"), of vLLM's V2."""
    spec = find_spec(f"vllm.v1.worker.gpu.{module}")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text()
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = [each for each in ast.walk(node) if getattr(each, "name", "") == part]
        assert found, f"{module} has no {name} any more"
        node = found[0]
    segment = ast.get_source_segment(text, node)
    assert segment is not None
    return segment


def test_a_request_has_one_of_max_num_seqs_slots_until_it_ends_or_is_preempted() -> None:
    """What prefill_worker/runner_slots.py counts."""
    runner = source("model_runner", "GPUModelRunner.__init__")
    assert "self.max_num_reqs = self.scheduler_config.max_num_seqs" in runner
    slots = source("states", "RequestState.add_request")
    assert "req_idx = self.free_indices.pop()" in slots
    finish = source("model_runner", "GPUModelRunner.finish_requests")
    assert "finished_req_ids.union(preempted_req_ids)" in finish
    step = source("model_runner", "GPUModelRunner.execute_model")
    assert step.index("self.finish_requests(") < step.index("self.add_requests(")


def test_a_request_announced_as_new_again_replaces_the_runners_copy() -> None:
    add = source("model_runner", "GPUModelRunner.add_requests")
    assert add.index("self._remove_request(req_id)") < add.index("self.req_states.add_request(")
    assert "all_token_ids=new_req_data.prefill_token_ids" in add
    assert "num_computed_tokens=new_req_data.num_computed_tokens" in add


def test_the_runner_counts_computed_tokens_itself() -> None:
    """So a request that has lost some, or got some back, has to be announced anew."""
    inputs = source("model_runner", "GPUModelRunner.prepare_inputs")
    assert "self.req_states.num_computed_tokens.gpu" in inputs
    update = source("model_runner", "GPUModelRunner.update_requests")
    assert "num_computed_tokens.gpu" not in update


def test_connectors_copy_before_the_forward_pass_and_in_steps_without_one() -> None:
    before = source("kv_connector", "ActiveKVConnector.pre_forward")
    assert before.index("handle_preemptions(") < before.index("bind_connector_metadata(")
    assert "self.pre_forward(" in source("kv_connector", "ActiveKVConnector.no_forward")
    step = source("model_runner", "GPUModelRunner.execute_model")
    assert step.rindex("kv_connector.pre_forward(") < step.index("self.model(**model_inputs)")
    after = source("kv_connector", "ActiveKVConnector.post_forward")
    assert "build_connector_worker_meta()" in after


def test_our_logits_processors_come_behind_the_penalties() -> None:
    init = source("sample.sampler", "Sampler.__init__")
    assert init.index("self.penalties_state,") < init.index("*custom_logits_processors")


def test_what_a_logits_processor_is_given() -> None:
    states = source("sample.logits_processor.interface", "LogitsProcRequestState")
    for name in ("all_token_ids", "prompt_len", "prefill_len"):
        assert f"    {name}: " in states
    context = source("sample.logits_processor.interface", "LogitsContext")
    for name in ("idx_mapping_np", "input_ids", "pos", "seq_lens_upper_bound_np"):
        assert f"    {name}: " in context
    add = source("model_runner", "GPUModelRunner.add_requests")
    # The tokens of a request are in its slot when its logits are changed.
    assert "self.req_states.apply_staged_writes()" in add


def test_random_numbers_follow_from_seed_and_position() -> None:
    """So a step that does not finish a prompt, which samples for nothing, changes none."""
    sample = source("sample.gumbel", "gumbel_noised_argmax")
    assert "murmur3_uniform32(seed, pos, keys)" in sample
