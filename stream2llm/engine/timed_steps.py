"""A part of both roles' schedulers: times the steps of vLLM's scheduler, see `step_limit`.

Runs inside vLLM's EngineCore process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput

from stream2llm.engine.step_limit import StepTimer, limit_of_parent
from stream2llm.serving.system.clock import SystemClock

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object


class TimedSteps(_Base):
    """Stands right before vLLM's scheduler among the base classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step_timer = StepTimer(SystemClock(), limit_of_parent())

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedules a step, which runs from now on."""
        output = super().schedule(*args, **kwargs)
        self._step_timer.begin(output.total_num_scheduled_tokens)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Ends the step that has run longest."""
        self._step_timer.end()
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        return outputs
