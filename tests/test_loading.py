"""Loading a model: engines, dtypes, missing files, and arguments that cannot be."""

from __future__ import annotations

import shutil

import pytest

import gitfast
from gitfast import ArgumentError, EngineError, Model

from support.tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def model(checkpoint_folder) -> Model:
    return gitfast.load(checkpoint_folder, num_threads=2)


class TestLoad:
    def test_says_what_it_is(self, model, checkpoint_folder):
        assert repr(model) == f"<gitfast.Model {checkpoint_folder} on the cpu engine>"

    def test_unknown_engine_and_dtype(self, checkpoint_folder):
        with pytest.raises(ValueError, match="engine: expected"):
            gitfast.load(checkpoint_folder, engine="gpu")
        with pytest.raises(ValueError, match=r"engine: expected .* got a value of type list"):
            gitfast.load(checkpoint_folder, engine=["cpu"])
        with pytest.raises(ValueError, match="dtype: expected"):
            gitfast.load(checkpoint_folder, dtype="int4")
        with pytest.raises(EngineError, match="cpu engine: takes float32, bfloat16, int8, w8a8, not float16"):
            gitfast.load(checkpoint_folder, engine="cpu", dtype="float16")
        with pytest.raises(ValueError, match="num_threads"):
            gitfast.load(checkpoint_folder, engine="reference", num_threads=1)

    def test_the_reference_engine_takes_dtypes(self, checkpoint_folder, image_files):
        half = gitfast.load(checkpoint_folder, engine="reference", dtype="bfloat16")
        assert half.engine.model.output.weight.dtype.itemsize == 2
        assert half.caption(image_files[0], max_new_tokens=3).token_ids

    def test_without_processor_files(self, checkpoint_folder, model, image_files, tmp_path):
        folder = shutil.copytree(checkpoint_folder, tmp_path / "bare")
        (folder / "preprocessor_config.json").unlink()
        with pytest.warns(UserWarning, match="preprocessor_config.json"):
            bare = gitfast.load(folder)
        assert bare.caption(image_files) == model.caption(image_files)

    def test_the_default_length_fits_the_positions(self, tmp_path, image_files):
        folder = write_checkpoint(tmp_path / "short", max_position_embeddings=12)
        result = gitfast.load(folder).caption(image_files[0], min_new_tokens=5, prompt="the red square")
        assert len(result.token_ids) <= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_threads": 1.5}, "num_threads: expected an integer, got 1.5"),
        ({"num_threads": "2"}, "num_threads: expected an integer"),
        ({"processor": 3}, "processor: expected a name or a path, got 3"),
        ({"base": 3}, "base: expected a name or a path, got 3"),
        ({"model": None}, "model: expected a name or a path, got None"),
    ],
)
def test_arguments_of_load_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        gitfast.load(**({"model": "git-tiny"} | arguments))
