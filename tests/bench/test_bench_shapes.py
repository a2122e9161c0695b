"""The shapes that are timed are those of the published models."""

from __future__ import annotations

from gitfast.bench.shapes import MODELS, attentions, layer_rows


def test_rows_of_layers():
    rows = {(r.model, r.stage, r.images, r.rows, r.width, r.mlp) for r in layer_rows(MODELS)}
    assert {
        ("git-base", "vision", 1, 197, 768, 3072),
        ("git-base", "vision", 64, 64 * 197, 768, 3072),
        ("git-large", "vision", 1, 257, 1024, 4096),
        ("git-large", "prefix", 1, 257, 768, 3072),
        ("git-base-vqav2", "vision", 8, 8 * 901, 768, 3072),
        ("git-base-vatex", "vision", 1, 6 * 197, 768, 3072),
        ("git-base", "decode", 1, 4, 768, 3072),
        ("git-base", "decode", 64, 512, 768, 3072),
    } <= rows


def test_attention():
    found = {(a.model, a.stage, a.images, a.rows, a.prefix, a.text, a.heads, a.head_dim) for a in attentions(MODELS)}
    assert {
        ("git-base", "vision", 1, 197, 197, 0, 12, 64),
        ("git-large", "vision", 64, 257, 257, 0, 16, 64),
        ("git-base-vatex", "prefix", 1, 1182, 1182, 0, 12, 64),
        ("git-base-vqav2", "decode", 1, 8, 901, 10, 12, 64),
        ("git-base", "decode", 64, 4, 197, 10, 12, 64),
    } <= found


def test_every_shape_comes_once_and_every_stage_can_be_asked_for():
    shapes = [(r.rows, r.width) for r in layer_rows(MODELS)]
    assert len(shapes) == len(set(shapes))
    assert [r.rows for r in layer_rows(["git-base"], ["prefix"])] == [197, 8 * 197, 64 * 197]
    assert next(r.model for r in layer_rows(["git-large"], ["decode"])) == "git-large"
