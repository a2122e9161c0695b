"""The reference engine against transformers, which it must equal; and against itself, cached and uncached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from gitfast.checkpoints.config import GitConfig
from gitfast.engines.base import Engine
from gitfast.engines.reference import ReferenceEngine
from gitfast.errors import CheckpointError
from gitfast.torch_model import GitModel, load_weights
from gitfast.types import GenerationOptions, ImagePrefix

VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
IMAGES, CLIPS = {"pixels": (2, 3, 32, 32)}, {"pixels": (2, 3, 3, 32, 32), "num_image_with_embedding": 3}


def make_pair(seed: int = 0, **overrides) -> tuple[GitModel, transformers.GitForCausalLM]:
    """The same random float64 weights in our model and in transformers'."""
    values = {**TEXT, "vision_config": VISION, **overrides}
    torch.manual_seed(seed)
    theirs = transformers.GitForCausalLM(transformers.GitConfig(**values)).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # larger than the default, so that every term matters
            parameter.normal_(std=0.2)
    ours = GitModel(GitConfig.from_dict(values)).double().eval()
    load_weights(ours, theirs.state_dict())
    return ours, theirs


def random_inputs(pixels: tuple[int, ...], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 60, (2, 7), generator=generator)
    return torch.randn(pixels, generator=generator, dtype=torch.float64), ids


def test_state_dict_names_are_those_of_transformers():
    ours, theirs = make_pair(num_image_with_embedding=3)
    expected = {name: x.shape for name, x in theirs.state_dict().items()}
    assert {name: x.shape for name, x in ours.state_dict().items()} == expected
    assert len(GitModel(GitConfig()).state_dict()) == 305  # git-base


@pytest.mark.parametrize("case", [IMAGES, CLIPS], ids=["images", "clips"])
def test_logits_loss_and_gradients_equal_transformers(case):
    overrides = {k: v for k, v in case.items() if k != "pixels"}
    ours, theirs = make_pair(**overrides)
    pixels, ids = random_inputs(case["pixels"])
    labels = ids.clone()
    labels[0, :3] = -100

    got = ours(ids, pixels, labels=labels)
    want = theirs(input_ids=ids, pixel_values=pixels, labels=labels)
    num_image_tokens = want.logits.shape[1] - ids.shape[1]
    torch.testing.assert_close(got.logits, want.logits[:, num_image_tokens:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=0, check_dtype=False)  # theirs is float32

    got.loss.backward()
    reference = torch.nn.functional.cross_entropy(
        want.logits[:, num_image_tokens:-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    reference.backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name].grad, rtol=1e-5, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_interpolated_positions_equal_transformers():
    ours, theirs = make_pair()
    pixels, ids = random_inputs((2, 3, 48, 40))
    with pytest.raises(ValueError, match=r"expected images of \(32, 32\), got \(48, 40\)"):
        ours(ids, pixels)
    tokens = ours.image_tokens(pixels, interpolate_positions=True)
    want = theirs(input_ids=ids, pixel_values=pixels, interpolate_pos_encoding=True).logits[:, tokens.shape[1] :]
    torch.testing.assert_close(ours(ids, prefix=ours.prefix(tokens)).logits, want, rtol=1e-9, atol=1e-9)


def test_left_padded_rows_equal_transformers_and_single_rows():
    ours, theirs = make_pair()
    pixels, ids = random_inputs(IMAGES["pixels"])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    got = ours(ids, pixels, attention_mask=mask).logits
    want = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask, position_ids=positions).logits[:, -7:]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got[1:, 3:], ours(ids[1:, 3:], pixels[1:]).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [IMAGES, CLIPS, {"pixels": None}], ids=["images", "clips", "text only"])
def test_cached_decoding_equals_one_pass(case):
    ours, _ = make_pair(num_image_with_embedding=case.get("num_image_with_embedding"))
    pixels, ids = random_inputs(case["pixels"] or IMAGES["pixels"])
    prefix = None if case["pixels"] is None else ours.prefix(ours.image_tokens(pixels))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    whole = ours(ids, prefix=prefix, attention_mask=mask).logits
    output = ours(ids[:, :4], prefix=prefix, attention_mask=mask[:, :4])
    steps = [output.logits]
    for i in range(4, 7):
        output = ours(ids[:, i : i + 1], prefix=prefix, cache=output.cache, attention_mask=mask[:, : i + 1])
        steps.append(output.logits)
    real = mask != 0  # with no image, a padding row sees nothing and its logits mean nothing
    torch.testing.assert_close(torch.cat(steps, dim=1)[real], whole[real], rtol=1e-9, atol=1e-9)


def test_rows_tile_over_images_as_in_transformers():
    ours, theirs = make_pair()
    pixels, ids = random_inputs(IMAGES["pixels"])
    ids = torch.cat([ids, ids.flip(1)])
    want = theirs(input_ids=ids, pixel_values=pixels).logits[:, -7:]
    torch.testing.assert_close(ours(ids, pixels).logits, want, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="3 rows do not divide over 2 images"):
        ours(ids[:3], pixels)


