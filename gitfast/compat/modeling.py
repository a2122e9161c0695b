"""``GitVisionModel``, ``GitModel`` and ``GitForCausalLM`` with the arguments and outputs of transformers 5.

Image and text rows run through the decoder together, under one mask, because hidden states, attentions and logits of
image rows are asked for; the engines compute them apart. Shapes: B images, R text rows, T frames, P image tokens,
L text tokens, S cached text tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gitfast import torch_model
from gitfast.checkpoints.config import GitConfig, GitVisionConfig
from gitfast.compat.generation import generate
from gitfast.compat.outputs import Cache, CausalLMOutput, GenerateOutput, ModelOutput
from gitfast.compat.pretrained import PreTrained
from gitfast.torch_model import attention_weights, next_token_loss


class GitVisionModel(PreTrained):
    """The vision encoder of a GIT model. State-dict names as in transformers: ``vision_model...``."""

    weights_prefix = "git.image_encoder."

    def __init__(self, config: GitVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = torch_model.VisionTransformer(config)

    @staticmethod
    def config_of(config: GitConfig) -> GitVisionConfig:
        return config.vision_config

    @classmethod
    def config_from_dict(cls, values: Mapping[str, Any]) -> GitVisionConfig:
        return GitConfig.from_dict({"vision_config": values}).vision_config

    def config_to_dict(self) -> dict[str, Any]:
        return {"model_type": "git_vision_model", **dataclasses.asdict(self.config)}

    def forward(
        self,
        pixel_values: Tensor,
        *,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
    ) -> ModelOutput | tuple[Any, ...]:
        """Images (B, 3, H, W) -> features (B, N, D) after the last norm."""
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
        return output if return_dict else output.to_tuple()


class _Decoder(PreTrained):
    """What ``GitModel`` and ``GitForCausalLM`` share: image tokens and text rows through the decoder."""

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
        """All rows through the decoder, arguments as of ``GitForCausalLM.forward``."""
        words = _word_embeddings(backbone, input_ids, inputs_embeds)
        rows, length = words.shape[:2]
        images = 0 if image_tokens is None else image_tokens.shape[1]
        if past_key_values and images:
            raise ValueError("pixel_values: expected none with past_key_values, which hold the image already")
        before = past_key_values.image_tokens if past_key_values else 0
        past = past_key_values.get_seq_length() - before if past_key_values else 0
        mask = _text_mask(attention_mask, rows, past + length, words.device)
        if position_ids is None:
            position_ids = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, past:]
        embeddings = backbone.embeddings
        x = embeddings.LayerNorm(words + embeddings.position_embeddings(position_ids))
        if image_tokens is not None:
            if rows % len(image_tokens):
                raise ValueError(f"input_ids: {rows} rows do not divide over {len(image_tokens)} images")
            x = torch.cat([image_tokens.repeat(rows // len(image_tokens), 1, 1), x], dim=1)

        allowed = _allowed(mask, past, length, images, before)
        states, attentions, layers = [x], [], []
        for i, layer in enumerate(backbone.encoder["layer"]):
            keys, values = layer.keys_values(x)
            if past_key_values:
                keys = torch.cat([past_key_values[i][0], keys], dim=2)
                values = torch.cat([past_key_values[i][1], values], dim=2)
            layers.append((keys, values))
            if output_attentions:
                attentions.append(attention_weights(layer.queries(x), keys, allowed))
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
        whole = torch_model.GitModel(config)
        for name, module in whole.git.named_children():
            self.add_module(name, module)
        self._whole = [whole]  # in a list, so that it is no child: its tensors have one name each

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self._whole[0].git.embeddings.word_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
    ) -> ModelOutput | tuple[Any, ...]:
        """As ``GitForCausalLM.forward``, up to the last layer's rows (R, P + L, D)."""
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
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return output if return_dict else output.to_tuple()


