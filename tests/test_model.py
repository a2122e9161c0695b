"""The tasks of a model: captions, answers, clips, batches, and their errors, the same on every engine."""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

import gitfast
from gitfast import (
    ArgumentError,
    CancelledError,
    CancelToken,
    DeadlineError,
    ImageError,
    Model,
    Result,
    VideoError,
)

from support.tiny_checkpoint import random_image


@pytest.fixture(scope="module")
def model(checkpoint_folder) -> Model:
    return gitfast.load(checkpoint_folder, num_threads=2)


@pytest.fixture(scope="module")
def reference(checkpoint_folder) -> Model:
    return gitfast.load(checkpoint_folder, engine="reference")


@pytest.fixture(scope="module")
def video_model(video_checkpoint_folder) -> Model:
    return gitfast.load(video_checkpoint_folder, num_threads=2)


@pytest.fixture(scope="module")
def clip() -> list[Image.Image]:
    return [random_image(i) for i in range(3)]


class Encodes:
    """Counts the images that a model encodes inside a ``with``."""

    def __init__(self, model: Model) -> None:
        self.model, self.count = model, 0

    def __enter__(self) -> Encodes:
        self.before = self.model.engine.stats.encoded_images
        return self

    def __exit__(self, *_: object) -> None:
        self.count = self.model.engine.stats.encoded_images - self.before


class TestCaption:
    def test_the_engines_agree(self, model, reference, image_files):
        ours, theirs = model.caption(image_files), reference.caption(image_files)
        assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]
        assert [r.finish_reason for r in ours] == [r.finish_reason for r in theirs]
        np.testing.assert_allclose([r.score for r in ours], [r.score for r in theirs], rtol=1e-4)
        assert len({r.text for r in ours}) > 1, "the fixture's captions should depend on the image"

    def test_one_image_gives_one_result(self, model, image_files):
        result = model.caption(image_files[0])
        assert isinstance(result, Result)
        assert str(result) == result.text == model.processor.tokenizer.decode(result.token_ids)
        assert len(result.token_logprobs) == len(result.token_ids)
        assert result.score == pytest.approx(sum(result.token_logprobs), rel=1e-5)

    def test_a_list_gives_a_list_in_order_whatever_the_batches(self, model, image_files):
        singly = [model.caption(file) for file in image_files]
        assert model.caption(image_files, batch_size=2) == model.caption(tuple(image_files)) == singly
        assert model.caption([]) == []

    def test_every_kind_of_image(self, model, image_files):
        path = image_files[0]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        kinds = [str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), image, np.asarray(image)]
        assert {model.caption(kind).text for kind in kinds} == {model.caption(path).text}
        assert {result.text for result in model.caption(kinds)} == {model.caption(path).text}

    def test_the_prompt_begins_the_text(self, model, image_files):
        result = model.caption(image_files[0], prompt="the red square")
        assert result.text.startswith("the red square")
        assert model.processor.tokenizer.decode(result.token_ids) in result.text
        assert result.token_ids[:3] != tuple(model.processor.tokenizer.encode("the red square"))

    def test_options_arrive(self, model, image_files):
        short = model.caption(image_files[0], max_new_tokens=2, min_new_tokens=2)
        assert (len(short.token_ids), short.finish_reason) == (2, "length")
        beams = model.caption(image_files[0], num_beams=3, num_return_sequences=3, max_new_tokens=5)
        assert len(beams.alternatives) == 2
        scores = [beams.score, *(other.score for other in beams.alternatives)]
        assert scores == sorted(scores, reverse=True)
        assert beams.alternatives[0].alternatives == ()

    def test_samples_repeat_by_seed(self, model, image_files):
        options = {"do_sample": True, "num_return_sequences": 4, "seed": 7, "max_new_tokens": 8}
        assert model.caption(image_files[0], **options) == model.caption(image_files[0], **options)
        assert model.caption(image_files[0], **options) != model.caption(image_files[0], **options | {"seed": 8})

    def test_many_sequences_are_decoded_in_chunks(self, model, image_files):
        with Encodes(model) as encodes:
            questions = model.answer(image_files[0], ["what color is the square?"] * 40, num_beams=3)
        assert len(questions) == 40
        assert len(set(questions)) == 1
        assert encodes.count == 1

    def test_paper_preset(self, model, image_files):
        preset = model.caption(image_files[0], preset="paper")
        spelled = model.caption(image_files[0], num_beams=4, length_penalty=0.6, length_penalty_form="paper")
        assert preset == spelled
        assert model.caption(image_files[0], preset="paper", num_beams=1).token_ids == (
            model.caption(image_files[0]).token_ids
        )

    def test_allowed_texts(self, model, image_files):
        allowed = ["red circle", "blue square on the left"]
        assert {r.text for r in model.caption(image_files, allowed_texts=allowed)} <= set(allowed)

    def test_wrong_options_are_named(self, model, image_files):
        with pytest.raises(TypeError, match=r"'num_beam'; did you mean 'num_beams'"):
            model.caption(image_files[0], num_beam=3)
        with pytest.raises(ValueError, match="preset"):
            model.caption(image_files[0], preset="fast")
        with pytest.raises(ValueError, match="max_new_tokens"):
            model.caption(image_files[0], max_new_tokens=0)
        with pytest.raises((TypeError, ValueError), match="max_new_tokens"):
            model.caption(image_files[0], max_new_tokens="many")
        with pytest.raises(ValueError, match="allowed_texts"):
            model.caption(image_files[0], allowed_texts=[])
        with pytest.raises(ValueError, match="batch_size"):
            model.caption(image_files[0], batch_size=0)
        with pytest.raises(ValueError, match="on_error"):
            model.caption(image_files[0], on_error="skip")

    @pytest.mark.parametrize(
        ("option", "values"),
        {
            "batch_size": ["a", 1.5, True, -1],
            "num_beams": [None, "4", 2.5, True],
            "num_return_sequences": [None, "4", 2.5],
            "top_k": ["5", None],
            "temperature": ["hot", None, 10**400],
            "do_sample": ["yes", 1, None],
            "seed": ["1", 1.5],
            "preset": [["paper"], 3],
            "allowed_texts": [{"red": 1}, [1], iter(["red"])],
            "on_error": [["raise"], None],
            "prompt": [5, b"red", "red " * 10**6],
        }.items(),
    )
    def test_options_of_wrong_types_are_named(self, model, image_files, option, values):
        for value in values:
            with pytest.raises(ArgumentError, match=option):
                model.caption(image_files[0], **{option: value})
            with pytest.raises(ArgumentError, match=option):
                model.caption_each(iter([]), **{option: value})

    def test_numbers_of_numpy_are_numbers(self, model, image_files):
        options = {"num_beams": np.int64(2), "length_penalty": np.float32(1), "batch_size": np.int32(2)}
        assert model.caption(image_files, **options) == model.caption(image_files, num_beams=2)


