"""Run every kernel on arrays that touch a protected page. Usage: guarded.py ISA before|after"""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
KEPT = []  # the mappings under the arrays


def guarded(values: np.ndarray, side: str) -> np.ndarray:
    """A copy of ``values`` directly after a page that faults (``before``), or directly in front of one (``after``)."""
    page = mmap.PAGESIZE
    inner = -(-max(values.nbytes, 1) // page) * page
    mapping = mmap.mmap(-1, inner + 2 * page)
    KEPT.append(mapping)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    for address in (start, start + page + inner):
        if LIBC.mprotect(address, page, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page if side == "before" else page + inner - values.nbytes
    array = np.frombuffer(mapping, values.dtype, values.size, offset).reshape(values.shape)
    array[...] = values
    return array


def read_outside() -> None:
    """Read outside an array, which ends the process."""
    array = guarded(np.zeros(5, np.float32), "after")
    np.ctypeslib.as_array(ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_float)), (6,)).sum()


def run(isa: str, side: str) -> None:
    """Call the kernels over awkward sizes; a touch outside an array ends the process."""
    from gitfast import ops

    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return guarded(rng.standard_normal(shape, np.float32), side)

    for m in (1, 2, 5, 12, 13, 25):
        for n, k in ((1, 1), (15, 3), (16, 17), (33, 31), (100, 257), (129, 64)):
            print("linear", m, n, k, flush=True)
            weight, bias = array(n, k), array(n)
            for activation in ("none", "gelu", "quick_gelu"):
                ops.linear(
                    array(m, k), weight, bias, activation=activation, residual=array(m, n), out=array(m, n), isa=isa
                )
            for dtype in ("bfloat16", "int8", "w8a8"):
                packed = ops.PackedWeight(weight, bias, dtype=dtype)
                ops.linear(array(m, k), packed, residual=array(m, n), out=array(m, n), isa=isa)
    for rows, d in ((1, 1), (3, 15), (2, 16), (5, 17), (2, 100), (1, 768)):
        print("layer_norm", rows, d, flush=True)
        ops.layer_norm(array(rows, d), array(d), array(d), out=array(rows, d), isa=isa)
    for rows in (1, 3, 13):
        for prefix, stored, head_dim in ((0, 1, 1), (1, 2, 15), (16, 3, 16), (17, 5, 24), (33, 20, 64), (300, 7, 70)):
            print("prefix_attention", rows, prefix, stored, head_dim, flush=True)
            shapes = [(rows, 2, head_dim), *[(2, prefix, head_dim)] * 2, *[(stored, 2, head_dim)] * 2]
            q, k, v, k_text, v_text = (array(*shape) for shape in shapes)
            slots = [list(range(stored)), [stored - 1], []] * rows
            out = array(rows, 2, head_dim)
            ops.prefix_attention(q, k, v, k_text=k_text, v_text=v_text, slots=slots[:rows], out=out, isa=isa)
    print("done", flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:])
