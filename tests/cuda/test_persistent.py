"""The persistent kernel, emulated: clusters of blocks side by side, in every order of threads and blocks.

On a device it runs in ``test_persistent_engine.py``, and in the program of ``csrc/tests``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.cuda.decode_cases import EOS, Format, make_case
from support.cuda.kernels import Kernels, emulated_only, every_emulated_order
from support.cuda.persistent_cases import make_persistent, same
from support.tiers import slow

SEARCHES: dict[str, tuple[int, dict[str, Any]]] = {
    "greedy": (1, {"model": {"layers": 1}}),
    "greedy, three images": (3, {"max_new_tokens": 4}),
    "beams": (1, {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "max_new_tokens": 5}),
    "samples": (2, {"do_sample": True, "top_k": 5, "num_return_sequences": 2, "max_new_tokens": 4}),
}


@every_emulated_order
@pytest.mark.parametrize("name", SEARCHES)
def test_sequences(kernels: Kernels, name: str) -> None:
    images, options = SEARCHES[name]
    case = make_persistent(images, **options)
    assert same(case.run(kernels), case.expected())


@emulated_only
@pytest.mark.parametrize("beams", [1, slow(4)])
@pytest.mark.parametrize("weights", ["int8", slow("float8")])
def test_weights_of_8_bits_and_early_ends(kernels: Kernels, beams: int, weights: str) -> None:
    kernels.set_order("shuffled", seed=2)
    case = make_persistent(
        2,
        num_beams=beams,
        max_new_tokens=12,
        model={"dtype": torch.bfloat16, "weights": weights, "cluster": 4, "intermediate": 512},
    )
    case.model.head_bias[EOS] = 2.5
    found = case.run(kernels)
    assert same(found, case.expected())
    assert all(reason == "stop" for item in found for *_, reason in item)
    assert case.barrier is not None
    barriers_of_a_step, blocks = 2 * len(case.model.layers) + 2, 2 * 4
    assert case.barrier[0] < 12 * barriers_of_a_step * blocks  # it ended when the sequences did
    assert case.barrier[1] == 0


@emulated_only
@pytest.mark.parametrize("late_copies", [True, False])
def test_weights_may_come_late_or_early(kernels: Kernels, late_copies: bool) -> None:
    kernels.set_order("run_ahead", seed=4, late_copies=late_copies)
    case = make_persistent(1, max_new_tokens=3)
    assert same(case.run(kernels), case.expected())


@emulated_only
def test_the_host_can_listen(kernels: Kernels) -> None:
    kernels.set_order("forward")
    case = make_persistent(2, max_new_tokens=5)
    found = case.run(kernels)
    assert case.token_stream is not None
    assert case.token_stream[0] == max(len(item[0][0]) for item in found)
    for row, ((ids, *_),) in enumerate(found):
        assert case.token_stream[1:].view(-1, 2)[: len(ids), row].tolist() == ids


@emulated_only
def test_logits_that_are_no_numbers(kernels: Kernels) -> None:
    kernels.set_order("forward")
    case = make_persistent(2, max_new_tokens=3)
    case.model.step["v_prefix"][:, 1] = torch.nan
    with pytest.raises(ValueError, match="logits: NaN in row 1"):
        case.run(kernels)


@emulated_only
def test_blocks_that_do_not_come(kernels: Kernels) -> None:
    """A count that is never reached ends the kernel, which says so, instead of a wait without end."""
    kernels.set_order("run_ahead", seed=5)
    case = make_persistent(1, max_new_tokens=3)
    assert case.run(kernels, first_count=-1) == []
    assert case.barrier is not None
    assert case.barrier[1] == 1


@emulated_only
@pytest.mark.parametrize("where", ["embeddings", "layer"])
def test_norms_at_any_address(kernels: Kernels, where: str) -> None:
    case = make_case(1)
    values = case.norm[0] if where == "embeddings" else case.layers[0].given["gamma2"]
    assert values is not None
    moved = torch.cat([values[:1], values])[1:]
    if where == "embeddings":
        case.norm = moved, case.norm[1]
    else:
        case.layers[0].given["gamma2"] = moved
    with pytest.raises(ValueError, match="gamma, beta: expected data at multiples of 16 bytes"):
        case.run(kernels)


@emulated_only
def test_more_choices_than_tokens(kernels: Kernels) -> None:
    case = make_persistent(1, do_sample=True, top_k=61)
    with pytest.raises(ValueError, match="tokens: expected 1 to 61 choices per row, got 62"):
        case.run(kernels)


@emulated_only
@pytest.mark.parametrize(
    ("slots", "options"), [slow(1, {}), (2, {}), slow(1, {"num_beams": 2, "num_return_sequences": 2})]
)
def test_sequences_that_wait_take_free_slots(kernels: Kernels, slots: int, options: dict[str, Any]) -> None:
    kernels.set_order("shuffled", seed=slots)
    case = make_persistent(3, max_new_tokens=5, **options)
    case.model.head_bias[EOS] = 1.5
    case.slots = slots
    found = case.run(kernels)
    assert same(found, case.expected())
    lengths = [len(item[0][0]) for item in found]
    assert len(set(lengths)) > 1, "the case is too easy"


STEPS: dict[str, dict[str, Any]] = {
    "one row": {"rows": 1},
    "float16": {"rows": 3, "dtype": torch.float16},
    "most rows, several keys per lane": {"rows": 8, "cluster": 4, "intermediate": 512, "prefix": 301},
    "int8, three heads": {"rows": 2, "weights": "int8", "heads": 3, "intermediate": 384, "cluster": 3},
    "float8, largest cluster, no image": {
        "rows": 2, "weights": "float8", "cluster": 8, "prefix": 0, "intermediate": 512
    },
    "text longer than a pass": {"rows": 2, "longest": 70, "prefix": 1},
    "one layer": {"rows": 2, "layers": 1, "cluster": 3},
    "more columns than a warp has at once": {
        "rows": 8, "layers": 1, "heads": 5, "intermediate": 320, "cluster": 4, "prefix": 3
    },
}  # fmt: skip


@every_emulated_order
@pytest.mark.parametrize("name", STEPS)
def test_steps(kernels: Kernels, name: str) -> None:
    assert make_case(**STEPS[name]).run(kernels).error() <= 1


@emulated_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_prefixes_of_int8(kernels: Kernels, dtype: torch.dtype) -> None:
    kernels.set_order("shuffled", seed=4)
    assert make_case(3, dtype=dtype, prefix=40).quantize().run(kernels).error() <= 1


@emulated_only
@pytest.mark.parametrize("late_copies", [True, False])
def test_weights_of_a_step_may_come_late_or_early(kernels: Kernels, late_copies: bool) -> None:
    kernels.set_order("shuffled", seed=2, late_copies=late_copies)
    assert make_case(2, seed=1).run(kernels).error() <= 1


@emulated_only
@pytest.mark.slow
@pytest.mark.parametrize("weights", ["same", "int8"])
def test_the_widths_of_git_base(kernels: Kernels, weights: Format) -> None:
    kernels.set_order("shuffled", seed=6)
    case = make_case(2, weights=weights, heads=12, intermediate=3072, layers=1, prefix=197, cluster=8)
    assert case.run(kernels).error() <= 1


@emulated_only
def test_a_row_does_not_depend_on_the_others(kernels: Kernels) -> None:
    kernels.set_order("run_ahead", seed=3)
    together = make_case(5, prefix=40)
    alone = make_case(5, prefix=40)
    together.run(kernels)
    alone.step |= {name: alone.step[name][4:] for name in ("ids", "positions", "image", "kv_index", "text_len")}
    assert torch.equal(together.log_probs[4:], alone.run(kernels).log_probs)


@emulated_only
@pytest.mark.parametrize("prefix", [0, 40])
def test_a_row_may_see_no_prefix(kernels: Kernels, prefix: int) -> None:
    kernels.set_order("shuffled", seed=2)
    assert make_case(3, prefix=prefix).leave_out(1).run(kernels).error() <= 1


@emulated_only
def test_an_id_outside_the_tables_makes_its_row_no_number(kernels: Kernels) -> None:
    case = make_case(3)
    case.step["ids"][1] = 61
    case.step["positions"][2] = -1
    log_probs = case.run(kernels).log_probs
    assert log_probs[0].isfinite().all()
    assert log_probs[1:].isnan().all()


@emulated_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 9}, "rows: expected 1 to 8, got 9"),
        ({"cluster": 1}, "columns of a head / 8: expected 1 to 12, got 24"),
        ({"cluster": 9}, "cluster: expected 1 to 8, got 9"),
        ({"intermediate": 96}, "intermediate: expected a multiple of 64, got 96"),
        ({"layers": 13}, "layers: expected 1 to 12, got 13"),
    ],
)
def test_shapes_that_no_kernel_takes(kernels: Kernels, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"rows": 1} | change
    with pytest.raises(ValueError, match=message):
        make_case(**arguments).run(kernels)


@emulated_only
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image", torch.zeros(2, dtype=torch.int64), "image: expected dtype int32"),
        ("k_text", torch.zeros(2, 3, 2, 64, dtype=torch.bfloat16), "v_text: expected shape"),
        ("k_prefix", torch.zeros(1, 2, 2, 9, 64, dtype=torch.bfloat16), "k_prefix: expected shape"),
    ],
)
def test_arrays_that_do_not_fit(kernels: Kernels, name: str, value: torch.Tensor, message: str) -> None:
    case = make_case(2)
    case.step[name] = value
    with pytest.raises(ValueError, match=message):
        case.run(kernels)


@emulated_only
def test_weights_of_8_bits_beside_float16(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="qkv: expected float16, as the rows, got int8"):
        make_case(1, dtype=torch.float16, weights="int8").run(kernels)


@emulated_only
def test_a_matrix_of_another_shape(kernels: Kernels) -> None:
    case = make_case(1)
    case.layers[1].given["fc2"] = case.layers[1].given["out"]
    with pytest.raises(ValueError, match="fc2: expected a weight of 128 x 256, got 128 x 128"):
        case.run(kernels)