class TestEach:
    """``caption_each`` and ``answer_each`` yield the results of ``caption`` and ``answer``, for any iterable."""

    def test_captions(self, model, image_files):
        expected = model.caption(image_files, prompt="the red", num_beams=2, max_new_tokens=4)
        options = {"num_beams": 2, "max_new_tokens": 4, "batch_size": 2}
        assert list(model.caption_each(iter(image_files), "the red", **options)) == expected
        assert list(model.caption_each(image_files, "the red", **options)) == expected
        assert list(model.caption_each([])) == []

    def test_answers(self, model, image_files):
        questions = ["how many?", "what color?"]
        expected = [model.answer(file, questions) for file in image_files]
        assert list(model.answer_each(iter(image_files), questions)) == expected
        assert list(model.answer_each(iter(image_files), "how many?")) == [answers[:1] for answers in expected]

    def test_windows_give_the_same(self, model, image_files, monkeypatch):
        files = image_files * 5
        expected = model.caption(files, num_beams=2, max_new_tokens=6)
        monkeypatch.setattr(model.engine, "rows_at_once", 4, raising=False)
        assert model.caption(files, num_beams=2, max_new_tokens=6) == expected
        assert list(model.caption_each(iter(files), num_beams=2, max_new_tokens=6)) == expected

    def test_images_are_taken_as_they_are_needed(self, model, image_files):
        taken = itertools.count()
        images = (image_files[i % 5] for i in taken)
        with contextlib.closing(model.caption_each(images, batch_size=2, max_new_tokens=1)) as results:
            for _ in range(3):
                next(results)
        assert next(taken) == 4

    def test_errors(self, model, image_files):
        images = [image_files[0], b"not an image", image_files[1]]
        first, bad, last = model.caption_each(iter(images), on_error="return")
        assert [first, last] == model.caption(image_files[:2])
        assert isinstance(bad.error, ImageError)
        results = model.caption_each(iter(images))
        assert next(results) == first
        with pytest.raises(ImageError, match=r"images\[1\]"):
            next(results)
        (answers,) = model.answer_each(iter([b"not an image"]), ["how many?", "what?"], on_error="return")
        assert [isinstance(answer.error, ImageError) for answer in answers] == [True, True]

    @pytest.mark.parametrize("method", ["caption_each", "answer_each"])
    def test_wrong_arguments_are_told_by_the_call(self, model, video_model, image_files, method):
        def call(model, images, **options):
            return getattr(model, method)(images, "how many?", **options)

        with pytest.raises(ValueError, match=r"videos\[0\].*0.png: a single image, .* reads clips of 3 frames"):
            next(call(video_model, image_files))
        with pytest.raises(TypeError, match="num_beam"):
            call(model, image_files, num_beam=3)
        with pytest.raises(ValueError, match="batch_size"):
            call(model, image_files, batch_size=0)
        with pytest.raises(ValueError, match="on_error"):
            call(model, image_files, on_error="skip")
        for image in (str(image_files[0]), image_files[0].read_bytes(), np.zeros((8, 8, 3), np.uint8), io.BytesIO()):
            with pytest.raises(TypeError, match="images: expected an iterable"):
                call(model, image)


