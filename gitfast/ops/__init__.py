"""The kernels as functions on arrays.

This module has those of the CPU, on numpy arrays; :mod:`gitfast.ops.cuda` has the same on torch tensors of a CUDA
device, and :mod:`gitfast.ops.reference` says in plain numpy what each computes. Neither is imported by this module.
"""

from gitfast._C import PackedPrefix, PackedWeight, ThreadPool, available_isas, choose_isa
from gitfast.ops.cpu import layer_norm, linear, prefix_attention

__all__ = [
    "PackedPrefix",
    "PackedWeight",
    "ThreadPool",
    "available_isas",
    "choose_isa",
    "layer_norm",
    "linear",
    "prefix_attention",
]
