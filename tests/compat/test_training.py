"""Fine-tuning beside transformers: plain loops, Trainer and peft, step by step with the same losses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from support.tiny_checkpoint import random_image

STEPS = 20
CAPTIONS = ["a red square", "how many ?", "the green circle on a blue square", "two squares"]


def examples(processor: Any) -> list[dict[str, torch.Tensor]]:
    """Examples as the captioning guide prepares them: texts padded on the right, labels equal to the token ids."""
    rows = []
    for i, caption in enumerate(CAPTIONS * 4):
        inputs = processor(images=random_image(i), text=caption, padding="max_length", max_length=10)
        row = {name: torch.as_tensor(np.asarray(inputs[name])) for name in ("input_ids", "attention_mask")}
        row["pixel_values"] = torch.as_tensor(np.asarray(inputs["pixel_values"]))[0]
        rows.append({**row, "labels": row["input_ids"].clone()})
    return rows


def batches(rows: list[dict[str, torch.Tensor]], steps: int) -> list[dict[str, torch.Tensor]]:
    chosen = [[rows[(4 * step + i) % len(rows)] for i in range(4)] for step in range(steps)]
    return [{name: torch.stack([row[name] for row in group]) for name in group[0]} for group in chosen]


def losses(model: Any, data: list[dict[str, torch.Tensor]]) -> list[float]:
    """The losses of a training loop; dropout draws from torch's generator."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    found = []
    for batch in data:
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_the_captioning_guide(kit: Any, folder: Path) -> None:
    data = batches(examples(kit.GitProcessor.from_pretrained(folder)), STEPS)
    ours = losses(kit.GitForCausalLM.from_pretrained(folder).train(), data)
    theirs = losses(transformers.GitForCausalLM.from_pretrained(folder).train(), data)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[-1] < ours[0]


class Losses(transformers.TrainerCallback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.found.append(logs["loss"])


def train(model: Any, rows: list[dict[str, torch.Tensor]], output: Path) -> tuple[Any, list[float]]:
    kept = Losses()
    arguments = transformers.TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        max_steps=STEPS,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=STEPS,
        report_to="none",
        use_cpu=True,
        seed=0,
        remove_unused_columns=False,
        disable_tqdm=True,
        label_names=["labels"],
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=[kept])
    trainer.train()
    trainer.evaluate()
    return trainer, kept.found


def test_trainer(folder: Path, tmp_path: Path) -> None:
    from gitfast.compat.hf import GitForCausalLM
    from gitfast.compat.hf_processing import GitProcessor

    rows = examples(GitProcessor.from_pretrained(folder))
    model = GitForCausalLM.from_pretrained(folder)
    trainer, ours = train(model, rows, tmp_path / "ours")
    _, theirs = train(transformers.GitForCausalLM.from_pretrained(folder), rows, tmp_path / "theirs")
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-4)
    pixels = torch.stack([row["pixel_values"] for row in rows[:2]])
    model = trainer.model.eval()
    tokens = model.generate(pixel_values=pixels, return_dict_in_generate=True)
    assert tokens.engine == "cpu"
    saved = GitForCausalLM.from_pretrained(tmp_path / "ours" / f"checkpoint-{STEPS}")
    assert torch.equal(saved.generate(pixel_values=pixels), tokens.sequences)


def test_peft(folder: Path, tmp_path: Path) -> None:
    import peft

    from gitfast.compat.hf import GitForCausalLM
    from gitfast.compat.hf_processing import GitProcessor

    data = batches(examples(GitProcessor.from_pretrained(folder)), STEPS)
    models = []
    for kind in (GitForCausalLM, transformers.GitForCausalLM):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, target_modules=["query", "value"], lora_dropout=0.1)
        models.append(peft.get_peft_model(kind.from_pretrained(folder), config).train())
    ours, theirs = (losses(model, data) for model in models)
    assert ours == pytest.approx(theirs, abs=1e-4)

    model, other = (m.eval() for m in models)
    images = {"pixel_values": data[0]["pixel_values"], "max_new_tokens": 6}
    tokens = model.generate(**images, return_dict_in_generate=True)
    assert tokens.engine == "reference"  # the adapter's layers are not GIT's own
    assert torch.equal(tokens.sequences, other.generate(**images))
    model.save_pretrained(tmp_path / "adapter")
    merged = copy.deepcopy(model).merge_and_unload().eval()
    native = merged.generate(**images, return_dict_in_generate=True)
    assert native.engine == "cpu"
    assert torch.equal(native.sequences, tokens.sequences)
    loaded = GitForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded.generate(**images), tokens.sequences)


