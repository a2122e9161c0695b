"""Made-up captions with the punctuation and short forms that people write."""

from __future__ import annotations

import random

_SUBJECTS = "a man|two women|the boy's dog|a 3-year-old girl|people|a black-and-white cat|someone's hand|an old truck"
_VERBS = "is riding|are playing|doesn't want|sits on|can't reach|holds|looks at|stands next to|is about to eat"
_OBJECTS = 'a skateboard|the Frisbee|pizza and salad|a U.S. flag|a sign that says "STOP"|5 apples|a t-shirt|his bike'
_PLACES = "in the street|at 5:30 p.m.|near St. Mary's church|on top of a hill|(indoors)|by the sea|outside|at home"
_ENDS = ["", "", ".", ".", " .", "!", "?", "...", " - it's fun.", ", and they're happy.", "; nobody cares"]


def random_caption(generator: random.Random) -> str:
    """One sentence of four to twenty words."""
    parts = [generator.choice(words.split("|")) for words in (_SUBJECTS, _VERBS, _OBJECTS, _PLACES)]
    if generator.random() < 0.3:
        parts.insert(3, "while " + generator.choice(_SUBJECTS.split("|")) + " " + generator.choice(["waits", "sleeps"]))
    text = " ".join(parts) + generator.choice(_ENDS)
    return text[0].upper() + text[1:] if generator.random() < 0.7 else text