class TestBadInputs:
    def test_raised_with_name_and_index(self, model, image_files, tmp_path):
        with pytest.raises(ImageError, match=r"images\[9\].*missing\.png"):
            model.caption([*image_files, *image_files[:4], tmp_path / "missing.png"])
        with pytest.raises(ImageError, match=r"^[^\[]*missing\.png"):
            model.caption(tmp_path / "missing.png")

    def test_an_array_of_images_is_not_one(self, model):
        with pytest.raises(ImageError, match=r"\(2, 8, 8, 3\)"):
            model.caption(np.zeros((2, 8, 8, 3), np.uint8))

    def test_returned_in_their_place(self, model, image_files):
        results = model.caption([image_files[0], b"not an image", image_files[1]], on_error="return")
        assert [isinstance(r.error, ImageError) for r in results] == [False, True, False]
        assert results[1].text == ""
        assert results[2] == model.caption(image_files[1])

    def test_returned_for_every_question(self, model):
        results = model.answer(b"not an image", ["how many?", "what is it?"], on_error="return")
        assert [isinstance(r.error, ImageError) for r in results] == [True, True]

    def test_clips_on_an_image_model(self, model, clip, image_files, tmp_path):
        video = tmp_path / "clip.mp4"
        video.write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
        with pytest.raises(ImageError, match=r"^a list of 3: the model reads single images"):
            model.caption([clip])
        for source in (np.stack([np.asarray(frame) for frame in clip]), video, video.read_bytes()):
            for task in (model.caption, model.encode, lambda x: model.answer(x, "what?"), model.stream):
                with pytest.raises(ImageError, match="reads single images, not clips: pass images, or load a video"):
                    task(source)
        bad, good = model.caption([video, image_files[0]], on_error="return")
        assert isinstance(bad.error, ImageError)
        assert good == model.caption(image_files[0])
        with pytest.raises(ValueError, match=r"num_frames: .* reads single images"):
            model.caption(image_files[0], num_frames=3)

    def test_images_on_a_video_model(self, video_model, image_files):
        with Image.open(image_files[0]) as opened:
            image = opened.convert("RGB")
        for source in (image_files[0], image_files[0].read_bytes(), np.asarray(image), image):
            for task in (video_model.caption, video_model.encode, video_model.stream):
                with pytest.raises(VideoError, match=r"reads clips of 3 frames: pass a video or a list of frames"):
                    task(source)
        assert video_model.caption([image]) == video_model.caption([image] * 3)