class GitForCausalLM(_Decoder, torch_model.GitModel):
    """GIT with its output head: captions, answers, and the training loss."""

    def __init__(self, config: GitConfig) -> None:
        torch_model.GitModel.__init__(self, config)
        self._native: tuple[Any, Any] | None = None  # the CPU engine, and the state of the weights it was built of

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.git.embeddings.word_embeddings

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.output

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        interpolate_pos_encoding: bool = False,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Text rows over images.

        Args:
            input_ids: (R, L); or ``inputs_embeds`` (R, L, D), exactly one of them. R is a multiple of B; row r reads
                image r % B.
            attention_mask: (R, S + L), 0 at padding; image tokens are never masked.
            position_ids: (R, L); by default the number of real text tokens before each.
            pixel_values: Images (B, 3, H, W) or clips (B, T, 3, H, W); None: text only, or images in the cache.
            labels: (R, L), aligned with the text and shifted here; -100 is ignored. Gives the loss.
            past_key_values: What an earlier call returned; only the text after it is passed then.
            interpolate_pos_encoding: Take images of any size.
            logits_to_keep: Compute logits of this many last rows only; 0: of all.

        Returns:
            Logits (R, P + L, V), image rows included, and what was asked for.

        Raises:
            ValueError: arguments that do not fit each other or the model; the message names them.
        """
        tokens = None if pixel_values is None else self.image_tokens(pixel_values, interpolate_pos_encoding)
        inner = self.hidden(
            self.git,
            tokens,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache and labels is None,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.output(inner.last_hidden_state[:, -logits_to_keep if logits_to_keep else 0 :])
        loss = None
        if labels is not None:
            length = labels.shape[1]
            if logits.shape[1] < length:
                raise ValueError(f"logits_to_keep: expected 0 or at least the {length} labels, got {logits_to_keep}")
            loss = next_token_loss(logits[:, -length:], labels)
        output = CausalLMOutput(loss, logits, inner.past_key_values, inner.hidden_states, inner.attentions)
        return output if return_dict else output.to_tuple()

    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict_in_generate: bool = False,
        engine: str = "auto",
        **options: Any,
    ) -> Tensor | GenerateOutput:
        """Captions or answers as token ids (R * n, longest), prompts included, padded on the right.

        Args:
            input_ids: Prompts (R, L), padded anywhere where ``attention_mask`` is 0; None: ``[CLS]`` for each image.
            pixel_values: (B, 3, H, W) or (B, T, 3, H, W); R is a multiple of B, row r reads image r % B.
            return_dict_in_generate: Return scores, and which engine ran, with the sequences.
            engine: "auto" takes the native CPU engine for a float32 model in evaluation mode on the CPU, and
                "reference" otherwise; "cpu" and "reference" insist.
            **options: Fields of ``gitfast.GenerationOptions``, and ``max_length`` and ``min_length``, which count the
                prompt. Default: 20 new tokens, as in transformers.

        The native engine is built at the first call and again when parameters have changed; changes that bypass
        autograd's version counters (through ``.data``) are not seen.
        """
        return generate(self, input_ids, pixel_values, attention_mask, return_dict_in_generate, engine, options)


def _word_embeddings(
    backbone: torch_model.GitBackbone, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Tensor:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("input_ids, inputs_embeds: expected exactly one of them")
    if inputs_embeds is None:
        return backbone.embeddings.word_embeddings(input_ids)
    return inputs_embeds


def _text_mask(mask: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
    """bool (R, S + L), False at padding."""
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=device)
    if tuple(mask.shape) != (rows, length):
        raise ValueError(f"attention_mask: expected shape {(rows, length)}, got {tuple(mask.shape)}")
    return mask != 0


def _allowed(mask: Tensor, past: int, length: int, images: int, images_before: int) -> Tensor:
    """bool (R, 1, images + L, images_before + past + images + L): which keys each row sees.

    Image rows see image rows; text rows see all image rows, and the real text up to themselves.
    """
    rows, total = mask.shape
    device = mask.device
    causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()[past:]
    text = causal & mask[:, None, :]  # (R, L, past + L)
    text = torch.cat([text.new_ones(rows, length, images_before + images), text], dim=-1)
    if not images:
        return text[:, None]
    image = torch.zeros(rows, images, text.shape[-1], dtype=torch.bool, device=device)
    image[..., :images] = True
    return torch.cat([image, text], dim=1)[:, None]
