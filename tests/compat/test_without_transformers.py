"""``gitfast.compat`` where transformers is not installed, and what importing it brings."""

from __future__ import annotations

from pathlib import Path

from support.processes import run_python
from support.tiny_checkpoint import write_checkpoint

HIDDEN = """
import sys
sys.modules["transformers"] = None
import torch
from gitfast import compat
assert not compat.has_transformers()
assert compat.GitForCausalLM.__module__ == "gitfast.compat.modeling", compat.GitForCausalLM
model = compat.GitForCausalLM.from_pretrained(sys.argv[1])
processor = compat.GitProcessor.from_pretrained(sys.argv[1])
batch = processor(text=["a red square", "how many ?"], padding=True, return_tensors="pt")
loss = model.train()(**batch, pixel_values=torch.zeros(2, 3, 32, 32), labels=batch.input_ids).loss
loss.backward()
output = model.eval().generate(pixel_values=torch.zeros(1, 3, 32, 32), return_dict_in_generate=True)
assert output.engine == "cpu", output.engine
assert compat.pipeline("image-to-text", model=sys.argv[1])
assert not any(name.split(".")[0] == "transformers" for name, module in sys.modules.items() if module is not None)
"""
LIGHT = "import sys, gitfast; assert not {'torch', 'transformers'} & sys.modules.keys()"


def run(code: str, *arguments: str) -> None:
    done = run_python(code, *arguments, timeout=250)
    assert done.returncode == 0, done.stderr


def test_plain_classes(tmp_path: Path) -> None:
    run(HIDDEN, str(write_checkpoint(tmp_path)))


def test_gitfast_itself_needs_neither() -> None:
    run(LIGHT)