def test_greedy_tokens_equal_transformers():
    ours, theirs = make_pair()
    engine = ReferenceEngine(ours)
    pixels, ids = random_inputs(IMAGES["pixels"])
    prefixes = engine.encode(pixels.numpy())
    options = GenerationOptions(max_new_tokens=12)
    got = engine.generate(prefixes, ids.tolist(), options)
    want = theirs.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=12, do_sample=False)[:, ids.shape[1] :]
    for (generation,), expected in zip(got, want.tolist(), strict=True):
        if 3 in expected:
            expected = expected[: expected.index(3) + 1]
        assert generation.token_ids == expected
        assert generation.score == pytest.approx(sum(generation.token_logprobs))
    sequences = [list(p) + g.token_ids for p, (g,) in zip(ids.tolist(), got, strict=True)]
    for scores, (generation,) in zip(engine.score(prefixes, sequences), got, strict=True):
        np.testing.assert_allclose(scores[6:], generation.token_logprobs, rtol=1e-5)


def test_generation_stops_and_calls_back():
    ours, _ = make_pair()
    with torch.no_grad():
        ours.output.bias[3] = 1e4  # always the end of the sequence
    engine = ReferenceEngine(ours)
    (ended,) = engine.generate([None], [[2]], GenerationOptions(max_new_tokens=20))[0]
    assert (ended.token_ids, ended.finish_reason) == ([3], "stop")
    (forced,) = engine.generate([None], [[2]], GenerationOptions(min_new_tokens=4, max_new_tokens=4))[0]
    assert len(forced.token_ids) == 4
    assert 3 not in forced.token_ids
    assert forced.finish_reason == "length"
    seen = []
    (stopped,) = engine.generate(
        [None],
        [[2]],
        GenerationOptions(min_new_tokens=9, max_new_tokens=20),
        lambda row, ids: seen.append((row, *ids)) or len(seen) < 2,
    )[0]
    assert [token for _, token in seen] == stopped.token_ids
    assert len(seen) == 2


def test_prefix_reports_its_contents():
    ours, _ = make_pair(**{"num_image_with_embedding": 3})
    engine: Engine = ReferenceEngine(ours.float())
    pixels, _ = random_inputs(CLIPS["pixels"])
    prefix = engine.encode(pixels.float().numpy())[1]
    assert isinstance(prefix, ImagePrefix)
    assert prefix.num_tokens == 3 * 17
    assert prefix.nbytes == 3 * 2 * 51 * 32 * 4  # layers, K and V, tokens, width, float32
    keys, values = prefix.keys_values(2)
    assert keys.shape == values.shape == (2, 51, 16)


def test_both_spellings_of_the_temporal_embedding_load():
    ours, _ = make_pair(num_image_with_embedding=3)
    renamed = {n.replace("temporal", "temperal"): x for n, x in ours.state_dict().items()}
    engine = ReferenceEngine.from_weights(ours.config, renamed, dtype=torch.float64)
    torch.testing.assert_close(engine.model.state_dict(), ours.state_dict())


def test_wrong_weights_are_all_named():
    ours, _ = make_pair()
    weights = ours.state_dict()
    del weights["output.bias"]
    weights["extra"] = torch.zeros(1)
    weights["output.weight"] = torch.zeros(2, 3)
    with pytest.raises(CheckpointError) as error:
        ReferenceEngine.from_weights(ours.config, weights)
    for part in ("missing output.bias", "unexpected extra", "output.weight: expected shape (60, 32), got (2, 3)"):
        assert part in str(error.value)


def test_too_many_frames_are_refused():
    ours, _ = make_pair()
    with pytest.raises(ValueError, match="at most 0 frames, got 3"):
        ours.image_features(torch.zeros(1, 3, 3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_near_as_transformers(dtype):
    ours, theirs = make_pair()
    pixels, ids = random_inputs(IMAGES["pixels"])
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    exact = GitModel(ours.config).double()
    load_weights(exact, ours.state_dict())
    truth = exact(ids, pixels.to(dtype).double()).logits
    error = (ours(ids, pixels.to(dtype)).logits.double() - truth).abs().mean()
    their_error = (theirs(input_ids=ids, pixel_values=pixels.to(dtype)).logits[:, -7:].double() - truth).abs().mean()
    assert error <= 1.5 * their_error


def test_text_beyond_the_positions_is_refused():
    """Every token that is read needs a position; the last that is generated is not read."""
    ours, _ = make_pair()
    with torch.no_grad():
        ours.output.bias[3] = -1e4  # no end
    engine = ReferenceEngine(ours)
    (found,) = engine.generate([None], [[2]], GenerationOptions(max_new_tokens=40))[0]
    assert len(found.token_ids) == 40
    with pytest.raises(
        ValueError, match=r"prompts\[0\]: 2 tokens and 40 new ones exceed the model's 40 text positions"
    ):
        engine.generate([None], [[2, 5]], GenerationOptions(max_new_tokens=40))
    with pytest.raises(ValueError, match=r"sequences\[0\]: 41 tokens exceed the model's 40 text positions"):
        engine.score([None], [[2] * 41])
