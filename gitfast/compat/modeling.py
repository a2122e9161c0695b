"""``GitVisionModel``, ``GitModel`` and ``GitForCausalLM`` with the arguments and outputs of transformers 5.

Image and text rows run through the decoder together, under one mask, because hidden states, attentions and logits of
image rows are asked for; the engines compute them apart. Shapes: B images, R text rows, T frames, P image tokens,
L text tokens, S cached text tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gitfast import torch_model
from gitfast.compat import generation
from gitfast.compat.configuration import GenerationConfig, GitConfig, GitVisionConfig
from gitfast.compat.outputs import Cache, CausalLMOutput, GenerateOutput, ModelOutput
from gitfast.compat.pretrained import PreTrained
from gitfast.compat.rows import check_labels, check_tensors, check_text, visible_keys
from gitfast.torch_model import attention_weights, next_token_loss


class GitVisionModel(PreTrained):
    """The vision encoder of a GIT model. State-dict names as in transformers: ``vision_model...``."""

    weights_prefix = "git.image_encoder."
    main_input_name = "pixel_values"

    def __init__(self, config: GitVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = torch_model.VisionTransformer(config.checked())
        self.post_init()

    def tie_weights(self) -> None:
        """Do nothing: there are no word embeddings to tie."""

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.vision_model.embeddings.patch_embedding

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.vision_model.embeddings.patch_embedding = value

    @staticmethod
    def config_of(config: GitConfig) -> GitVisionConfig:
        return config.vision_config

    @classmethod
    def config_from_dict(cls, values: Mapping[str, Any]) -> GitVisionConfig:
        return GitConfig(vision_config=values).vision_config

    def forward(
        self,
        pixel_values: Tensor,
        *,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Compute features (B, N, D) after the last norm from images (B, 3, H, W)."""
        output_hidden_states = _chosen(self.config, "output_hidden_states", output_hidden_states)
        output_attentions = _chosen(self.config, "output_attentions", output_attentions)
        vision = self.vision_model
        x = vision.pre_layrnorm(vision.embeddings(pixel_values, interpolate_pos_encoding))
        states, attentions = [x], []
        for layer in vision.encoder["layers"]:
            if output_attentions:
                queries, keys, _ = layer.queries_keys_values(x)
                attentions.append(attention_weights(queries, keys))
            x = layer(x)
            states.append(x)
        output = ModelOutput(
            vision.post_layernorm(x),
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if _chosen(self.config, "return_dict", return_dict, True) else output.to_tuple()


class _Decoder(PreTrained):
    """The part that ``GitModel`` and ``GitForCausalLM`` share: image tokens and text rows through the decoder."""

    def hidden(
        self,
        backbone: torch_model.GitBackbone,
        image_tokens: Tensor | None,
        *,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> ModelOutput:
        """Run all rows through the decoder, with the arguments of ``GitForCausalLM.forward``."""
        check_tensors(input_ids=input_ids, inputs_embeds=inputs_embeds)
        check_tensors(position_ids=position_ids, attention_mask=attention_mask)
        before = past_key_values.image_tokens if past_key_values else 0
        cached = past_key_values.get_seq_length() if past_key_values else 0
        past = cached - before
        rows, length = check_text(input_ids, inputs_embeds, attention_mask, image_tokens, past, cached)
        words = inputs_embeds if input_ids is None else backbone.embeddings.word_embeddings(input_ids)
        images = 0 if image_tokens is None else image_tokens.shape[1]
        mask = torch.ones(rows, past + length, device=words.device) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=words.device)[None]
        x = backbone.embeddings.of_words(words, position_ids)
        if image_tokens is not None:
            x = torch.cat([image_tokens.repeat(rows // len(image_tokens), 1, 1), x], dim=1)

        allowed = visible_keys(mask != 0, past, length, images, before)
        states, attentions, layers = [x], [], []
        for i, layer in enumerate(backbone.encoder["layer"]):
            keys, values = layer.keys_values(x)
            if past_key_values:
                keys = torch.cat([past_key_values[i][0], keys], dim=2)
                values = torch.cat([past_key_values[i][1], values], dim=2)
            layers.append((keys, values))
            if output_attentions:
                x, weights = layer.with_weights(x, (keys, values), allowed)
                attentions.append(weights)
            elif self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, (keys, values), allowed, use_reentrant=False)
            else:
                x = layer(x, (keys, values), allowed)
            states.append(x)
        return ModelOutput(
            x,
            past_key_values=Cache(layers, before + images) if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class GitModel(_Decoder):
    """Vision encoder, projection and decoder, without the output head."""

    weights_prefix = "git."

    def __init__(self, config: GitConfig) -> None:
        super().__init__()
        self.config = config
        whole = torch_model.GitModel(_shapes(config))
        for name, module in whole.git.named_children():
            self.add_module(name, module)
        self._whole = [whole]  # in a list, so that it is no child: its tensors have one name each
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self._whole[0].git.embeddings.word_embeddings

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self._whole[0].git.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Run ``GitForCausalLM.forward`` up to the last layer's rows (R, P + L, D)."""
        check_tensors(pixel_values=pixel_values)
        (whole,) = self._whole
        tokens = None if pixel_values is None else whole.image_tokens(pixel_values, interpolate_pos_encoding)
        output = self.hidden(
            whole.git,
            tokens,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=_chosen(self.config, "use_cache", use_cache, True),
            output_hidden_states=_chosen(self.config, "output_hidden_states", output_hidden_states),
            output_attentions=_chosen(self.config, "output_attentions", output_attentions),
        )
        return output if _chosen(self.config, "return_dict", return_dict, True) else output.to_tuple()


class GitForCausalLM(_Decoder, torch_model.GitModel):
    """GIT with its output head: captions, answers, and the training loss."""

    _native: tuple[Any, Any] | None = None  # the CPU engine, and the state of the weights that it was built from

    def __init__(self, config: GitConfig) -> None:
        torch_model.GitModel.__init__(self, _shapes(config))
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config)
        self.post_init()

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the engine, which is built again when it is needed."""
        return {name: value for name, value in self.__dict__.items() if name != "_native"}

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.git.embeddings.word_embeddings

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.git.embeddings.word_embeddings = value

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.output

    def set_output_embeddings(self, value: torch.nn.Linear) -> None:
        self.output = value

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Run text rows over images.

        Args:
            input_ids: (R, L); or ``inputs_embeds`` (R, L, D), exactly one of them. R is a multiple of B; row r reads
                image r % B.
            attention_mask: (R, S + L), 0 at padding; image tokens are never masked.
            position_ids: (R, L); by default 0, 1, ... of the text, whatever the mask says, as in transformers. Rows
                padded on the left need ``(attention_mask.cumsum(-1) - 1).clamp_min(0)``, which ``generate`` passes.
            pixel_values: Images (B, 3, H, W) or clips (B, T, 3, H, W); None: text only, or images in the cache.
            labels: (R, L), aligned with the text and shifted here; -100 is ignored. Gives the loss.
            past_key_values: The cache of an earlier call; only the text after it is passed then.
            interpolate_pos_encoding: Take images of any size.
            logits_to_keep: Compute logits of this many last rows only; 0: of all. A tensor names the rows.

        Returns:
            Logits (R, P + L, V), image rows included, and the outputs that were asked for.

        Raises:
            ValueError: arguments that do not fit each other or the model; the message names them.
        """
        check_tensors(pixel_values=pixel_values, labels=labels)
        tokens = None if pixel_values is None else self.image_tokens(pixel_values, interpolate_pos_encoding)
        inner = self.hidden(
            self.git,
            tokens,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=_chosen(self.config, "use_cache", use_cache, True) and labels is None,
            output_hidden_states=_chosen(self.config, "output_hidden_states", output_hidden_states),
            output_attentions=_chosen(self.config, "output_attentions", output_attentions),
        )
        logits = self.output(_kept(inner.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            check_labels(labels, input_ids if inputs_embeds is None else inputs_embeds, logits_to_keep)
            loss = next_token_loss(logits[:, -labels.shape[1] :], labels)
        output = CausalLMOutput(loss, logits, inner.past_key_values, inner.hidden_states, inner.attentions)
        return output if _chosen(self.config, "return_dict", return_dict, True) else output.to_tuple()

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        *,
        engine: str = "auto",
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Generate captions or answers: token ids (R * n, longest), prompts included, padded on the right.

        Args:
            inputs: Prompts (R, L), ``input_ids`` too, padded anywhere where ``attention_mask`` is 0; None: ``[CLS]``
                for each image.
            generation_config: Settings that stand above the model's own ``generation_config``.
            engine: "auto" takes the native CPU engine where it can represent the model, and the model's own
                ``forward`` otherwise, which is said once; "cpu" and "reference" insist.
            **kwargs: ``attention_mask``, ``pixel_values``, ``interpolate_pos_encoding``; settings by transformers'
                names; and ``seed``, ``allowed_token_ids``, ``length_penalty_form``, ``ban_last_token`` of
                ``gitfast.GenerationOptions``. Without a ``seed``, torch's decides. ``max_length`` and
                ``min_length`` count the prompt. Default: 20 new tokens, as in transformers.

        The native engine is built at the first call and again when parameters have changed.

        Raises:
            TypeError, ValueError: an option is not known, or cannot be; the message names it.
        """
        return generation.generate(self, inputs, generation_config, kwargs, engine)

    def generate_output(self, *, beams: bool, **values: Any) -> GenerateOutput:
        """Make the output for ``return_dict_in_generate``."""
        return GenerateOutput(**values)


def _shapes(config: GitConfig) -> Any:
    """Return the settings for ``torch_model``: checked shapes, and those that only training reads."""
    checked = config.checked()
    values = {name: getattr(checked, name) for name in checked.__dataclass_fields__}
    return SimpleNamespace(**{**vars(config), **values, "pad_token_id": config.pad_token_id})


def _chosen(config: Any, name: str, value: bool | None, default: bool = False) -> bool:
    """Return the argument, or the configuration's value where it was not given."""
    return getattr(config, name, default) if value is None else value


def _kept(rows: Tensor, keep: int | Tensor) -> Tensor:
    """Select the rows (R, S, D) to compute logits of: the last ``keep``, or those a tensor names."""
    if not isinstance(keep, Tensor):
        return rows[:, -keep if keep else 0 :]
    if keep.ndim < 2:
        return rows[:, keep]
    return rows[keep] if keep.dtype == torch.bool else torch.take_along_dim(rows, keep[..., None], dim=1)
