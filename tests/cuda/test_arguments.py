"""Arguments of the CUDA kernels, as far as they can be checked without a device."""

from __future__ import annotations

import pytest

from gitfast import _C

from support.cuda.lent import LentTensor

pytestmark = pytest.mark.skipif(not hasattr(_C, "cuda"), reason="this build has no CUDA part")


def arguments(device: int = 0) -> dict[str, object]:
    tensors = {name: LentTensor(3, 8, device=device) for name in ("x", "residual", "out")}
    vectors = {name: LentTensor(8, device=device) for name in ("bias", "gamma", "beta")}
    return tensors | vectors | {"eps": 1e-5}


def test_tensors_are_asked_for_without_synchronizing() -> None:
    given = arguments()
    given["gamma"] = LentTensor(7)
    with pytest.raises(ValueError, match=r"gamma: expected shape \(D=8,\), got \(7,\)"):
        _C.cuda.add_layer_norm(**given)
    assert given["x"].streams == [-1]


@pytest.mark.parametrize("name", ["residual", "out", "bias", "gamma", "beta"])
def test_all_tensors_are_of_one_device(name: str) -> None:
    given = arguments(device=1)
    given[name] = LentTensor(*given[name]._shape, device=0)
    with pytest.raises(ValueError, match=f"{name}: expected a tensor of CUDA device 1, got device 0"):
        _C.cuda.add_layer_norm(**given)


@pytest.mark.skipif(bool(_C.cuda.devices()["devices"]) if hasattr(_C, "cuda") else False, reason="there is a device")
def test_a_missing_driver_is_an_error_and_no_crash() -> None:
    with pytest.raises(RuntimeError, match="cudaGetDevice: cudaError"):
        _C.cuda.add_layer_norm(**arguments())


def test_no_device_has_that_number() -> None:
    devices = _C.cuda.devices()["devices"]
    if not devices:
        pytest.skip(_C.cuda.devices()["problem"])
    with pytest.raises(RuntimeError, match="cudaErrorInvalidDevice"):
        _C.cuda.add_layer_norm(**arguments(device=len(devices)))
