"""gitfast.ops.cuda against gitfast.ops.reference: on the emulation, and on a device where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gitfast import _C
from gitfast.ops import cuda, reference
from gitfast.ops.cuda_weights import TiledWeight

from support.cuda.select_cases import quantile

ROUNDING = 2.0**-8


def random(device: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, torch.bfloat16)


def doubles(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [t if t is None else t.double().cpu() for t in tensors]


def agree(got: torch.Tensor, truth: np.ndarray) -> None:
    np.testing.assert_allclose(got.double().cpu(), truth, rtol=ROUNDING, atol=1e-4)


@pytest.mark.parametrize("terms", [False, True])
def test_add_layer_norm(device: str, terms: bool) -> None:
    x, gamma, beta = random(device, 5, 72), random(device, 72), random(device, 72)
    bias, residual = (random(device, 72), random(device, 5, 72)) if terms else (None, None)
    got = cuda.add_layer_norm(x, gamma, beta, bias=bias, residual=residual)
    x, gamma, beta, bias, residual = doubles(x, gamma, beta, bias, residual)
    agree(got, reference.add_layer_norm(x, gamma, beta, bias=bias, residual=residual))


@pytest.mark.parametrize("function", ["bias_gelu", "bias_quick_gelu"])
def test_activations(device: str, function: str) -> None:
    x, bias = random(device, 72, 3).T.contiguous(), random(device, 72)
    agree(getattr(cuda, function)(x, bias), getattr(reference, function)(*doubles(x, bias)))
    agree(getattr(cuda, function)(x), getattr(reference, function)(*doubles(x)))


def test_embed_layer_norm(device: str) -> None:
    tables = (random(device, 11, 40), random(device, 5, 40), random(device, 40), random(device, 40) + 1)
    ids = torch.tensor([0, 10, 3, -1, 11], dtype=torch.int32, device=device)
    places = torch.tensor([0, 4, 1, 1, 1], dtype=torch.int32, device=device)
    got = cuda.embed_layer_norm(ids, places, *tables)
    truth = reference.embed_layer_norm(ids.cpu(), places.cpu(), *doubles(*tables))
    np.testing.assert_array_equal(got.isnan().cpu(), np.isnan(truth))
    agree(got[:3], truth[:3])


@pytest.mark.parametrize("stored", [None, "int8", "float8"])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_linear(device: str, stored: str | None, activation: str) -> None:
    x, weight = random(device, 5, 128), TiledWeight.pack(random(device, 21, 128) / 8, stored)
    bias, residual = random(device, 21), random(device, 5, 21)
    got = cuda.linear(x, weight, bias, activation=activation, residual=residual)
    x, plain, bias, residual = doubles(x, weight.unpack(), bias, residual)
    agree(got, reference.linear(x, plain, bias, activation=activation, residual=residual))
    agree(cuda.linear(x.bfloat16(), weight), reference.linear(x, plain))


@pytest.mark.parametrize(("rows", "width"), [(1, 128), (4, 1024), (5, 128), (2, 1088)])
def test_norm_linear(device: str, rows: int, width: int) -> None:
    """By one kernel and by two."""
    x, gamma, beta = random(device, rows, width), random(device, width), random(device, width)
    weight, bias = TiledWeight.pack(random(device, 21, width) / width**0.5, "int8"), random(device, 21)
    got = cuda.norm_linear(x, gamma, beta, weight, bias, eps=1e-3, activation="gelu")
    x, gamma, beta, plain, bias = doubles(x, gamma, beta, weight.unpack(), bias)
    y, truth = reference.norm_linear(x, gamma, beta, plain, bias, eps=1e-3, activation="gelu")
    agree(got[0], y)
    np.testing.assert_allclose(got[1].double().cpu(), truth, rtol=2 * ROUNDING, atol=0.02)


@pytest.mark.parametrize("stored", [None, "int8", "float8"])
def test_head_select(device: str, stored: str | None) -> None:
    x, weight = random(device, 6, 128), TiledWeight.pack(random(device, 300, 128) / 8, stored)
    bias, keys = random(device, 300), torch.arange(6, device=device) * 12345
    step = torch.arange(7, 13, dtype=torch.int32, device=device)
    got = cuda.head_select(x, weight, bias, choices=4, temperature=0.7, keys=keys, step=step, logits=True)
    quantiles = [quantile(*pair) for pair in zip(keys.tolist(), step.tolist(), strict=True)]
    x, plain, bias = doubles(x, weight.unpack(), bias)
    tokens, log_probs, drawn, logits = reference.head_select(
        x, plain, bias, choices=4, temperature=0.7, quantiles=quantiles
    )
    np.testing.assert_array_equal(got.tokens.cpu(), tokens)
    np.testing.assert_array_equal(got.drawn.cpu(), drawn)
    agree(got.log_probs, log_probs)
    agree(got.logits, logits)
    only = cuda.head_select(x.bfloat16(), weight)
    assert only.drawn is None
    assert only.logits is None
    np.testing.assert_array_equal(only.tokens.cpu(), reference.head_select(x, plain)[0])


@pytest.mark.parametrize("splits", [1, 3])
def test_prefix_attention(device: str, splits: int) -> None:
    images, lengths = [0, 0, 0, 1, 1], [2, 1, 3, 0, 2]
    q, k, v = random(device, 5, 2, 16), random(device, 2, 2, 70, 16), random(device, 2, 2, 70, 16) + 1
    store = [random(device, 9, 2, 16), random(device, 9, 2, 16) - 1]
    kv_index = torch.tensor([[8, 1, -1], [8, -1, -1], [8, 1, 5], [-1, -1, -1], [0, 2, -1]], dtype=torch.int32)
    tiles = cuda.attention_tiles(images).to(device)
    assert tiles.tolist() == [[0, 3, 0], [3, 2, 1]]
    text = {"k_text": store[0], "v_text": store[1]}
    text_len = torch.tensor(lengths, dtype=torch.int32, device=device)
    got = cuda.prefix_attention(q, k, v, tiles, **text, kv_index=kv_index.to(device), text_len=text_len, splits=splits)
    named = [row[:n] for row, n in zip(kv_index.tolist(), lengths, strict=True)]
    doubled = dict(zip(text, doubles(*text.values()), strict=True))
    agree(got, reference.prefix_attention(*doubles(q, k, v), images, **doubled, slots=named))
    agree(cuda.prefix_attention(q, k, v, tiles), reference.prefix_attention(*doubles(q, k, v), images))


def test_prefix_attention_stores_new_keys(device: str) -> None:
    q, k_new = random(device, 2, 2, 16), random(device, 2, 2, 16) * 2
    v_new = k_new + 1
    empty = torch.empty(1, 2, 0, 16, dtype=torch.bfloat16, device=device)
    k_text, v_text = torch.zeros(2, 4, 2, 16, dtype=torch.bfloat16, device=device)
    kv_index = torch.tensor([[3], [1]], dtype=torch.int32, device=device)
    ones = torch.ones(2, dtype=torch.int32, device=device)
    got = cuda.prefix_attention(
        q, empty, empty, cuda.attention_tiles([0, 0]).to(device), k_text=k_text, v_text=v_text, kv_index=kv_index,
        text_len=ones, k_new=k_new, v_new=v_new,
    )  # fmt: skip
    assert torch.equal(got, v_new)
    assert torch.equal(k_text[[3, 1]], k_new)
    assert torch.equal(v_text[[3, 1]], v_new)


def test_draws_where_rounding_leaves_a_gap() -> None:
    """A quantile behind the sum of all shares: the last token that has one."""
    bias, x, weight = np.array([0.0, 1.0, 0.5, -np.inf]), np.zeros((2, 1)), np.zeros((4, 1))
    assert reference.head_select(x, weight, bias, quantiles=[1.0, 0.0])[2].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("weight", "dtype", "message"),
    [
        (torch.zeros(8, 64), None, r"weight: expected a 2-D float16 or bfloat16 tensor, got float32 \(8, 64\)"),
        (torch.zeros(64).half(), None, r"weight: expected a 2-D"),
        (torch.zeros(8, 48).half(), None, r"weight: expected rows of a multiple of 32 elements, got float16 \(8, 48\)"),
        (torch.zeros(8, 96).half(), "int8", "weight: expected rows of a multiple of 64 elements"),
        (torch.zeros(8, 64).half(), "int4", "dtype: expected 'int8', 'float8' or None, got 'int4'"),
    ],
)
def test_weights_that_cannot_be_packed(weight: torch.Tensor, dtype: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiledWeight.pack(weight, dtype)


@pytest.mark.parametrize("stored", [None, "int8", "float8"])
def test_packing_and_back(stored: str | None) -> None:
    weight = random("cpu", 13, 128)
    weight[3] = 0
    packed = TiledWeight.pack(weight, stored)
    assert packed.shape == (13, 128)
    unpacked = packed.unpack()
    if stored is None:
        assert torch.equal(unpacked, weight)
        return
    step = (
        packed.scales[:, None] / 2
        if stored == "int8"
        else weight.float().abs() * 2.0**-4 + packed.scales[:, None] / 512
    )
    assert ((unpacked - weight.float()).abs() <= step * 1.001).all()
    assert (unpacked[3] == 0).all()


def test_tensors_that_are_not_on_a_device() -> None:
    if not hasattr(_C, "cuda"):
        with pytest.raises(RuntimeError, match="this build of gitfast has no CUDA kernels"):
            cuda.bias_gelu(torch.zeros(2, 8))
    else:
        with pytest.raises(ValueError, match="expected tensors of a CUDA device, got one of cpu"):
            cuda.bias_gelu(torch.zeros(2, 8))