def test_fresh_weights_are_drawn_as_in_transformers(kit: Any) -> None:
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    values = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = kit.GitConfig(**values, vocab_size=500, bos_token_id=1, eos_token_id=2, vision_config=vision)
    torch.manual_seed(0)
    ours = kit.GitForCausalLM(config).state_dict()
    theirs = transformers.GitForCausalLM(transformers.GitConfig(**config.to_dict())).state_dict()
    for name, tensor in ours.items():
        if theirs[name].numel() > 1000:
            assert float(tensor.std()) == pytest.approx(0.02, rel=0.1), name
        elif "class_embedding" not in name:
            assert torch.equal(tensor, theirs[name]), name  # zeros and ones
    assert not ours["git.embeddings.word_embeddings.weight"][0].any()


@pytest.mark.parametrize("tied", [False, True])
def test_padding_row_and_tied_head(kit: Any, folder: Path, tmp_path: Path, tied: bool) -> None:
    data = batches(examples(kit.GitProcessor.from_pretrained(folder)), 2)
    models = [kind.from_pretrained(folder) for kind in (kit.GitForCausalLM, transformers.GitForCausalLM)]
    if tied:
        for i, model in enumerate(models):
            config = type(model.config).from_dict({**model.config.to_dict(), "tie_word_embeddings": True})
            fresh = type(model)(config)
            fresh.load_state_dict({k: v for k, v in model.state_dict().items() if k != "output.weight"}, strict=False)
            models[i] = fresh.eval()
    found = []
    for model in models:
        words = model.get_input_embeddings().weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        steps = []
        for batch in data:
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            assert bool(words.grad[0].any()) is tied  # the head's own gradient where they are one
            optimizer.step()
            steps.append(loss.item())
        assert (model.get_output_embeddings().weight is words) is tied
        found.append([*steps, model(**data[0]).loss.item()])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    models[0].save_pretrained(tmp_path)
    back = kit.GitForCausalLM.from_pretrained(tmp_path)
    assert (back.get_output_embeddings().weight is back.get_input_embeddings().weight) is tied
    assert back(**data[0]).loss.item() == pytest.approx(found[0][-1], abs=1e-5)


def test_gradient_checkpointing_changes_no_gradient(kit: Any, folder: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder)
    (batch,) = batches(examples(kit.GitProcessor.from_pretrained(folder)), 1)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(0)
        model.train()(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.gradient_checkpointing_enable()
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(before, after)


def test_housekeeping(kit: Any, folder: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder, torch_dtype="float32", device_map="cpu", use_fast=True)
    model.config.use_cache = False
    assert model(torch.tensor([[2, 5]])).past_key_values is None
    everything = model.num_parameters()
    words = model.get_input_embeddings()
    assert everything - model.num_parameters(exclude_embeddings=True) >= words.weight.numel()
    model.resize_token_embeddings(40, mean_resizing=False)
    assert model(torch.tensor([[2, 39]])).logits.shape == (1, 2, 40)
    assert model.config.vocab_size == 40
    tokens = model.generate(pixel_values=torch.zeros(1, 3, 32, 32), return_dict_in_generate=True)
    assert tokens.engine == "cpu"
    output = model(torch.tensor([[2, 5]]), labels=torch.tensor([[2, 5]]))
    assert dict(output.items()).keys() == {"loss", "logits"}
    assert output.get("attentions") is None
    batch = kit.GitProcessor.from_pretrained(folder)(random_image(0), ["a red"], return_tensors="pt")
    moved = batch.to("cpu", torch.float16)
    assert moved["pixel_values"].dtype == torch.float16
    assert moved["input_ids"].dtype == torch.int64
