"""GIT in plain PyTorch: the specification that every other engine is tested against, and the model that trains.

``GitModel`` has exactly the state-dict names of the published Hugging Face checkpoints. It computes image rows and
text rows apart, because image tokens never attend to text: ``prefix`` turns pixels into the keys and values of every
decoder layer, and ``forward`` runs text rows over them. Softmax and norms of half-precision models run in float32.

Shapes: B images, R text rows, T frames, N tokens of one frame, P prefix tokens, L text tokens, S cached text tokens,
H heads, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gitfast.checkpoints.config import GitConfig, GitVisionConfig
from gitfast.checkpoints.names import CanonicalNames
from gitfast.errors import CheckpointError

# Keys and values of one decoder layer, each (rows, H, tokens, head_dim).
KeysValues = tuple[Tensor, Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v for q (R, H, L, d), k and v (R, H, S, d); ``allowed``: bool (R, 1, L, S)."""
    return attention_weights(q, k, allowed).to(v.dtype) @ v


def drop(x: Tensor, probability: float, training: bool) -> Tensor:
    """Apply dropout, skipped where it would do nothing."""
    return F.dropout(x, probability) if training and probability else x


def attention_weights(q: Tensor, k: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)), (R, H, L, S), float32 or wider; arguments as in ``attention``."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split heads: (R, L, D) -> (R, H, L, head_dim)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Merge heads: (R, H, L, head_dim) -> (R, L, D)."""
    return x.transpose(1, 2).flatten(2)


class VisionEmbeddings(nn.Module):
    """Patches and the class token, with learned positions: (B, 3, H, W) -> (B, N, D)."""

    def __init__(self, config: GitVisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.class_embedding = nn.Parameter(torch.empty(size).normal_(std=0.02))
        self.patch_embedding = nn.Conv2d(3, size, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(config.num_tokens, size)

    def forward(self, pixels: Tensor, interpolate_positions: bool = False) -> Tensor:
        expected = (self.config.image_size, self.config.image_size)
        if tuple(pixels.shape[-2:]) != expected and not interpolate_positions:
            raise ValueError(f"pixel_values: expected images of {expected}, got {tuple(pixels.shape[-2:])}")
        if min(pixels.shape[-2:]) < self.config.patch_size:
            raise ValueError(f"pixel_values: expected images of at least one patch, got {tuple(pixels.shape[-2:])}")
        grid = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))  # (B, D, rows, columns)
        patches = grid.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        return tokens + self.positions(grid.shape[2], grid.shape[3])

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return positions of the class token and a patch grid, resized (bicubic) if not the model's own: (N, D)."""
        positions, side = self.position_embedding.weight, self.config.grid_size
        if (rows, columns) == (side, side):
            return positions
        square = positions[1:].T.reshape(1, -1, side, side)
        resized = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([positions[:1], resized.flatten(2)[0].T])


