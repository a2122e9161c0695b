"""The classes of ``gitfast.compat`` where transformers is installed: its own, with GIT's files read and run as here.

They are transformers' models (``PreTrainedModel``, ``GenerationMixin``), so that Trainer, peft, accelerate and its
pipelines work. They add: models by every name that ``gitfast.load`` knows, ``generate`` on the native engine, and
the places where transformers 5.23 is wrong about GIT (each has a test):

- published video checkpoints keep their temporal embeddings, which their files spell otherwise;
- text positions count text only when image tokens are cached, and padded rows see the image tokens there are, not
  those the configuration would make;
- the loss is aligned with the text whatever the number of image tokens; ``inputs_embeds`` is not written to.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, GitVisionConfig
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.models.git.modeling_git import GitPreTrainedModel

from gitfast.checkpoints import hub
from gitfast.checkpoints.adapter import is_adapter
from gitfast.checkpoints.checkpoint import WEIGHT_FILES, open_checkpoint, read_tensors
from gitfast.checkpoints.microsoft_keys import is_microsoft
from gitfast.checkpoints.names import canonical_name
from gitfast.checkpoints.state_dict import without_wrappers
from gitfast.compat import generation
from gitfast.compat.rows import check_images, check_labels, check_tensors, check_text, visible_keys

# Options of from_pretrained that are transformers' alone: files are found and fetched by transformers then.
_THEIR_FILES = ("subfolder", "variant", "gguf_file", "force_download", "proxies", "state_dict", "quantization_config")
_FETCH = ("revision", "cache_dir", "local_files_only", "token")


class GitConfig(transformers.GitConfig):
    """``transformers.GitConfig``, read by any name that ``gitfast.load`` takes."""

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        return super().get_config_dict(_locate(pretrained_model_name_or_path, options), **options)


class _ByName:
    """``from_pretrained`` for models: short names, bundled models, adapters, Microsoft's files and their names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **options: Any) -> Any:
        """Load anything that ``gitfast.load`` takes, as transformers does; a LoRA adapter is merged into its base.

        Raises:
            CheckpointError, ConfigError: a folder holds no weights, or files that cannot be read.
            OSError: transformers finds no such model.
        """
        name = pretrained_model_name_or_path
        options.pop("use_fast", None)  # an option of processors that people pass to everything
        load = super().from_pretrained  # type: ignore[misc]
        if name is None or any(options.get(option) is not None for option in _THEIR_FILES):
            return load(name, *arguments, **options)
        folder = Path(_locate(name, options))
        if not folder.is_dir():
            folder = hub.resolve(os.fspath(name), **{key: options[key] for key in _FETCH if key in options})
        if not _renamed(cls, folder):
            return load(folder, *arguments, **options)
        return _load_renamed(cls, load, folder, *arguments, **options)


def _locate(name: Any, options: dict[str, Any]) -> Any:
    """Return a bundled model's folder, or the repository behind a short name; anything else as it is."""
    text = os.fspath(name)
    if Path(text).exists():
        return text
    if text in hub.BUNDLED:
        return hub.resolve(text)
    return hub.ALIASES.get(text, text)


def _renamed(cls: type, folder: Path) -> bool:
    """Return whether a folder's tensors have other names than transformers' class, or lie in dicts of a script."""
    if not folder.is_dir() or is_adapter(folder):
        return True
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        open_checkpoint(folder)  # says what is missing
    names = read_tensors(file)
    if any(canonical_name(name) != name for name in names) or is_microsoft(names):
        return True
    if without_wrappers(names).keys() != names.keys():
        return True
    if "safetensors" not in file.name and any(name.startswith("git.") for name in names):
        return True
    return issubclass(cls, GitVisionModel) and any(name.startswith("git.") for name in names)