class TestCancel:
    def tasks(self, model, image, token):
        return [
            lambda: model.caption(image, cancel=token),
            lambda: model.caption([image, b"bad"], cancel=token, on_error="return"),
            lambda: model.answer(image, ["how many?", "what?"], cancel=token),
            lambda: list(model.caption_each([image], cancel=token)),
            lambda: list(model.answer_each([image], "what?", cancel=token)),
            lambda: model.encode(image, cancel=token),
            lambda: model.classify(image, ["red", "blue"], cancel=token),
            lambda: model.score(image, "red", cancel=token),
            lambda: list(model.stream(image, cancel=token)),
        ]

    def test_a_cancelled_token_ends_every_task(self, model, image_files):
        token = CancelToken()
        for task in self.tasks(model, image_files[0], token):
            task()
        token.cancel()
        for task in self.tasks(model, image_files[0], token):
            with pytest.raises(CancelledError):
                task()

    def test_a_deadline(self, model, image_files):
        for task in self.tasks(model, image_files[0], CancelToken(timeout=0.0)):
            with pytest.raises(DeadlineError):
                task()

    def test_prefixes_do_not_hide_it(self, model, image_files):
        prefix, token = model.encode(image_files[0]), CancelToken()
        token.cancel()
        for task in (lambda: model.caption(prefix, cancel=token), lambda: model.score(prefix, "red", cancel=token)):
            with pytest.raises(CancelledError):
                task()

    def test_wrong_tokens_are_named(self, model, image_files):
        for token in (5, threading.Event(), lambda: True):
            with pytest.raises(ArgumentError, match=r"cancel: expected a gitfast\.CancelToken"):
                model.caption(image_files[0], cancel=token)


class TestPickling:
    def test_by_what_was_loaded(self, checkpoint_folder, image_files, tmp_path, monkeypatch):
        monkeypatch.chdir(checkpoint_folder.parent)
        model = gitfast.load(checkpoint_folder.name, dtype="bfloat16", num_threads=1, prefix_cache_bytes=1000)
        data = pickle.dumps(model)
        monkeypatch.chdir(tmp_path)
        again = pickle.loads(data)
        assert (again.engine.engine.dtype, again.engine.engine.num_threads) == ("bfloat16", 1)
        assert again.engine.max_bytes == 1000
        assert again.caption(image_files) == model.caption(image_files)

    def test_a_cache_is_found_from_any_folder(self, checkpoint_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert str(tmp_path / "cache").encode() in pickle.dumps(gitfast.load(checkpoint_folder, cache_dir="cache"))

    def test_a_token_stays_here(self, checkpoint_folder):
        assert b"hf_secret" not in pickle.dumps(gitfast.load(checkpoint_folder, token="hf_secret"))

    def test_a_model_made_by_hand(self, model):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(Model(model.engine, model.processor, model.config))

    def test_a_pool_of_spawned_processes(self, model, image_files):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.map_async(model.caption, image_files[:2]).get(120) == model.caption(image_files[:2])


class TestAnswer:
    def test_many_questions_are_one_encode(self, model, image_files):
        questions = ["how many?", "what color is the square?", "is there one circle?"]
        with Encodes(model) as encodes:
            together = model.answer(image_files[0], questions)
        assert encodes.count == 1
        assert together == [model.answer(image_files[0], question) for question in questions]

    def test_beams_and_samples_are_one_encode(self, model, image_files):
        with Encodes(model) as encodes:
            model.caption(image_files[0], num_beams=4)
            model.caption(image_files[0], do_sample=True, num_return_sequences=5)
        assert encodes.count == 2

    def test_one_question_of_many_images(self, model, image_files):
        assert model.answer(image_files, "how many?") == [model.answer(f, "how many?") for f in image_files]

    def test_pairs(self, model, image_files):
        questions = ["how many?", "what shape?"]
        expected = [model.answer(f, q) for f, q in zip(image_files, questions, strict=False)]
        assert model.answer(image_files[:2], questions) == expected

    def test_the_answer_has_no_question(self, model, image_files):
        result = model.answer(image_files[0], "what color is the square?")
        assert result.text == model.processor.tokenizer.decode(result.token_ids)

    def test_the_engines_agree(self, model, reference, image_files):
        questions = ["how many?", "what color is the red square on the left?"]
        ours, theirs = model.answer(image_files[0], questions), reference.answer(image_files[0], questions)
        assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]

    def test_wrong_questions(self, model, image_files):
        with pytest.raises(ValueError, match="one for each of 5 inputs, got 2"):
            model.answer(image_files, ["how?", "what?"])
        with pytest.raises(TypeError, match="questions"):
            model.answer(image_files[0], None)
        for questions in ([1], {"how?": 1}, iter(["how?"]), "how " * 5_000_000):
            with pytest.raises(TypeError, match="questions"):
                model.answer(image_files[0], questions)


