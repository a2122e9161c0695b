"""Whole texts in one kernel, emulated: all blocks side by side, in every order of threads and blocks."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from support.cuda.caption_cases import EOS, make_caption, same

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "greedy": (1, {"model": {"layers": 1}}),
    "greedy, three images": (3, {"max_new_tokens": 4}),
    "beams": (1, {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "max_new_tokens": 5}),
    "samples": (2, {"do_sample": True, "top_k": 5, "num_return_sequences": 2, "max_new_tokens": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_texts(emulation: ModuleType, order: str, name: str) -> None:
    images, options = CASES[name]
    case = make_caption(images, **options)
    assert same(case.run(emulation), case.expected())


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_weights_of_8_bits_and_early_ends(emulation: ModuleType, beams: int, weights: str) -> None:
    emulation.set_order("shuffled", seed=2)
    case = make_caption(
        2,
        num_beams=beams,
        max_new_tokens=12,
        model={"dtype": torch.bfloat16, "weights": weights, "cluster": 4, "intermediate": 512},
    )
    case.model.head_bias[EOS] = 2.5
    found = case.run(emulation)
    assert same(found, case.expected())
    assert all(reason == "stop" for item in found for *_, reason in item)
    assert case.barrier is not None
    barriers_of_a_step, blocks = 2 * len(case.model.layers) + 2, 2 * 4
    assert case.barrier[0] < 12 * barriers_of_a_step * blocks  # it ended when the texts did
    assert case.barrier[1] == 0


@pytest.mark.parametrize("late_copies", [True, False])
def test_weights_may_come_late_or_early(emulation: ModuleType, late_copies: bool) -> None:
    emulation.set_order("run_ahead", seed=4, late_copies=late_copies)
    case = make_caption(1, max_new_tokens=3)
    assert same(case.run(emulation), case.expected())


def test_the_host_can_listen(emulation: ModuleType) -> None:
    emulation.set_order("forward")
    case = make_caption(2, max_new_tokens=5)
    found = case.run(emulation)
    assert case.told is not None
    assert case.told[0] == max(len(item[0][0]) for item in found)
    for row, ((ids, *_),) in enumerate(found):
        assert case.told[1:].view(-1, 2)[: len(ids), row].tolist() == ids


def test_logits_that_are_no_numbers(emulation: ModuleType) -> None:
    emulation.set_order("forward")
    case = make_caption(2, max_new_tokens=3)
    case.model.step["v_prefix"][:, 1] = torch.nan
    with pytest.raises(ValueError, match="logits: NaN in row 1"):
        case.run(emulation)


def test_blocks_that_do_not_come(emulation: ModuleType) -> None:
    """A count that is never reached ends the kernel, which says so, in place of a wait without end."""
    emulation.set_order("run_ahead", seed=5)
    case = make_caption(1, max_new_tokens=3)
    assert case.run(emulation, first_count=-1) == []
    assert case.barrier is not None
    assert case.barrier[1] == 1


def test_more_choices_than_tokens(emulation: ModuleType) -> None:
    case = make_caption(1, do_sample=True, top_k=61)
    with pytest.raises(ValueError, match="tokens: expected 1 to 61 choices per row, got 62"):
        case.run(emulation)


@pytest.mark.parametrize(("items", "options"), [(1, {}), (2, {}), (1, {"num_beams": 2, "num_return_sequences": 2})])
def test_texts_that_wait_begin_where_others_ended(emulation: ModuleType, items: int, options: dict[str, Any]) -> None:
    emulation.set_order("shuffled", seed=items)
    case = make_caption(3, max_new_tokens=5, **options)
    case.model.head_bias[EOS] = 1.5
    case.items = items
    found = case.run(emulation)
    assert same(found, case.expected())
    lengths = [len(item[0][0]) for item in found]
    assert len(set(lengths)) > 1, "the case is too easy"
