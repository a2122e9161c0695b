"""The CUDA attention kernel."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gitfast.ops import cuda, reference

from support.cuda import emulated
from support.cuda.attention_cases import COUNTERS, ROUNDING, Case, make_case
from support.cuda.kernels import Kernels, device_only, every_order
from support.tiers import slow, tries

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@every_order
@pytest.mark.parametrize("late_copies", [True, slow(False)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prefix", [0, slow(1), slow(15), slow(16), 17, slow(63), 64, slow(65), 130])
def test_rows_of_an_image(kernels: Kernels, dtype: torch.dtype, prefix: int, late_copies: bool) -> None:
    kernels.set_order(seed=1, late_copies=late_copies)
    case = make_case([3, 17], prefix, 16, dtype, heads=1, device=kernels.device)
    case.run(kernels.prefix_attention)
    assert case.error() <= 1


@every_order
@pytest.mark.parametrize("head_dim", [16, slow(32), 64, 80, slow(128)])
@pytest.mark.parametrize("tile_rows", [16, 64])
def test_every_width_of_a_head(kernels: Kernels, head_dim: int, tile_rows: int) -> None:
    kernels.set_order(seed=2)
    case = make_case(
        [21],
        70,
        head_dim,
        torch.bfloat16,
        text=[i % 4 for i in range(21)],
        tile_rows=tile_rows,
        heads=1,
        device=kernels.device,
    )
    case.run(kernels.prefix_attention)
    assert case.error() <= 1


@every_order
@pytest.mark.parametrize("head_dim", [4, slow(12), 64, 100, slow(128)])
@pytest.mark.parametrize("tile_rows", [16, 64])
def test_every_width_of_a_head_in_float32(kernels: Kernels, head_dim: int, tile_rows: int) -> None:
    kernels.set_order(seed=2)
    text = [i % 4 for i in range(21)]
    case = make_case(
        [21], 70, head_dim, torch.float32, text=text, tile_rows=tile_rows, heads=1, device=kernels.device
    ).split(kernels, 2)
    case.run(kernels.prefix_attention)
    assert case.error() <= 1


@tries(60)
@given(
    rows=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    prefix=st.integers(0, 140),
    lengths=st.lists(st.integers(0, 40), min_size=60, max_size=60),
    dtype=st.sampled_from(DTYPES),
    tile_rows=st.sampled_from([16, 64]),
    append=st.booleans(),
    splits=st.sampled_from([1, 2, 3, 32]),
    order=st.sampled_from(emulated.ORDERS),
    seed=st.integers(0, 1000),
)
def test_any_rows_and_texts(
    kernels: Kernels,
    rows: list[int],
    prefix: int,
    lengths: list[int],
    dtype: torch.dtype,
    tile_rows: int,
    append: bool,
    splits: int,
    order: str,
    seed: int,
) -> None:
    kernels.set_order(order, seed=seed)
    text = [max(n, int(append)) for n in lengths[: sum(rows)]]
    case = make_case(
        rows,
        prefix,
        16,
        dtype,
        text=text,
        tile_rows=tile_rows,
        append=append,
        heads=1,
        seed=seed,
        device=kernels.device,
    )
    case.split(kernels, splits).run(kernels.prefix_attention)
    assert case.error() <= 1


@every_order
@pytest.mark.parametrize("late_copies", [True, slow(False)])
@pytest.mark.parametrize("text", [None, [0, 1, 40, 2]], ids=["alone", "with text"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prefix", [0, 1, 64, 65, 200])
def test_a_split_prefix(
    kernels: Kernels, prefix: int, dtype: torch.dtype, text: list[int] | None, late_copies: bool
) -> None:
    kernels.set_order(seed=3, late_copies=late_copies)
    case = make_case([3, 1], prefix, 16, dtype, text=text, device=kernels.device)
    whole = case.run(kernels.prefix_attention).double()
    for splits in (2, 3, 7):
        case.out = torch.full_like(case.out, torch.nan)
        first = case.split(kernels, splits).run(kernels.prefix_attention).clone()
        assert case.error() <= 1
        assert not case.workspace[:COUNTERS].any(), "the next launch counts from zero"
        assert torch.equal(case.run(kernels.prefix_attention), first)
        assert (first.double() - whole).abs().max() <= 4 * ROUNDING[dtype] * whole.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_split_prefix_is_merged_in_one_order(kernels: Kernels, dtype: torch.dtype) -> None:
    case = make_case([3, 20], 512, 32, dtype, device=kernels.device).cancel().split(kernels, 5)
    results = []
    for order in emulated.ORDERS:  # another block comes last
        kernels.set_order(order, seed=4)
        results.append(case.run(kernels.prefix_attention).clone())
    assert results[0].any()
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_launches_of_other_shapes_share_a_workspace(kernels: Kernels) -> None:
    large = make_case([2, 20, 3], 130, 32, torch.bfloat16, heads=3, device=kernels.device).split(kernels, 3)
    small = make_case([1], 70, 16, torch.float16, heads=1, device=kernels.device).split(kernels, 2)
    small.workspace = large.workspace
    for case in (small, large, small, large):
        case.out.fill_(torch.nan)
        case.run(kernels.prefix_attention)
        assert case.error() <= 1


@every_order
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prefix", [0, 1, 63, 130])
@pytest.mark.parametrize(("tile_rows", "splits", "late_copies"), [(16, 1, True), (16, 2, False), (64, 1, False)])
def test_an_int8_prefix(
    kernels: Kernels, dtype: torch.dtype, prefix: int, tile_rows: int, splits: int, late_copies: bool
) -> None:
    kernels.set_order(seed=5, late_copies=late_copies)
    case = make_case(
        [3, 2], prefix, 64, dtype, text=[0, 1, 2, 3, 1], tile_rows=tile_rows, device=kernels.device
    ).quantize()
    result = case.split(kernels, splits).run(kernels.prefix_attention).clone()
    assert case.error() <= 1
    assert torch.equal(case.dequantize().run(kernels.prefix_attention), result)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "change", "message"),
    [
        (torch.float32, 64, {}, "k_prefix: int8 is for float16 and bfloat16 only"),
        (torch.float16, 16, {}, "k_prefix: expected a head_dim of 64 for int8, got 16"),
        (torch.float16, 64, {"k_scale": None}, "k_scale, v_scale: expected all or none of them"),
        (torch.float16, 64, {"k_scale": None, "v_scale": None}, "k_prefix: expected dtype float16, got int8"),
        (torch.float16, 64, {"v_prefix": torch.zeros(1, 2, 5, 64).half()}, "v_prefix: expected dtype int8"),
        (torch.float16, 64, {"k_scale": torch.zeros(1, 2, 4)}, r"k_scale: expected shape \(B=1, H=2, P=5\)"),
        (torch.float16, 64, {"v_scale": torch.zeros(1, 2, 5).half()}, "v_scale: expected dtype float32, got float16"),
    ],
)  # fmt: skip
def test_bad_arguments_of_an_int8_prefix(
    emulation: ModuleType, dtype: torch.dtype, head_dim: int, change: dict[str, object], message: str
) -> None:
    case = make_case([3], 5, head_dim, dtype).quantize()
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=message):
        case.run(emulation.prefix_attention)


@pytest.mark.parametrize("splits", [1, 3])
def test_new_keys_and_values_are_stored(kernels: Kernels, splits: int) -> None:
    case = make_case([2, 3], 70, 16, torch.float16, text=[3, 1, 2, 4, 2], append=True, device=kernels.device)
    case.split(kernels, splits).run(kernels.prefix_attention)
    for row, length in enumerate(case.text_len.tolist()):
        entry = case.kv_index[row, length - 1]
        assert torch.equal(case.k_text[entry], case.k_new[row])
        assert torch.equal(case.v_text[entry], case.v_new[row])
        case.k_text[entry], case.v_text[entry] = case.before["k"][entry.cpu()], case.before["v"][entry.cpu()]
    assert torch.equal(case.k_text.cpu().isnan(), case.before["k"].isnan()), "nothing else was written"


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile_rows", [16, 64])
def test_a_row_does_not_depend_on_the_others_or_its_tile(
    kernels: Kernels, dtype: torch.dtype, splits: int, tile_rows: int
) -> None:
    text = [(7 * i) % 35 for i in range(20)]
    case = make_case([18, 2], 67, 16, dtype, text=text, heads=1, tile_rows=tile_rows, device=kernels.device)
    together = case.split(kernels, splits).run(kernels.prefix_attention).clone()
    alone = [[row, 1, image] for row, image in enumerate(case.images)]
    case.tiles = torch.tensor(alone, dtype=torch.int32, device=kernels.device)
    assert torch.equal(case.split(kernels, splits).run(kernels.prefix_attention), together)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_of_no_image_are_left_out(kernels: Kernels, dtype: torch.dtype) -> None:
    def make() -> Case:
        case = make_case([3, 2, 1], 130, 16, dtype, text=[1, 2, 1, 3, 1, 2], append=True, device=kernels.device)
        return case if dtype == torch.float32 else case.split(kernels, 2)

    whole, case = make(), make()
    left_out = case.leave_out(1)
    whole.run(kernels.prefix_attention)
    case.run(kernels.prefix_attention)
    assert left_out == [3, 4]
    assert case.out[left_out].isnan().all()
    others = [0, 1, 2, 5]
    assert torch.equal(case.out[others], whole.out[others])
    assert case.k_text is not None
    assert case.kv_index is not None
    for row in range(6):
        stored = case.k_text[case.kv_index[row, case.text_len[row] - 1]]
        assert bool(stored.isnan().all()) == (row in left_out)


def test_large_scores_do_not_overflow(kernels: Kernels) -> None:
    case = make_case([4], 80, 16, torch.bfloat16, text=[0, 1, 2, 33], heads=1, device=kernels.device)
    case.scale = 100.0
    case.run(kernels.prefix_attention)
    assert case.error() <= 1.5  # nearly one-hot: the rounding of the value itself


@device_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128])
@pytest.mark.parametrize("prefix", [0, 1, 63, 65, 197, 901])
def test_rows_of_an_image_of_any_length(kernels: Kernels, dtype: torch.dtype, head_dim: int, prefix: int) -> None:
    case = make_case([prefix or 1, 3], prefix, head_dim, dtype, tile_rows=64, device=kernels.device)
    case.run(kernels.prefix_attention)
    assert case.error() <= 1


@device_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("rows", [[1], [5] * 8, [1, 20, 3]], ids=str)
def test_beams_and_questions(kernels: Kernels, dtype: torch.dtype, append: bool, rows: list[int]) -> None:
    text = [1 + (7 * i) % 40 for i in range(sum(rows))]
    case = make_case(rows, 197, 64, dtype, text=text, append=append, heads=12, device=kernels.device)
    case.run(kernels.prefix_attention)
    assert case.error() <= 1


@device_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128])
@pytest.mark.parametrize("splits", [2, 5, 32])
@pytest.mark.parametrize("prefix", [0, 65, 901])
def test_a_split_prefix_launched_twice(
    kernels: Kernels, dtype: torch.dtype, head_dim: int, splits: int, prefix: int
) -> None:
    text = [1 + (7 * i) % 40 for i in range(26)]
    case = make_case([1, 20, 5], prefix, head_dim, dtype, text=text, append=True, device=kernels.device).split(
        kernels, splits
    )
    for _ in range(2):
        case.out.fill_(torch.nan)
        case.run(kernels.prefix_attention)
        assert case.error() <= 1
    assert not case.workspace[:COUNTERS].any()


@device_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tile_rows", [16, 64])
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("prefix", [0, 65, 901])
def test_an_int8_prefix_of_any_length(
    kernels: Kernels, dtype: torch.dtype, tile_rows: int, splits: int, prefix: int
) -> None:
    text = [i % 40 for i in range(26)]
    case = make_case([1, 20, 5], prefix, 64, dtype, text=text, tile_rows=tile_rows, device=kernels.device).quantize()
    result = case.split(kernels, splits).run(kernels.prefix_attention).clone()
    assert case.error() <= 1
    assert torch.equal(case.dequantize().run(kernels.prefix_attention), result)


@device_only
def test_a_graph_replays_a_split_prefix(kernels: Kernels) -> None:
    case = make_case([5], 901, 64, torch.bfloat16, text=[3] * 5, heads=12, device=kernels.device).split(kernels, 8)
    expected = case.run(kernels.prefix_attention).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.run(kernels.prefix_attention)
    for _ in range(100):
        case.out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(case.out, expected)


@device_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("splits", [1, 4])
def test_is_the_same_every_time_and_in_every_tile(kernels: Kernels, splits: int, dtype: torch.dtype) -> None:
    case = make_case([37, 2], 197, 64, dtype, text=[i % 9 for i in range(39)], heads=12, device=kernels.device)
    case.split(kernels, splits)
    first = case.run(kernels.prefix_attention).clone()
    for _ in range(20):
        assert torch.equal(case.run(kernels.prefix_attention), first)
    case.tile_rows, case.tiles = 64, cuda.attention_tiles(case.images, 64).to(kernels.device)
    assert torch.equal(case.run(kernels.prefix_attention), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 2, 24), "out": torch.zeros(3, 2, 24)}, "k_prefix: expected dtype float32, got bfloat16"),
        ({"tiles": torch.zeros(1, 2, dtype=torch.int32)}, r"tiles: expected shape \(T, 3\), got \(1, 2\)"),
        ({"tiles": torch.zeros(1, 3)}, "tiles: expected dtype int32, got float32"),
        ({"tile_rows": 17}, "tile_rows: expected 16 or 64, got 17"),
        ({"splits": 0}, "splits: expected 1 to 32, got 0"),
        ({"splits": 33}, "splits: expected 1 to 32, got 33"),
        ({"splits": 2}, "workspace: expected one for more than one split"),
        ({"splits": 2, "workspace": torch.zeros(16384 + 2 * 3 * 2 * 20 - 1)},
         "workspace: expected at least 16624 floats, got 16623"),
        ({"splits": 2, "workspace": torch.zeros(20000, dtype=torch.float64)}, "workspace: "),
        ({"splits": 2, "workspace": torch.zeros(20001)[1:]},
         "workspace: expected rows that start at multiples of 16 bytes"),
        ({"scale": 0.0}, "scale: expected a positive number"),
        ({"v_text": None}, "k_text, v_text, kv_index, text_len: expected all or none"),
        ({"k_new": torch.zeros(3, 2, 16, dtype=torch.bfloat16)}, "k_new, v_new: expected"),
        ({"v_prefix": torch.zeros(1, 2, 4, 16, dtype=torch.bfloat16)}, r"v_prefix: expected shape \(B=1, H=2, P=5"),
        ({"q": torch.zeros(3, 4, 16, dtype=torch.bfloat16)[:, ::2]}, "q: the elements of a row are strided"),
        ({"q": torch.zeros(3 * 33 + 1, dtype=torch.bfloat16)[1:].as_strided((3, 2, 16), (33, 16, 1))},
         "q: expected rows that start at multiples of 16 bytes"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(emulation: ModuleType, change: dict[str, object], message: str) -> None:
    case = make_case([3], 5, 16, torch.bfloat16, text=[1, 2, 1])
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=message):
        case.run(emulation.prefix_attention)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        (torch.bfloat16, 24, "q: expected a head_dim of 16, 32, 64, 80 or 128, got 24"),
        (torch.float32, 132, "q: expected a head_dim that is a multiple of 4 up to 128, got 132"),
        (torch.float32, 6, "q: expected rows that start at multiples of 16 bytes"),
    ],
)
def test_a_width_there_is_not(emulation: ModuleType, dtype: torch.dtype, head_dim: int, message: str) -> None:
    case = make_case([3], 5, head_dim, dtype, heads=1)
    with pytest.raises(ValueError, match=message):
        case.run(emulation.prefix_attention)


def test_a_dtype_there_is_not(emulation: ModuleType) -> None:
    case = make_case([3], 5, 16, torch.float16)
    for name in ("q", "k_prefix", "v_prefix", "out"):
        setattr(case, name, torch.zeros_like(getattr(case, name), dtype=torch.int8))
    with pytest.raises(ValueError, match="q: expected float32, float16 or bfloat16, got int8"):
        case.run(emulation.prefix_attention)


def test_sizes_of_a_workspace(emulation: ModuleType) -> None:
    sizes = {"rows": 5, "heads": 12, "head_dim": 64}
    assert emulation.attention_workspace(**sizes, splits=1) == 0
    assert emulation.attention_workspace(**sizes, splits=4) == COUNTERS + 4 * 5 * 12 * (64 + 4)
    for name in sizes:
        with pytest.raises(ValueError, match=f"{name}: expected a size, got -1"):
            emulation.attention_workspace(**(sizes | {name: -1}), splits=4)
    with pytest.raises(ValueError, match="splits: expected 1 to 32, got 33"):
        emulation.attention_workspace(**sizes, splits=33)


def test_more_tiles_and_heads_than_there_are_counters(emulation: ModuleType) -> None:
    case = make_case([1], 1, 16, torch.bfloat16, heads=COUNTERS + 1)
    case.splits, case.workspace = 2, torch.zeros(1)
    with pytest.raises(ValueError, match="splits: expected 1 for more than 16384 tiles x heads, got 2"):
        case.run(emulation.prefix_attention)


@pytest.mark.slow
def test_many_prompts_share_a_split_prefix(kernels: Kernels) -> None:
    """More rows x heads than there are counters: tiles are counted, of up to 16 rows each."""
    case = make_case(
        [16] * 65, 128, 16, torch.bfloat16, text=[1 + i % 3 for i in range(16 * 65)], heads=16, device=kernels.device
    )
    splits = cuda.prefix_splits(128, len(case.tiles), 16)
    assert splits == 2
    assert case.q.shape[0] * case.q.shape[1] > COUNTERS
    case.split(kernels, splits).run(kernels.prefix_attention)
    some = [0, 17, 16 * 65 - 1]
    prefixes = [x.cpu().double() for x in case.prefixes()]
    for row in some:
        k, v = case.keys_values(row, prefixes)
        truth = reference.prefix_attention(case.q[row, None].cpu().double(), k[None], v[None], [0], scale=case.scale)[0]
        assert (case.out[row].cpu().double() - truth).abs().max() <= 0.05


def test_splits_of_few_and_many_tiles() -> None:
    assert [cuda.prefix_splits(tokens) for tokens in (0, 63, 197, 901)] == [1, 1, 3, cuda.DECODE_SPLITS]
    assert cuda.prefix_splits(197, 256, 12) == 3
    assert cuda.prefix_splits(197, COUNTERS // 12 + 1, 12) == 1
