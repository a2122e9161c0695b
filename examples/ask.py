"""Many questions about one image: it is encoded once, and the questions run as one batch."""

from pathlib import Path

import gitfast

IMAGE = Path(__file__).parent / "images" / "a-purple-circle-above-a-yellow-diamond.png"
QUESTIONS = [
    "what is at the top?",
    "what is below the purple circle?",
    "what color is the diamond?",
    "how many shapes are there?",
    "is there a red star?",
]

model = gitfast.load("git-tiny")
for question, answer in zip(QUESTIONS, model.answer(IMAGE, QUESTIONS), strict=True):
    print(question, answer)
