"""The CUDA kernels of searches: they find what csrc/search finds."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gitfast.ops.cuda import SearchState, Selection
from gitfast.ops.cuda_weights import TiledWeight

from support.cuda import emulated
from support.cuda.kernels import Kernels, device_only, every_order
from support.cuda.search_cases import CONTEXTS, Case, equal_choices, make_case
from support.tiers import slow, tries


def beams_error(case: Case, kernels: Kernels) -> float:
    """Check that beams are those of csrc/search, with scores equal to the bit; return the error of the rest."""
    count = min(2 * case.options["num_beams"], case.language.vocab_size)
    found = case.on_device(kernels, case.likeliest(count), kernels.device)
    scores = [[score for _, _, score, _ in item] for item in found]
    assert scores == [[score for _, _, score, _ in item] for item in case.on_host()]
    return case.error(found)


@every_order
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("num_beams", [2, 3, slow(5), slow(16)])
def test_beams(kernels: Kernels, num_beams: int, early_stopping: bool | str) -> None:
    for seed, (vocab_size, length_penalty) in enumerate([(7, -1.0), (40, 0.6), (300, 2.0)]):
        case = make_case(
            vocab_size, seed=seed, num_beams=num_beams, num_return_sequences=1 + seed % num_beams,
            length_penalty=length_penalty, early_stopping=early_stopping)  # fmt: skip
        assert beams_error(case, kernels) <= 1


@tries(60)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(3, 50),
    num_beams=st.integers(2, 16),
    returned=st.integers(1, 16),
    length_penalty=st.floats(-2, 3),
    form=st.sampled_from(["transformers", "paper"]),
    early_stopping=st.sampled_from([False, True, "never"]),
    max_new_tokens=st.integers(1, 20),
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4),
    eos_bias=st.sampled_from([-2.0, 0.0, 2.0, 4.0]),
    order=st.sampled_from(emulated.ORDERS),
)
def test_any_beams(
    kernels: Kernels,
    seed: int,
    vocab_size: int,
    num_beams: int,
    returned: int,
    length_penalty: float,
    form: str,
    early_stopping: bool | str,
    max_new_tokens: int,
    prompts: list[list[int]],
    eos_bias: float,
    order: str,
) -> None:
    kernels.set_order(order, seed=seed)
    case = make_case(
        vocab_size, prompts, seed=seed, eos_bias=eos_bias, num_beams=num_beams,
        num_return_sequences=min(returned, num_beams), length_penalty=length_penalty, length_penalty_form=form,
        early_stopping=early_stopping, max_new_tokens=max_new_tokens)  # fmt: skip
    assert beams_error(case, kernels) <= 1


@pytest.mark.parametrize("length_penalty", [-12.0, -300.0, 300.0])
def test_scores_below_what_is_set_aside(kernels: Kernels, length_penalty: float) -> None:
    case = make_case(30, num_beams=3, num_return_sequences=3, length_penalty=length_penalty, eos_bias=-9)
    assert beams_error(case, kernels) <= 1


@every_order
def test_beams_that_differ_late_exchange_long_texts(kernels: Kernels) -> None:
    case = make_case(
        12,
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=60,
        eos_bias=-4,
        length_penalty=0.0,
    )
    found = case.on_host()
    assert all(len(ids) > 40 for ids, *_ in found[0])
    assert beams_error(case, kernels) <= 1


@every_order
@pytest.mark.parametrize("seed", [0, slow(1), slow(2), slow(3)])
def test_greedy(kernels: Kernels, seed: int) -> None:
    case = make_case(20, seed=seed)
    assert case.error(case.on_device(kernels, case.likeliest(1), kernels.device)) <= 1


@every_order
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        slow({"top_k": 5}),
        slow({"top_k": 40, "temperature": 0.3}),
        slow({"top_k": 63, "temperature": 2.5, "top_p": 0.8}),
        {"top_k": 10, "top_p": 0.3},
        {"top_k": 20, "min_p": 0.2},
        {"top_k": 12, "top_p": 0.0},
    ],
    ids=str,
)
def test_draws_among_choices(kernels: Kernels, options: dict[str, float]) -> None:
    lengths = set()
    for seed in range(3):
        case = make_case(100, seed=seed, do_sample=True, num_return_sequences=3, **options)
        found = case.on_device(kernels, case.likeliest(options["top_k"] + 1), kernels.device)
        assert case.error(found) <= 1
        lengths |= {len(ids) for item in found for ids, *_ in item}
    assert len(lengths) > 2


@tries(60)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(3, 64),
    top_k=st.integers(0, 70),
    temperature=st.floats(0.05, 5.0),
    top_p=st.floats(0.0, 1.0),
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
    returned=st.integers(1, 5),
    order=st.sampled_from(emulated.ORDERS),
)
def test_any_draw_among_all_tokens_of_few(
    kernels: Kernels,
    seed: int,
    vocab_size: int,
    top_k: int,
    temperature: float,
    top_p: float,
    min_p: float,
    returned: int,
    order: str,
) -> None:
    kernels.set_order(order, seed=seed)
    case = make_case(
        vocab_size, [[1], [2, 0]], seed=seed, do_sample=True, num_return_sequences=returned, top_k=top_k,
        temperature=temperature, top_p=top_p, min_p=min_p)  # fmt: skip
    assert case.error(case.on_device(kernels, case.likeliest(vocab_size), kernels.device)) <= 1


def test_equal_scores_at_the_edge_are_kept(kernels: Kernels) -> None:
    drawn = set()
    for seed in range(20):
        case = make_case(30, seed=seed, do_sample=True, top_k=2, max_new_tokens=1)
        case.language.table[:] = -50
        case.language.table[:, [5, 9, 11]] = torch.tensor([1.0, 1.5, 1.0])
        found = case.on_device(kernels, case.likeliest(3), kernels.device)
        assert case.error(found) <= 1
        drawn |= {ids[0] for ((ids, *_),) in found}
    assert drawn == {5, 9, 11}


@every_order
@pytest.mark.parametrize("temperature", [slow(1.0), 0.4, slow(1.7)])
def test_draws_among_all(kernels: Kernels, temperature: float) -> None:
    """The head draws: its logits are the language's, as one weight times one."""
    for seed in range(3):
        case = make_case(300, seed=seed, do_sample=True, temperature=temperature, num_return_sequences=2)
        case.language.table[:] = case.language.table.half()
        assert case.error(case.on_device(kernels, head(case, kernels), kernels.device)) <= 1