def _load_renamed(cls: Any, load: Any, folder: Path, *arguments: Any, **options: Any) -> Any:
    """Read the tensors here, under transformers' names, and let transformers build the model of them."""
    checkpoint = hub.open_model(folder)
    start = "git.image_encoder." if issubclass(cls, GitVisionModel) else ""
    whole = checkpoint.weights
    weights = {n.removeprefix(start): torch.from_numpy(whole[n].copy()) for n in whole if n.startswith(start)}
    if options.get("config") is None:
        if (folder / "config.json").is_file():
            options["config"] = cls.config_class.from_pretrained(folder)
        else:
            config = GitConfig.from_dict(checkpoint.config.to_dict())
            options["config"] = config.vision_config if issubclass(cls, GitVisionModel) else config
    if cls.can_generate() and options.get("generation_config") is None:
        file = checkpoint.folder / "generation_config.json"
        if file.is_file():
            options["generation_config"] = GenerationConfig.from_pretrained(checkpoint.folder)
    for name in _FETCH:
        options.pop(name, None)
    return load(None, *arguments, state_dict=weights, **options)


class GitVisionModel(_ByName, transformers.GitVisionModel):
    """``transformers.GitVisionModel``; of a whole checkpoint too."""


class GitModel(_ByName, transformers.GitModel):
    """``transformers.GitModel`` that counts image tokens as they are."""

    config_class = GitConfig
    _keys_to_ignore_on_load_unexpected = [r"^output\."]  # noqa: RUF012  # as in transformers

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the model as transformers does; the module's docstring lists the differences."""
        check_tensors(input_ids=input_ids, pixel_values=pixel_values, inputs_embeds=inputs_embeds)
        check_tensors(position_ids=position_ids, attention_mask=attention_mask)
        check_images(self.config, pixel_values, interpolate_pos_encoding)
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        images = getattr(past_key_values, "image_tokens", self.image_tokens) if cached else 0
        _, length = check_text(input_ids, inputs_embeds, attention_mask, pixel_values, cached - images, cached)
        if cached:
            device = self.embeddings.word_embeddings.weight.device
            if position_ids is None:
                position_ids = torch.arange(cached - images, cached - images + length, device=device)[None]
            if attention_mask is not None and attention_mask.ndim == 2 and images != self.image_tokens:
                seen = visible_keys(attention_mask != 0, cached - images, length, 0, images)
                dtype = self.embeddings.word_embeddings.weight.dtype
                attention_mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
                    ~seen, torch.finfo(dtype).min
                )
        output = super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            inputs_embeds=None if inputs_embeds is None else inputs_embeds.clone(),
            past_key_values=past_key_values,
            use_cache=use_cache,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **kwargs,
        )
        cache = output.get("past_key_values") if isinstance(output, dict) else past_key_values
        if cache is not None and not cached:
            cache.image_tokens = image_tokens(self.config, pixel_values)
        return output

    @property
    def image_tokens(self) -> int:
        """Return the image tokens of a full input, by the configuration."""
        return self.encoder.layer[0].attention.self.image_patch_tokens


def image_tokens(config: Any, pixel_values: Tensor | None) -> int:
    """Count the image tokens of pixels (B, 3, H, W) or (B, T, 3, H, W)."""
    if pixel_values is None:
        return 0
    patch = config.vision_config.patch_size
    frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
    return frames * (1 + (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch))


@dataclass
class NativeOutput(GenerateDecoderOnlyOutput):
    """The result of greedy search and of samples: transformers' fields, and those of gitfast."""

    sequences_scores: Tensor | None = None  # (R * n,): sum of log-probabilities
    token_logprobs: list[list[float]] | None = None  # for the new tokens, under the model itself
    engine: str | None = None  # "cpu" is the native one, "reference" the model's own forward


@dataclass
class NativeBeamOutput(GenerateBeamDecoderOnlyOutput):
    """The result of beam search: transformers' fields, and those of gitfast."""

    token_logprobs: list[list[float]] | None = None  # for the new tokens, under the model itself
    engine: str | None = None  # "cpu" is the native one, "reference" the model's own forward


