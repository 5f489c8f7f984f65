"""Limits on what building a model may allocate, so that settings in a file can't ask for more than its weights need."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOM = 2**26
"""Bytes that a tensor may have beside those of the weights."""
LARGEST_STATE = 2**28
"""Bytes of memory that a core may keep for one env."""


class Allowance(TorchDispatchMode):
    """Context in which tensors may only be as large, and parameters as many, as is allowed.

    Each operation is tried on tensors without data first, so nothing too large is ever allocated. Results, random
    numbers included, stay the same.

    :param one: largest size of a new tensor in bytes
    :param total: largest size of all new tensors together
    :param parameters: largest number of parameters that modules may get
    """

    def __init__(self, one: int, total: int, parameters: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.one, self.total, self.parameters, self.operations = one, total, parameters, 10_000 + 200 * parameters

    @classmethod
    def for_model(cls, weights: Collection[Tensor]) -> Allowance:
        """Return what building a model with the weights of a file takes, and some room."""
        size = sum(tensor.nbytes for tensor in weights)
        return cls(ROOM + 4 * size, 4 * ROOM + 16 * size, 64 + 4 * len(weights))

    @classmethod
    def for_state(cls) -> Allowance:
        """Return what the memory of one env may take."""
        return cls(LARGEST_STATE, LARGEST_STATE, 0)

    def __enter__(self) -> Any:
        self._hook = register_module_parameter_registration_hook(self._count_parameter)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        self._hook.remove()
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def _count_parameter(self, *registered: Any) -> None:
        self.parameters -= 1
        if self.parameters < 0:
            raise ValueError(_TOO_MANY)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._count(_new_bytes(func, args, kwargs))
        return func(*args, **kwargs)

    def _count(self, size: int) -> None:
        self.total -= size
        self.operations -= 1
        if size > self.one or self.total < 0:
            raise ValueError("its settings ask for a model that is larger than the weights in the file")
        if self.operations < 0:
            raise ValueError(_TOO_MANY)


_TOO_MANY = "its settings ask for a model with more layers than the weights in the file"


def _new_bytes(func: Any, args: Any, kwargs: Any) -> int:
    """Return the bytes that an operation would allocate; 0 where that depends on the data, as for `item`."""
    if not any(returned.alias_info is None for returned in func._schema.returns):
        return 0
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    if "device" in kwargs or not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
        kwargs["device"] = torch.device("meta")
    kwargs.pop("pin_memory", None)
    try:
        made = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError):
        return 0
    return sum(leaf.nbytes for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
