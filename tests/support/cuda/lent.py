"""A CUDA tensor in name only: what DLPack says of one, with an address that nobody may touch."""

from __future__ import annotations

import ctypes

new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

CUDA, FLOAT = 2, 2


class ManagedTensor(ctypes.Structure):
    """DLManagedTensor of https://dmlc.github.io/dlpack."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class LentTensor:
    """float32, dense, on the CUDA device with this index. ``streams``: those it was asked for on."""

    def __init__(self, *shape: int, device: int = 0) -> None:
        self.streams: list[object] = []
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._tensor = ManagedTensor(0x1000, CUDA, device, len(shape), FLOAT, 32, 1, self._shape, None, 0, None, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._tensor.device_id

    def __dlpack__(self, *, stream: object = None) -> object:
        self.streams.append(stream)
        return new_capsule(ctypes.addressof(self._tensor), b"dltensor", None)