class GitForCausalLM(_ByName, transformers.GitForCausalLM):
    """``transformers.GitForCausalLM`` whose ``generate`` runs on the native engine where it can."""

    config_class = GitConfig
    _native: Any = None  # the CPU engine, and the state of the weights that it was built from

    def __init__(self, config: GitConfig) -> None:
        GitPreTrainedModel.__init__(self, config)
        self.git = GitModel(config)
        self.output = torch.nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the engine, which is built again when it is needed."""
        return {name: value for name, value in self.__dict__.items() if name != "_native"}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Run the model as transformers does; the module's docstring lists the differences."""
        check_tensors(labels=labels, input_ids=input_ids, pixel_values=pixel_values, inputs_embeds=inputs_embeds)
        if labels is not None and kwargs.get("shift_labels") is None:
            check_labels(labels, input_ids if inputs_embeds is None else inputs_embeds, logits_to_keep)
        inputs = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "pixel_values": pixel_values,
            "inputs_embeds": inputs_embeds,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "interpolate_pos_encoding": interpolate_pos_encoding,
            "logits_to_keep": logits_to_keep,
        }
        if labels is None or image_tokens(self.config, pixel_values) == self.git.image_tokens:
            return super().forward(input_ids, labels=labels, **inputs, **kwargs)
        # transformers cuts the text's logits off after as many image tokens as the configuration makes
        loss_options = {name: kwargs.pop(name) for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
        return_dict = kwargs.pop("return_dict", True)
        output = super().forward(input_ids, **{**inputs, "use_cache": False, "logits_to_keep": 0}, **kwargs)
        logits = output.logits[:, -labels.shape[1] :]
        loss_options.setdefault("shift_labels", labels[:, 1:].contiguous())
        logits = logits[:, : loss_options["shift_labels"].shape[1]].contiguous()
        loss = self.loss_function(logits=logits, labels=None, vocab_size=self.config.vocab_size, **loss_options)
        output = type(output)(loss=loss, **output)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        *,
        engine: str = "auto",
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers does, on the native engine where it can represent the model and the options.

        Args:
            inputs: Prompts (R, L), padded anywhere where ``attention_mask`` is 0; None: ``[CLS]`` for each image.
            generation_config, logits_processor, stopping_criteria, prefix_allowed_tokens_fn: As in transformers.
            engine: "auto"; "cpu" insists on the native engine, and "reference" on the model's own ``forward``.
            **kwargs: As in transformers, and ``seed``, ``allowed_token_ids``, ``length_penalty_form``,
                ``ban_last_token`` of ``gitfast.GenerationOptions``. Without a ``seed``, torch's decides.

        The native engine takes float32 models in evaluation mode on the CPU whose modules are GIT's own: no hooks, no
        wrapped or replaced layers, no overridden ``forward``. Other models, and options that only transformers has
        (processors, criteria, streamers, scores), run in PyTorch, which is said once. With
        ``return_dict_in_generate``, ``engine`` of the result names what ran. The native engine is built at the first
        call and again when parameters have changed.
        """
        theirs = {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
        }
        return generation.generate(self, inputs, generation_config, {**theirs, **kwargs}, engine)

    def generate_output(self, *, beams: bool, sequences_scores: Tensor, **values: Any) -> Any:
        """Make the output for ``return_dict_in_generate``, of the class that transformers returns."""
        kind = NativeBeamOutput if beams else NativeOutput
        return kind(sequences_scores=sequences_scores, **values)

    def their_generate(self, **arguments: Any) -> Any:
        """Call ``generate`` of transformers."""
        return super().generate(**arguments)  # type: ignore[misc]


__all__ = ["GenerationConfig", "GitConfig", "GitForCausalLM", "GitModel", "GitVisionConfig", "GitVisionModel"]
