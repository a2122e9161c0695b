"""The CUDA kernels that tests call, on a device or emulated, and marks that choose between the two.

Tests take the fixture ``kernels``. It comes twice, as "device", which is skipped where there is none, and "emulated".
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch

from support.cuda.emulated import ORDERS

T = TypeVar("T")

# The emulation runs the threads of a block in one of several orders. The fast tier takes the one in which threads of
# different warps are furthest apart.
_FAST = "run_ahead"
_EMULATED = [pytest.param(f"emulated {order}", marks=() if order == _FAST else pytest.mark.slow) for order in ORDERS]
every_order = pytest.mark.parametrize("kernels", ["device", *_EMULATED], indirect=True)
every_emulated_order = pytest.mark.parametrize("kernels", _EMULATED, indirect=True)
device_only = pytest.mark.parametrize("kernels", ["device"], indirect=True)
emulated_only = pytest.mark.parametrize("kernels", ["emulated"], indirect=True)


class Kernels:
    """The bound kernels as functions: ``kernels.linear(...)`` runs on torch's current stream.

    Attributes:
        module: The bound functions themselves.
        device: The device of the tensors that they take: "cuda", or "cpu" where they are emulated.
    """

    def __init__(self, module: ModuleType, device: str, order: str = "forward") -> None:
        self.module, self.device, self._order = module, device, order
        self.set_order(seed=1)

    @property
    def emulated(self) -> bool:
        return self.device == "cpu"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        bound = getattr(self.module, name)
        if self.emulated or name.endswith("_workspace"):
            return bound
        return lambda **given: bound(**given, stream=torch.cuda.current_stream().cuda_stream)

    def set_order(self, order: str | None = None, **settings: Any) -> None:
        """Set how threads are emulated, by default in the order of these kernels; a device has its own."""
        if self.emulated:
            self.module.set_order(order or self._order, **settings)

    def pick(self, emulated: T, device: T) -> T:
        """Return the first of two where threads are emulated, which takes long: the smaller."""
        return emulated if self.emulated else device
