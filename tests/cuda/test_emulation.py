"""The emulation of CUDA: copies, tensor cores, warps and limits are what they are on a device."""

from __future__ import annotations

import pytest
import torch

from support.cuda.kernels import Kernels, emulated_only, every_emulated_order


@every_emulated_order
@pytest.mark.parametrize("late_copies", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 8), (32, 16, 32), (33, 24, 72), (70, 40, 200)], ids=str)
def test_asynchronous_copies_and_tensor_cores(
    kernels: Kernels, dtype: torch.dtype, shape: tuple[int, int, int], late_copies: bool
) -> None:
    kernels.set_order(seed=2, late_copies=late_copies)
    M, N, K = shape
    # Small integers: every sum is exact in any order.
    a, b = torch.randint(-8, 9, (M, K)).to(dtype), torch.randint(-8, 9, (K, N)).to(dtype)
    out = torch.full((M, N), torch.nan)
    kernels.tile_product(a, b, out)
    assert torch.equal(out.double(), a.double() @ b.double())


@every_emulated_order
def test_warp_operations(kernels: Kernels) -> None:
    kernels.set_order(seed=3)
    values = torch.randint(-9, 10, (2, 32), dtype=torch.int32)
    out = torch.full((8, 64), 99, dtype=torch.int32)
    kernels.warp_operations(values.flatten(), out)
    lane = torch.arange(32)
    for warp, got in zip(values, out.view(8, 2, 32).unbind(1), strict=True):
        positive = [bool(v > 0) for v in warp]
        ballot = sum(1 << i for i, yes in enumerate(positive) if yes)
        expected = [
            warp[lane // 8 * 8 + 5],
            warp[torch.where(lane % 16 >= 3, lane - 3, lane)],
            warp[torch.where(lane < 26, lane + 6, lane)],
            warp[lane ^ 9],
            torch.full((32,), ballot - (ballot >> 31 << 32)),  # as a signed number
            torch.full((32,), int(bool((warp > 9).any()))),
            torch.full((32,), int(bool((warp < 9).all()))),
            torch.cat([warp[:16].sum().repeat(16), torch.full((16,), sum(positive[16:]))]),
        ]
        assert torch.equal(got, torch.stack(expected).int())


@every_emulated_order
def test_a_store_to_a_block_that_has_ended_is_a_fault(kernels: Kernels) -> None:
    kernels.late_store(wait=True)
    with pytest.raises(kernels.module.Fault, match="shared memory of a block that has ended"):
        kernels.late_store(wait=False)


@emulated_only
def test_its_address_may_have_been_taken_before(kernels: Kernels) -> None:
    kernels.set_order("forward")
    with pytest.raises(kernels.module.Fault, match="a store to the shared memory of a block that has ended"):
        kernels.late_store(wait=False)


@emulated_only
def test_a_launch_beyond_the_limits_is_a_fault(kernels: Kernels) -> None:
    N = 16 * 65536
    with pytest.raises(kernels.module.Fault, match="launch: a grid of 1x65536x1"):
        kernels.tile_product(
            *(torch.zeros(shape, dtype=torch.float16) for shape in ((1, 8), (8, N))), torch.zeros(1, N)
        )