class VisionLayer(nn.Module):
    """One pre-norm CLIP block, (B, N, D) -> (B, N, D)."""

    def __init__(self, config: GitVisionConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.num_heads = config.num_attention_heads
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(size, size) for name in ("k", "v", "q", "out")})
        self.layer_norm1 = nn.LayerNorm(size, eps=eps)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(size, config.intermediate_size), "fc2": nn.Linear(config.intermediate_size, size)}
        )
        self.layer_norm2 = nn.LayerNorm(size, eps=eps)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project rows x (B, N, D) to queries, keys and values, each (B, H, N, head_dim)."""
        y = self.layer_norm1(x)
        q, k, v = (split_heads(self.self_attn[f"{name}_proj"](y), self.num_heads) for name in "qkv")
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x)
        x = x + self.self_attn["out_proj"](merge_heads(attention(q, k, v)))
        y = self.mlp["fc1"](self.layer_norm2(x))
        y = y * torch.sigmoid(1.702 * y)  # quick_gelu
        return x + self.mlp["fc2"](y)


class VisionTransformer(nn.Module):
    """Images (B, 3, H, W) -> features of all tokens (B, N, D), the class token first."""

    def __init__(self, config: GitVisionConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(size, eps=eps)  # the published spelling
        layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(size, eps=eps)

    def forward(self, pixels: Tensor, interpolate_positions: bool = False) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels, interpolate_positions))
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.post_layernorm(x)


class TextEmbeddings(nn.Module):
    """Words plus positions, normalised: ids and positions (R, L) -> (R, L, D). Image tokens take no positions."""

    def __init__(self, config: GitConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = getattr(config, "hidden_dropout_prob", 0.0)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.of_words(self.word_embeddings(ids), positions)

    def of_words(self, words: Tensor, positions: Tensor) -> Tensor:
        """Add positions to embedded words (R, L, D), and normalise."""
        return drop(self.LayerNorm(words + self.position_embeddings(positions)), self.dropout, self.training)


class DecoderLayer(nn.Module):
    """One post-norm BERT layer; image rows and text rows run through the same weights."""

    def __init__(self, config: GitConfig) -> None:
        super().__init__()
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.num_heads = config.num_attention_heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(size, size) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(size, size), "LayerNorm": nn.LayerNorm(size, eps=eps)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, size), "LayerNorm": nn.LayerNorm(size, eps=eps)})
        self.dropout = getattr(config, "hidden_dropout_prob", 0.0)
        self.attention_dropout = getattr(config, "attention_probs_dropout_prob", 0.0)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Project rows x (R, L, D) to keys and values, each (R, H, L, head_dim)."""
        projections = self.attention["self"]
        return split_heads(projections["key"](x), self.num_heads), split_heads(projections["value"](x), self.num_heads)

    def queries(self, x: Tensor) -> Tensor:
        """Project rows x (R, L, D) to queries (R, H, L, head_dim)."""
        return split_heads(self.attention["self"]["query"](x), self.num_heads)

    def forward(self, x: Tensor, keys_values: KeysValues, allowed: Tensor | None = None) -> Tensor:
        return self.with_weights(x, keys_values, allowed)[0]

    def with_weights(self, x: Tensor, keys_values: KeysValues, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the rows (R, L, D) of ``forward``, and their attention weights (R, H, L, S)."""
        keys, values = keys_values
        weights = attention_weights(self.queries(x), keys, allowed).to(values.dtype)
        weights = drop(weights, self.attention_dropout, self.training)
        tail = self.attention["output"]
        y = drop(tail["dense"](merge_heads(weights @ values)), self.dropout, self.training)
        x = tail["LayerNorm"](y + x)
        y = self.output["dense"](F.gelu(self.intermediate["dense"](x)))
        return self.output["LayerNorm"](drop(y, self.dropout, self.training) + x), weights


class GitBackbone(nn.Module):
    """Everything under the ``git.`` prefix of a checkpoint."""

    def __init__(self, config: GitConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.embeddings = TextEmbeddings(config)
        self.image_encoder = nn.ModuleDict({"vision_model": VisionTransformer(vision)})
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))}
        )
        projection = nn.Sequential(
            nn.Linear(vision.hidden_size, config.hidden_size),
            nn.LayerNorm(config.hidden_size, eps=vision.layer_norm_eps),
        )
        self.visual_projection = nn.ModuleDict({"visual_projection": projection})
        if config.num_image_with_embedding is not None:
            self.img_temporal_embedding = nn.ParameterList(
                nn.Parameter(torch.zeros(1, 1, vision.hidden_size)) for _ in range(config.num_image_with_embedding)
            )


class GitOutput(NamedTuple):
    """The output of ``GitModel.forward``."""

    logits: Tensor  # (R, L, V), text rows only
    loss: Tensor | None  # mean cross entropy of the labels, float32 or wider
    cache: list[KeysValues]  # text keys and values of every layer, each (R, H, S + L, head_dim)


class GitModel(nn.Module):
    """A GIT model whose ``state_dict`` names are those of Hugging Face checkpoints."""

    def __init__(self, config: GitConfig) -> None:
        super().__init__()
        self.config = config
        self.git = GitBackbone(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size)

    def image_features(self, pixel_values: Tensor, interpolate_positions: bool = False) -> Tensor:
        """Compute vision features: images (B, 3, H, W) -> (B, N, D); clips (B, T, 3, H, W) -> (B, T * N, D).

        Frames of a clip get their temporal embedding after the last norm and lie one after another; a single image
        on a video model gets none.

        Raises:
            ValueError: the rank, the size or the number of frames does not fit the configuration.
        """
        vision = self.git.image_encoder["vision_model"]
        if pixel_values.ndim == 4:
            return vision(pixel_values, interpolate_positions)
        if pixel_values.ndim != 5:
            raise ValueError(f"pixel_values: expected (B, 3, H, W) or (B, T, 3, H, W), got {tuple(pixel_values.shape)}")
        frames, limit = pixel_values.shape[1], self.config.num_image_with_embedding or 0
        if not 1 <= frames <= limit:
            raise ValueError(f"pixel_values: this model takes clips of at most {limit} frames, got {frames}")
        features = vision(pixel_values.flatten(0, 1), interpolate_positions).unflatten(0, (-1, frames))
        temporal = torch.stack(list(self.git.img_temporal_embedding)[:frames], dim=2)  # (1, 1, T, D)
        return (features + temporal.transpose(1, 2)).flatten(1, 2)

    def image_tokens(self, pixel_values: Tensor, interpolate_positions: bool = False) -> Tensor:
        """Project pixels to image tokens (B, P, D), the decoder's input."""
        features = self.image_features(pixel_values, interpolate_positions)
        return self.git.visual_projection["visual_projection"](features)

    def prefix(self, tokens: Tensor) -> list[KeysValues]:
        """Turn image tokens (B, P, D) into keys and values of every decoder layer, each (B, H, P, head_dim).

        The last layer computes keys and values only: nothing reads the image rows it would produce.
        """
        layers, x, prefix = self.git.encoder["layer"], tokens, []
        for layer in layers:
            prefix.append(layer.keys_values(x))
            if layer is not layers[-1]:
                x = layer(x, prefix[-1])
        return prefix

    def forward(self, *arguments: Any, **options: Any) -> GitOutput:
        """Call ``decode``."""
        return self.decode(*arguments, **options)

    def decode(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        *,
        prefix: Sequence[KeysValues] | None = None,
        cache: Sequence[KeysValues] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> GitOutput:
        """Run text rows ``input_ids`` (R, L) over images, given as pixels or as a ``prefix``; neither: text only.

        R is a multiple of B; row r reads image r % B, so k texts per image are laid out as k blocks of B rows.
        ``attention_mask`` (R, S + L) marks padding with 0. ``position_ids`` (R, L) default to the count of real
        tokens before each. ``labels`` (R, L) are aligned with ``input_ids`` and shifted here; -100 is ignored.
        """
        if pixel_values is not None:
            prefix = self.prefix(self.image_tokens(pixel_values))
        rows, length = input_ids.shape
        past = cache[0][0].shape[2] if cache else 0
        mask = input_ids.new_ones(rows, past + length) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = (mask.cumsum(-1) - 1).clamp_min(0)[:, past:]
        if prefix is not None:
            prefix = [_tile(pair, rows) for pair in prefix]
        allowed = _text_mask(mask, length, prefix[0][0].shape[2] if prefix else 0)

        x, new_cache = self.git.embeddings(input_ids, position_ids), []
        for i, layer in enumerate(self.git.encoder["layer"]):
            text = _concatenate(cache[i] if cache else None, layer.keys_values(x))
            new_cache.append(text)
            x = layer(x, _concatenate(prefix[i] if prefix else None, text), allowed)
        logits = self.output(x)
        loss = None if labels is None else next_token_loss(logits, labels)
        return GitOutput(logits, loss, new_cache)


def _text_mask(mask: Tensor, length: int, prefix_tokens: int) -> Tensor:
    """Mask keys for the last ``length`` text rows, bool (R, 1, L, P + S + L): image tokens and real text before."""
    rows, total = mask.shape
    text = torch.ones(total, total, dtype=torch.bool, device=mask.device).tril()[-length:] & (mask != 0)[:, None, :]
    image = text.new_ones(rows, length, prefix_tokens)
    return torch.cat([image, text], dim=-1)[:, None]


def _tile(pair: KeysValues, rows: int) -> KeysValues:
    images = pair[0].shape[0]
    if rows % images:
        raise ValueError(f"input_ids: {rows} rows do not divide over {images} images")
    keys, values = (x if images == rows else x.repeat(rows // images, 1, 1, 1) for x in pair)
    return keys, values


def _concatenate(before: KeysValues | None, after: KeysValues) -> KeysValues:
    if before is None:
        return after
    keys, values = (torch.cat(pair, dim=2) for pair in zip(before, after, strict=True))
    return keys, values


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross entropy of logits (R, L, V) for the next of labels (R, L); -100 is ignored.

    Raises:
        ValueError: ``labels`` are not one for each row and token.
    """
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels: expected shape {tuple(logits.shape[:2])}, got {tuple(labels.shape)}")
    logits = logits[:, :-1].flatten(0, 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)


def _tied_names(model: nn.Module) -> set[str]:
    """Find names of parameters that have an earlier name too."""
    first = {name for name, _ in model.named_parameters()}
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - first


@torch.no_grad()
def initialize(model: nn.Module, std: float = 0.02) -> None:
    """Draw fresh weights as transformers does: normal of ``std``, zero biases and padding row, unit norms."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            module.weight.normal_(std=std)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
            if getattr(module, "padding_idx", None) is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, VisionEmbeddings):
            module.class_embedding.normal_(std=std)


def build_model(config: GitConfig, weights: Mapping[str, np.ndarray | Tensor]) -> GitModel:
    """Build a model of a checkpoint's tensors in host memory, without initialising it first.

    Raises:
        CheckpointError: as ``load_weights``.
    """
    with torch.device("meta"):
        model = GitModel(config)
    model.to_empty(device="cpu")
    load_weights(model, weights)
    return model


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray | Tensor]) -> None:
    """Copy a checkpoint's tensors into ``model``; both spellings of the temporal embedding are read.

    Raises:
        CheckpointError: tensors are missing, unexpected or mis-shaped; the message lists all of them.
    """
    own, problems = model.state_dict(), []
    given = dict(CanonicalNames(weights))
    tied = _tied_names(model)
    problems += [f"missing {name}" for name in own.keys() - given.keys() - tied]
    for name in given.keys() - {n for n in given if n.endswith("position_ids")}:
        if name not in own:
            problems.append(f"unexpected {name}")
        elif tuple(given[name].shape) != tuple(own[name].shape):
            problems.append(f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(given[name].shape)}")
    if problems:
        raise CheckpointError("weights: " + "; ".join(sorted(problems)))
    with torch.no_grad():
        for name, target in own.items():
            if name in tied and name not in given:  # the same memory as a tensor that is given
                continue
            x = given[name]
            target.copy_(x if isinstance(x, Tensor) else torch.from_numpy(np.array(x)))  # a copy: x may be read-only