class TestEncode:
    def test_a_prefix_stands_for_its_image(self, model, image_files):
        prefixes = model.encode(image_files)
        with Encodes(model) as encodes:
            assert model.caption(prefixes) == model.caption(list(prefixes))
            assert model.answer(prefixes[0], "how many?").text
        assert encodes.count == 0
        assert model.caption(prefixes) == model.caption(image_files)
        assert model.caption([image_files[0], prefixes[1]]) == model.caption(image_files[:2])

    def test_one_gives_one(self, model, image_files):
        prefix = model.encode(image_files[0])
        assert prefix.num_tokens == model.config.num_image_tokens
        # keys and values of two layers, float32
        assert prefix.nbytes >= 2 * 2 * prefix.num_tokens * model.config.hidden_size * 4

    def test_a_clip(self, video_model, clip):
        prefix = video_model.encode(clip)
        assert prefix.num_tokens == video_model.config.num_image_tokens
        assert video_model.caption(prefix) == video_model.caption(clip)


class TestVideo:
    def test_the_engines_agree(self, video_model, video_checkpoint_folder, clip):
        reference = gitfast.load(video_checkpoint_folder, engine="torch")
        clips = [clip, clip[::-1], [clip[0]]]
        ours, theirs = video_model.caption(clips), reference.caption(clips)
        assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]
        assert ours[0].token_ids != ours[1].token_ids, "the fixture's captions should depend on the order of frames"

    def test_frames_and_lists_of_videos(self, video_model, clip, image_files, tmp_path):
        frames = [np.asarray(frame) for frame in clip]
        single = video_model.caption(clip)
        assert video_model.caption(frames) == video_model.caption(np.stack(frames)) == single
        assert video_model.caption([clip, np.stack(frames)]) == [single, single]
        for i, frame in enumerate(clip):
            frame.save(tmp_path / f"{i}.png")
        paths = [tmp_path / f"{i}.png" for i in range(3)]
        assert video_model.caption([paths]) == [single]

    def test_sampling(self, video_model):
        frames = [random_image(i) for i in range(9)]
        chosen = video_model.caption(frames, sampling=[0, 4, 8])
        assert chosen == video_model.caption([frames[0], frames[4], frames[8]])
        assert video_model.caption(frames) == video_model.caption([frames[1], frames[4], frames[7]])

    def test_number_of_frames(self, video_model, clip):
        assert video_model.caption(clip, num_frames=2) == video_model.caption([clip[0], clip[2]], num_frames=2)
        for count in (0, 4, 10**9, "3", 2.5):
            with pytest.raises(ValueError, match="frames"):
                video_model.caption(clip, num_frames=count)

    def test_wrong_sampling_is_named(self, video_model, clip):
        for sampling in ("middle", 5, [0.5], {"a": 1}, range(10**9), None):
            with pytest.raises(ArgumentError, match="sampling"):
                video_model.caption(clip, sampling=sampling)
        chosen = video_model.caption(clip, sampling=np.array([0, 1, 2]))
        assert chosen == video_model.caption(clip, sampling=[0, 1, 2])

    def test_questions(self, video_model, clip):
        with Encodes(video_model) as encodes:
            answers = video_model.answer(clip, ["how many?", "what color?"])
        assert encodes.count == 1
        assert answers[1] == video_model.answer(clip, "what color?")

    def test_a_bad_video_is_named(self, video_model, clip, tmp_path):
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(b"no video at all")
        with pytest.raises(VideoError, match=r"videos\[1\].*bad\.mp4"):
            video_model.caption([clip, bad])


class TestStream:
    @pytest.mark.parametrize("arguments", [{}, {"prompt": "the red"}, {"question": "how many?"}])
    def test_the_pieces_make_the_text(self, model, image_files, arguments):
        stream = model.stream(image_files[0], **arguments)
        pieces = []
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                result = end.value
                break
        if "question" in arguments:
            expected = model.answer(image_files[0], arguments["question"])
        else:
            expected = model.caption(image_files[0], **arguments)
        assert "".join(pieces) == result.text == expected.text
        assert result == expected

    def test_closing_ends_the_generation(self, model, image_files):
        before = model.engine.stats.decode_steps
        stream = model.stream(image_files[0], max_new_tokens=30, min_new_tokens=30)
        next(stream)
        stream.close()
        assert model.engine.stats.decode_steps - before < 30
        assert not [t for t in threading.enumerate() if t.name == "gitfast-stream"]

    def test_wrong_arguments(self, model, image_files):
        with pytest.raises(ValueError, match="num_beams"):
            model.stream(image_files[0], num_beams=2)
        with pytest.raises(ValueError, match="at most one"):
            model.stream(image_files[0], question="a", prompt="b")
        with pytest.raises(ValueError, match="one input"):
            next(model.stream(image_files))

    def test_errors_of_the_engine_are_raised(self, model, image_files):
        with pytest.raises(ValueError, match="temperature"):
            list(model.stream(image_files[0], do_sample=True, temperature=-1.0))