def head(case: Case, kernels: Kernels):
    weight = TiledWeight.pack(case.language.table.T.half().contiguous().to(kernels.device), None)
    vocab = case.language.vocab_size

    def choose(contexts: list[int], state: SearchState) -> Selection:
        rows, device = len(contexts), kernels.device
        x = torch.nn.functional.one_hot(torch.tensor(contexts), CONTEXTS).half().to(device)
        tokens, drawn = (torch.empty(shape, dtype=torch.int32, device=device) for shape in ((rows, 1), (rows,)))
        log_probs, drawn_log_probs = torch.empty(rows, 1, device=device), torch.empty(rows, device=device)
        workspace = torch.empty(kernels.select_workspace(rows, vocab, 1), dtype=torch.uint8, device=device)
        draws = {"keys": state.row_keys, "step": state.steps, "drawn": drawn, "drawn_log_probs": drawn_log_probs}
        chosen = {"tokens": tokens, "log_probs": log_probs, "temperature": case.options["temperature"]}
        kernels.head_select(x=x, weight=weight.data, vocab_size=vocab, **chosen, **draws, workspace=workspace)
        return Selection(tokens, log_probs, drawn, None, drawn_log_probs)

    return choose


MANY_PROMPTS = [[1 + i % 7] * (1 + i % 4) for i in range(9)]


@every_order
@pytest.mark.parametrize("slots", [slow(1), slow(2), slow(5), 8])
@pytest.mark.parametrize(
    ("options", "choices"),
    [
        ({}, 1),
        ({"num_beams": 3, "num_return_sequences": 2}, 6),
        ({"do_sample": True, "top_k": 7, "num_return_sequences": 3}, 8),
        ({"do_sample": True, "num_return_sequences": 2}, None),
    ],
    ids=str,
)
def test_sequences_that_wait_take_free_slots(
    kernels: Kernels, slots: int, options: dict[str, object], choices: int | None
) -> None:
    case = make_case(300, MANY_PROMPTS, seed=slots, eos_bias=5.0, **options)
    if choices is None:
        case.language.table[:] = case.language.table.half()
    choose = head(case, kernels) if choices is None else case.likeliest(choices)
    assert case.error(case.on_device(kernels, choose, kernels.device, slots=slots)) <= 1


@every_order
@pytest.mark.parametrize("num_beams", [1, 3])
def test_logits_that_are_no_numbers_end_their_slot(kernels: Kernels, num_beams: int) -> None:
    case = make_case(20, [[3], [4]], num_beams=num_beams, eos_bias=-9)
    likeliest = case.likeliest(max(1, 2 * num_beams - 1))

    def choose(contexts: list[int], state: SearchState) -> Selection:
        chosen = likeliest(contexts, state)
        if state.steps[0] == 4:
            chosen.tokens[num_beams] = -1
            chosen.log_probs[num_beams] = torch.nan
        return chosen

    with pytest.raises(ValueError, match=f"logits: NaN in row {num_beams}"):
        case.on_device(kernels, choose, kernels.device)


