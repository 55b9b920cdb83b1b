"""The half of a backend that launches kernels: vLLM asks whether it is active."""

from __future__ import annotations

import os
from typing import Any

from triton.backends.driver import DriverBase


class InterpreterDriver(DriverBase):
    """Is active where kernels are interpreted."""

    @classmethod
    def is_active(cls) -> bool:
        return os.environ.get("TRITON_INTERPRET") == "1"

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_current_target(self) -> Any:
        raise NotImplementedError

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError
