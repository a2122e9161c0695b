"""Accuracy on held-out pictures and clips: the share of captions and of answers that are exactly right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean

import numpy as np
from clips import make_clip
from pictures import make_picture

import gitfast

QUESTIONS_PER_PICTURE = 3


def evaluate(model: gitfast.Model, seeds: Iterable[int], verbose: bool = False) -> dict[str, float]:
    """Measure accuracy on held-out pictures of ``seeds`` (clips for a video model): captions, answers, both by kind.

    ``verbose`` prints what is wrong.
    """
    video = model.config.num_image_with_embedding is not None
    right: dict[str, list[bool]] = defaultdict(list)
    for seed in seeds:
        example = make_clip(seed, "held-out") if video else make_picture(seed, "held-out")
        order = np.random.default_rng([seed, 5]).permutation(len(example.questions))[:QUESTIONS_PER_PICTURE]
        asked = [example.questions[i] for i in order]
        questions = [question for question, _ in asked]
        if video:
            caption, answers = model.caption(example.frames), model.answer(example.frames, questions)
        else:
            caption, answers = model.caption(example.image), model.answer(example.image, questions)
        got = [("captions", "caption", str(caption), example.caption)]
        got += [("answers", q, str(answer), truth) for (q, truth), answer in zip(asked, answers, strict=True)]
        for what, prompt, text, truth in got:
            right[what].append(text == truth)
            right[f"{what}, {example.kind}"].append(text == truth)
            if verbose and text != truth:
                print(f"{seed}: {prompt} expected {truth!r}, got {text!r}")
    return {name: mean(values) for name, values in sorted(right.items())}