def test_a_row_that_does_not_exist_may_hold_anything(kernels: Kernels) -> None:
    """In the first step, no row of a slot but the first exists."""
    case = make_case(20, num_beams=3, num_return_sequences=3)
    likeliest = case.likeliest(6)

    def choose(contexts: list[int], state: SearchState) -> Selection:
        chosen = likeliest(contexts, state)
        if state.steps[0] == 0:
            chosen.tokens.view(-1, 3, 6)[:, 1:] = -1
            chosen.log_probs.view(-1, 3, 6)[:, 1:] = torch.nan
        return chosen

    assert case.error(case.on_device(kernels, choose, kernels.device)) <= 1


@every_order
def test_ties_go_to_the_lower_row_and_the_lower_token(kernels: Kernels) -> None:
    case, expected = equal_choices()
    (found,) = case.on_device(kernels, case.likeliest(4), kernels.device)
    assert [ids for ids, *_ in found] == expected


def test_memory_bounds_a_limit_beyond_it(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence gets as many tokens as the longest prompt leaves, and no more."""
    case = make_case(20, [[3]], num_beams=2, eos_bias=-9, max_new_tokens=5)
    asked = SearchState.ask

    def ask_for_more(state: SearchState, *given: object) -> None:
        asked(state, *given)
        state.given.host["settings"][:, 0] = 1000

    monkeypatch.setattr(SearchState, "ask", ask_for_more)
    assert beams_error(case, kernels) <= 1


def test_what_cannot_be_is_named(emulation: ModuleType) -> None:
    case = make_case(20, num_beams=3)
    state = case.state("cpu")
    with pytest.raises(ValueError, match=r"prompts: expected at most 3, got 4"):
        state.ask([[3]] * 4, [0] * 4, case.options)
    with pytest.raises(ValueError, match=r"prompts\[1\]: expected at most 12 tokens in all, got 4 tokens and 9 new"):
        state.ask([[3], [3, 3, 3, 3], [3]], [0, 0, 0], case.options)
    tokens, log_probs = torch.zeros(9, 6, dtype=torch.int32), torch.zeros(9, 6)
    names = ("tokens", "log_probs", "drawn", "drawn_log_probs")
    for change, chosen, message in (
        ({}, (tokens[:8], log_probs[:8], None, None), r"tokens: expected shape \(9, choices\), got \(8, 6\)"),
        ({}, (tokens, log_probs[:, :5], None, None), r"log_probs: expected shape \(9, choices=6\), got \(9, 5\)"),
        ({}, (tokens, log_probs, tokens[:, 0], None), "drawn, drawn_log_probs: expected all or none of them"),
        ({"kv_index": state.kv_index.long()}, (tokens, log_probs, None, None), "kv_index: expected dtype int32, got"),
        (
            {"sequences_per_prompt": 9},
            (tokens, log_probs, None, None),
            "sequences_per_prompt: expected 3 in all, got 3 times 9",
        ),
        ({"rows_per_slot": 17}, (tokens, log_probs, None, None), r"tokens: expected shape \(max_steps, 51\)"),
        ({"row_keys": torch.zeros(9, dtype=torch.int64)}, (tokens, log_probs, None, None), "row_keys: expected keys"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in change.items():
                patch.setattr(state, name, value)
            with pytest.raises(ValueError, match=message):
                emulation.advance_search(state=state.arguments(), **dict(zip(names, chosen, strict=True)))
    many = {"tokens": torch.zeros(9, 65, dtype=torch.int32), "log_probs": torch.zeros(9, 65)}
    with pytest.raises(ValueError, match="tokens: expected 1 to 64 choices per row, got 65"):
        emulation.advance_search(state=state.arguments(), **many)


@device_only
@pytest.mark.parametrize(
    ("options", "choices"),
    [
        ({}, 1),
        ({"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.6, "length_penalty_form": "paper"}, 8),
        ({"num_beams": 16, "num_return_sequences": 2, "early_stopping": "never", "length_penalty": 2.0}, 32),
        ({"do_sample": True, "top_k": 40, "top_p": 0.8, "num_return_sequences": 3}, 41),
    ],
    ids=str,
)
def test_many_prompts_on_a_device(kernels: Kernels, options: dict[str, Any], choices: int) -> None:
    prompts = [[1 + i % 7] * (1 + i % 5) for i in range(40)]
    for seed in range(5):
        case = make_case(300, prompts, seed=seed, max_new_tokens=20, **options)
        assert case.error(case.on_device(kernels, case.likeliest(choices), kernels.device)) <= 1
