"""The ways to choose tokens: greedy, beams, sampling, the paper's search, rules, and given texts only."""

from pathlib import Path

import gitfast

IMAGE = Path(__file__).parent / "images" / "the-word-bread-in-red.png"

model = gitfast.load("git-tiny")
prefix = model.encode(IMAGE)  # once; every call below starts from it

print("greedy: ", model.caption(prefix))
beams = model.caption(prefix, num_beams=4, num_return_sequences=3, length_penalty=1.0)
for result in (beams, *beams.alternatives):
    print(f"beam:    {result}  ({result.score:.2f})")
samples = model.caption(prefix, do_sample=True, temperature=3.0, top_k=20, seed=7, num_return_sequences=3)
for result in (samples, *samples.alternatives):
    print("sample: ", result)
print("paper:  ", model.caption(prefix, preset="paper"))
print("rules:  ", model.caption(prefix, bad_words_ids=[model.processor.tokenizer.encode("red")]))
print("prompt: ", model.caption(prefix, prompt="the word"))
print("choice: ", model.caption(prefix, allowed_texts=["the word milk in red", "the word bread in blue"]))
