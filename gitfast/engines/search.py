"""The native search from Python: options in, and a loop around any step function.

The search itself (greedy, beams, sampling, rules, constraint) is C++, ``csrc/search``; its header says where it goes
beyond transformers. Engines that decode in C++ call it there; what decodes in Python runs ``generate_with``.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from gitfast import _C
from gitfast.types import Generation, GenerationOptions, TokenCallback

# (ids, parents, items) -> logits (R, V), float32: any array in CPU memory that speaks DLPack. Row r continues row
# ``parents[r]`` of the call before, belongs to item ``items[r]`` and is fed ``ids[r]``. In the first call there is one
# row per item, fed with its whole prompt, and ``parents`` is None.
StepFunction = Callable[[Sequence[Sequence[int]], Sequence[int] | None, Sequence[int]], Any]


def native_options(options: GenerationOptions, eos_token_id: int) -> dict[str, Any]:
    """The options as the native search takes them. ``seed`` None becomes a random one."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    if options.seed is None:
        values["seed"] = secrets.randbits(63)
    return values | {"eos_token_id": eos_token_id}


def generations(results: list[list[tuple[list[int], list[float], float, Any]]]) -> list[list[Generation]]:
    """What the native search found, as result objects."""
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
    eos_token_id: int,
    on_token: TokenCallback | None = None,
) -> list[list[Generation]]:
    """Generate for every prompt with the logits that ``step`` gives: per prompt the sequences found, best first.

    Raises:
        ValueError: an option or prompt cannot be, the logits have another shape or hold NaN, or ``on_token`` comes
            with beams or several samples, whose tokens are final only at the end.
        TypeError: an option has another type.
    """
    if on_token is not None and (options.num_beams != 1 or options.num_return_sequences != 1):
        raise ValueError("on_token: expected num_beams and num_return_sequences 1")
    search = _C.Search(native_options(options, eos_token_id), prompts, vocab_size)
    ids: Sequence[Sequence[int]] = prompts
    parents: Sequence[int] | None = None
    while not search.done:
        items = search.items
        search.advance(step(ids, parents, items))
        if on_token is not None and not _report(search, items, on_token):
            search.stop()
        ids, parents = [[token] for token in search.tokens], search.parents
    return generations(search.results())


def _report(search: _C.Search, items: Sequence[int], on_token: TokenCallback) -> bool:
    """The new token of each item that took part in a step, one row per item; False when a callback asks to stop."""
    tokens = dict(zip(search.items, search.tokens, strict=True))
    ended = search.results() if len(tokens) < len(items) else []
    answers = [on_token(item, [tokens[item] if item in tokens else ended[item][0][0][-1]]) for item in items]
    return all(answer is not False for answer in answers)
