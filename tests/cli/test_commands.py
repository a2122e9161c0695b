"""The commands, called in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gitfast
from gitfast import Model
from gitfast.cli import common, main
from gitfast.engines import registry

from support.fake_engine import RefillingEngine
from support.tiny_checkpoint import random_image, write_checkpoint


@pytest.fixture(scope="module")
def model(checkpoint_folder):
    return gitfast.load(checkpoint_folder)


@pytest.fixture
def run(capsys):
    """Runs a command: (exit code, lines of stdout, stderr)."""

    def run_command(*arguments: object) -> tuple[int, list[str], str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run_command


class TestCaption:
    def test_one_image_prints_its_caption(self, run, model, checkpoint_folder, image_files):
        expected = model.caption(image_files[0]).text
        assert run("caption", image_files[0], "--model", checkpoint_folder) == (0, [expected], "")

    def test_many_images_are_named(self, run, model, checkpoint_folder, image_files):
        expected = [f"{file}\t{model.caption(file)}" for file in image_files]
        assert run("caption", *image_files, "--model", checkpoint_folder) == (0, expected, "")

    def test_a_folder_and_a_pattern(self, run, checkpoint_folder, image_files):
        folder = image_files[0].parent
        _, listed, _ = run("caption", *image_files, "--model", checkpoint_folder)
        assert run("caption", folder, "--model", checkpoint_folder)[1] == listed
        assert run("caption", folder / "[0-4].png", "--model", checkpoint_folder)[1] == listed

    def test_folders_within_only_when_asked(self, run, checkpoint_folder, tmp_path):
        (tmp_path / "inner").mkdir()
        random_image(0).save(tmp_path / "outer.PNG")
        random_image(1).save(tmp_path / "inner" / "b.jpg")
        (tmp_path / "notes.txt").write_text("not an image")
        flat = run("caption", tmp_path, "--json", "--model", checkpoint_folder)[1]
        deep = run("caption", tmp_path, "--json", "-r", "--model", checkpoint_folder)[1]
        assert [json.loads(line)["file_name"] for line in flat] == [str(tmp_path / "outer.PNG")]
        assert [json.loads(line)["file_name"] for line in deep] == [
            str(tmp_path / "inner" / "b.jpg"),
            str(tmp_path / "outer.PNG"),
        ]

    def test_json(self, run, model, checkpoint_folder, image_files):
        code, lines, _ = run("caption", image_files[0], "--json", "--model", checkpoint_folder)
        result = model.caption(image_files[0])
        record = {"file_name": str(image_files[0]), "text": result.text}
        record |= {"score": result.score, "finish_reason": result.finish_reason}
        assert (code, [json.loads(line) for line in lines]) == (0, [record])

    def test_options_arrive(self, run, model, checkpoint_folder, image_files):
        options = ("--beams", 3, "--max-new-tokens", 4, "--prompt", "the red", "--engine", "cpu", "--threads", 1)
        lines = run("caption", image_files[0], "--model", checkpoint_folder, *options)[1]
        assert lines == [model.caption(image_files[0], prompt="the red", num_beams=3, max_new_tokens=4).text]

    def test_bad_images_do_not_stop_the_others(self, run, model, checkpoint_folder, image_files, tmp_path):
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"\x89PNG, but no more than that")
        missing = tmp_path / "missing.png"
        code, lines, errors = run("caption", bad, image_files[0], missing, "--model", checkpoint_folder)
        assert (code, lines) == (1, [f"{image_files[0]}\t{model.caption(image_files[0])}"])
        assert [line.split(":")[1].strip() for line in errors.splitlines()] == [str(bad), str(missing)]
        code, lines, _ = run("caption", bad, image_files[0], "--json", "--model", checkpoint_folder)
        assert code == 1
        assert ["error" in json.loads(line) for line in lines] == [True, False]

    def test_an_empty_folder(self, run, checkpoint_folder, tmp_path):
        code, lines, errors = run("caption", tmp_path, "--model", checkpoint_folder)
        assert (code, lines) == (1, [])
        assert "no files" in errors

    def test_a_model_that_is_not_there(self, run, image_files):
        code, _, errors = run("caption", image_files[0], "--model", "git-tinny")
        assert (code, errors) == (
            1,
            "gitfast: git-tinny: not a folder, and not a known model; did you mean 'git-tiny'?\n",
        )

    def test_a_model_of_clips(self, run, video_checkpoint_folder, image_files):
        code, _, errors = run("caption", image_files[0], "--model", video_checkpoint_folder)
        assert code == 1
        assert "reads clips of 3 frames" in errors


class TestAnswer:
    def test_questions(self, run, model, checkpoint_folder, image_files):
        questions = ["how many?", "what color?"]
        asked = ("-q", questions[0], "-q", questions[1], "--model", checkpoint_folder)
        code, lines, _ = run("answer", *image_files[:2], *asked)
        answers = [(file, q, model.answer(file, q).text) for file in image_files[:2] for q in questions]
        assert (code, lines) == (0, [f"{file}\t{q}\t{text}" for file, q, text in answers])
        records = [json.loads(line) for line in run("answer", *image_files[:2], *asked, "--json")[1]]
        assert [(r["file_name"], r["question"], r["text"]) for r in records] == [(str(f), q, t) for f, q, t in answers]

    def test_one_question_about_one_image_prints_the_answer(self, run, model, checkpoint_folder, image_files):
        expected = model.answer(image_files[0], "how many?").text
        assert run("answer", image_files[0], "-q", "how many?", "--model", checkpoint_folder)[1] == [expected]

    def test_one_question_about_many_images(self, run, model, checkpoint_folder, image_files, tmp_path):
        files = [image_files[0], tmp_path / "missing.png", *image_files[1:]]
        code, lines, errors = run("answer", *files, "-q", "how many?", "--model", checkpoint_folder)
        assert (code, errors.count("\n")) == (1, 1)
        assert lines == [f"{file}\thow many?\t{model.answer(file, 'how many?')}" for file in image_files]

    def test_bad_images(self, run, checkpoint_folder, tmp_path):
        missing = tmp_path / "missing.png"
        asked = ("-q", "how many?", "-q", "what?", "--model", checkpoint_folder)
        code, lines, errors = run("answer", missing, *asked)
        assert (code, lines, errors.count("\n")) == (1, [], 1)
        assert [json.loads(line)["question"] for line in run("answer", missing, "--json", *asked)[1]] == [
            "how many?",
            "what?",
        ]


class TestManyFiles:
    @pytest.mark.parametrize("command", [["caption"], ["answer", "-q", "how many?"]], ids=lambda command: command[0])
    def test_results_come_as_they_are_ready(self, command, model, image_files, tmp_path, monkeypatch, capsys):
        printed = []

        class Engine(RefillingEngine):
            def generate(self, *arguments, **options):
                printed.append(len(capsys.readouterr().out.splitlines()))
                return super().generate(*arguments, **options)

        engine = Engine(3)
        monkeypatch.setattr(common, "load_model", lambda _: Model(engine, model.processor, model.config))
        files = [*image_files * 6, tmp_path / "missing.png"]
        assert main([*command, *map(str, files)]) == 1
        assert engine.rows == [12, 12, 6], "batches are decoded together"
        assert printed == [0, 12, 12], "and printed before the next are"
        assert len(capsys.readouterr().out.splitlines()) == 6


class TestVideo:
    def test_captions_and_answers(self, run, video_checkpoint_folder, tmp_path):
        frames = [random_image(i) for i in range(3)]
        clip = tmp_path / "clip.gif"
        frames[0].save(clip, save_all=True, append_images=frames[1:])
        model = gitfast.load(video_checkpoint_folder)
        assert run("video", clip, "--model", video_checkpoint_folder)[1] == [model.caption(clip).text]
        asked = ("-q", "how many?", "--model", video_checkpoint_folder)
        assert run("video", clip, *asked)[1] == [model.answer(clip, "how many?").text]
        assert run("video", tmp_path, "--model", video_checkpoint_folder)[1] == [model.caption(clip).text]

    def test_a_model_of_images(self, run, checkpoint_folder, image_files):
        code, _, errors = run("video", image_files[0], "--model", checkpoint_folder)
        assert code == 1
        assert "reads single images" in errors


class TestInfo:
    def test_engines(self, run):
        code, lines, _ = run("info")
        assert code == 0
        assert any(line.strip().startswith("cpu") and " usable:" in line for line in lines)

    def test_json_with_a_model(self, run, checkpoint_folder):
        facts = json.loads(run("info", "--json", "--model", checkpoint_folder)[1][0])
        assert facts["gitfast"] == gitfast.__version__
        assert {engine["name"] for engine in facts["engines"]} == set(registry.ENGINES)
        assert facts["model"]["image_tokens"] == 17
        assert facts["model"]["frames"] is None

    @pytest.mark.parametrize("frames", [None, 2])
    def test_what_a_loaded_model_holds(self, run, tmp_path, frames):
        folder = write_checkpoint(tmp_path, num_image_with_embedding=frames)
        arguments = ["info", "--model", folder, "--engine", "cpu", "--dtype", "bfloat16"]
        code, lines, _ = run(*arguments)
        assert code == 0
        frame = np.zeros((32, 32, 3), np.uint8)
        model = gitfast.load(folder, engine="cpu", dtype="bfloat16")
        prefix_bytes = model.encode(frame if frames is None else [frame] * frames).nbytes
        assert f"  prefix bytes    {prefix_bytes:,}" in lines
        loaded = json.loads(run(*arguments, "--json")[1][0])["loaded"]
        assert loaded == {
            "engine": "cpu",
            "dtype": "bfloat16",
            "weight_bytes": model.engine.nbytes,
            "prefix_bytes": prefix_bytes,
            "plans": [],
        }

    def test_an_engine_needs_a_model(self, run):
        code, _, errors = run("info", "--engine", "cpu")
        assert code == 1
        assert "--engine: needs a --model" in "".join(errors)

    def test_says_why_not(self, run, monkeypatch):
        monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setenv("GITFAST_ISA", "mmx")
        lines = run("info")[1]
        assert any(
            "reference" in line and 'not usable: torch is not installed: pip install "gitfast' in line for line in lines
        )
        assert any("cpu" in line and "not usable" in line and "mmx" in line for line in lines)


class TestUsage:
    @pytest.mark.parametrize("command", ["caption", "answer", "video", "info"])
    def test_help_shows_an_example(self, command, capsys):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        assert f"examples:\n  gitfast {command}" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments",
        [[], ["paint"], ["caption"], ["answer", "a.png"], ["caption", "a.png", "--beams", "0"]],
        ids=lambda arguments: " ".join(arguments) or "nothing",
    )
    def test_wrong_usage(self, arguments, capsys):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        assert "usage: gitfast" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--out", "cat.png"),
        ("--out", "film.MP4"),
        ("--out", "shard.tar"),
        ("--errors", "cat.jpg"),
        ("--errors", "data.parquet"),
        ("--caption-extension", "png"),
        ("--caption-extension", ".tgz"),
        ("--caption-extension", "a\n"),
        ("--caption-extension", "a\0"),
    ],
)
def test_results_do_not_replace_inputs(option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "cat.jpg"):
        (tmp_path / name).write_bytes(b"a picture")
    with pytest.raises(SystemExit) as ended:
        main(["caption", ".", "--output", "txt", "--existing", "overwrite", option, value])
    assert ended.value.code == 2
    assert f"{option}: expected" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"a picture"] * 2