class TestScore:
    def test_the_caption_scores_as_it_was_generated(self, model, image_files):
        pieces = [0, 1, 2, 4, 29, 30]  # special tokens and word endings, which do not survive decoding
        result = model.caption(image_files[0], suppress_tokens=pieces)
        assert result.finish_reason == "stop", "choose an image whose caption ends"
        assert model.score(image_files[0], result.text) == pytest.approx(result.score, rel=1e-5)

    def test_many_texts(self, model, reference, image_files):
        texts = ["red square", "two blue circle", "no"]
        with Encodes(model) as encodes:
            scores = model.score(image_files[0], texts, prompt="what is there?")
        assert encodes.count == 1
        np.testing.assert_allclose(scores, reference.score(image_files[0], texts, prompt="what is there?"), rtol=1e-4)
        means = model.score(image_files[0], texts, prompt="what is there?", normalize="mean")
        np.testing.assert_allclose(means, np.array(scores) / [3, 4, 2], rtol=1e-6)

    def test_wrong_normalize(self, model, image_files):
        with pytest.raises(ValueError, match="normalize"):
            model.score(image_files[0], "red", normalize="max")
        for texts in ({"red": 1}, iter(["red"]), None, [b"red"]):
            with pytest.raises(ArgumentError, match="texts"):
                model.score(image_files[0], texts)


class TestClassify:
    LABELS = ("red", "red square", "blue circle on the left", "blue square", "green")

    @pytest.mark.parametrize("method", ["trie", "score"])
    def test_probabilities(self, model, image_files, method):
        labels = model.classify(image_files[0], self.LABELS, method=method)
        assert sorted(label.text for label in labels) == sorted(self.LABELS)
        assert all(self.LABELS[label.index] == label.text == str(label) for label in labels)
        assert sum(label.probability for label in labels) == pytest.approx(1)
        assert [x.probability for x in labels] == sorted((x.probability for x in labels), reverse=True)
        for label in labels:
            assert label.score == pytest.approx(model.score(image_files[0], label.text), rel=1e-5)

    def test_the_search_draws_from_the_trie_distribution(self, model, image_files):
        labels = {x.text: x.probability for x in model.classify(image_files[0], self.LABELS, prompt="what is it?")}
        draws = model.answer(
            image_files[0],
            "what is it?",
            allowed_texts=list(self.LABELS),
            do_sample=True,
            num_return_sequences=2000,
            seed=0,
        )
        texts = [draws.text, *(other.text for other in draws.alternatives)]
        for label, probability in labels.items():
            # four standard deviations of a binomial share
            bound = 4 * (probability * (1 - probability) / len(texts)) ** 0.5 + 1e-3
            assert texts.count(label) / len(texts) == pytest.approx(probability, abs=bound)

    def test_many_images_and_top_k(self, model, image_files):
        rankings = model.classify(image_files, self.LABELS, top_k=2)
        assert [len(r) for r in rankings] == [2] * 5
        assert rankings[3] == model.classify(image_files[3], self.LABELS)[:2]

    def test_wrong_labels(self, model, image_files):
        for labels, message in [
            ([], "labels"),
            ("red", "labels"),
            (["red", ""], r"labels\[1\]"),
            ({"red": 1}, "labels: expected a list of texts, got a value of type dict"),
            ((x for x in ["red"]), "labels: expected a list of texts, got a value of type generator"),
            (["red", 5], r"labels\[1\]: expected a text, got int"),
            (["red", "blue", "Red"], r"labels\[2\]: 'Red' has the same tokens as labels\[0\]"),
        ]:
            with pytest.raises(ValueError, match=message):
                model.classify(image_files[0], labels)
        with pytest.raises(ValueError, match="top_k"):
            model.classify(image_files[0], ["red", "blue"], top_k=0)
        with pytest.raises(ValueError, match="method"):
            model.classify(image_files[0], ["red", "blue"], method="beam")
