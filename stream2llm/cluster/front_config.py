"""What the sections `router` and `gateway` of the configuration file have in common."""

from __future__ import annotations

from pydantic import model_validator

from stream2llm.serving.settings.frozen_model import FrozenModel
from stream2llm.serving.settings.placement import Placement


class FrontConfig(FrozenModel):
    """The place and the ports of what clients connect to."""

    placement: Placement = Placement()
    """The nodes that Ray may place them on."""
    one_per_node: bool = False
    """Whether each has a node of its own, and all have the same ports, as behind one name of
    several addresses. `placement.resources` has to name what each node has one of."""

    @model_validator(mode="after")
    def _has_a_node_of_its_own(self) -> FrontConfig:
        if self.one_per_node and not self.placement.resources:
            raise ValueError(
                "one_per_node needs placement.resources: the custom resource of which every node"
                " for one of them has one (ray start --resources)"
            )
        return self

    def port_of(self, first: int, index: int) -> int:
        """Returns the port of one replica, by the port of the first one; 0 is any free one."""
        return first + index if first and not self.one_per_node else first
