"""The native search from Python: options in, and a loop around any step function.

The search itself (greedy, beams, sampling, rules, constraint) is C++, ``csrc/search``; its header says where it goes
beyond transformers. Engines that decode in C++ call it there; those that decode in Python run ``generate_with``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from gitfast import _C
from gitfast.types import CancelToken, Generation, GenerationOptions, TokenCallback

# (ids, parents, items) -> logits (R, V), float32: any array in CPU memory that speaks DLPack. Row r continues row
# ``parents[r]`` of the call before, belongs to item ``items[r]`` and is fed ``ids[r]``. In the first call there is one
# row per item, fed with its whole prompt, and ``parents`` is None.
StepFunction = Callable[[Sequence[Sequence[int]], Sequence[int] | None, Sequence[int]], Any]


def native_options(options: GenerationOptions, eos_token_id: int | Sequence[int]) -> dict[str, Any]:
    """Convert options to those of the native search."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return values | {"eos_token_id": eos_token_id}


def generations(results: list[list[tuple[list[int], list[float], float, Any]]]) -> list[list[Generation]]:
    """Convert the native search's results to result objects."""
    return [
        [
            Generation(token_ids=ids, token_logprobs=logprobs, score=score, finish_reason=reason)
            for ids, logprobs, score, reason in item
        ]
        for item in results
    ]


def generate_with(
    step: StepFunction,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    vocab_size: int,
    eos_token_id: int | Sequence[int],
    on_token: TokenCallback | None = None,
    cancel: CancelToken | None = None,
) -> list[list[Generation]]:
    """Generate for every prompt with the logits of ``step``; return the sequences of each, best first.

    Raises:
        ValueError: an option or prompt cannot be, or the logits have another shape or hold NaN.
        TypeError: an option has another type.
        CancelledError, DeadlineError: by ``cancel``, between steps.
    """
    search = _C.Search(native_options(options, eos_token_id), prompts, vocab_size)
    single = options.num_beams == 1 and options.num_return_sequences == 1
    ids: Sequence[Sequence[int]] = prompts
    parents: Sequence[int] | None = None
    while not search.done:
        if cancel is not None:
            cancel.check()
        items = search.items
        search.advance(step(ids, parents, items))
        if on_token is not None:
            _report(search, list(dict.fromkeys(items)), on_token, single=single)
        ids, parents = [[token] for token in search.tokens], search.parents
    return generations(search.results())


def _report(search: _C.Search, items: Sequence[int], on_token: TokenCallback, *, single: bool) -> None:
    """Report a step to the callback of each item; stop the items whose callback asks for it."""
    tokens = dict(zip(search.items, search.tokens, strict=True))
    ended = search.results() if any(item not in tokens for item in items) else []
    for item in items:
        if item not in tokens:
            best = ended[item][0][0]
            on_token(item, best[-1:] if single else best)
            continue
        answer = on_token(item, [tokens[item]] if single else [])
        if answer is not None and not answer:
            search.stop(item)
