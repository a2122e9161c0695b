"""``gitfast evaluate`` on files and on the bundled model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from held_out import write_data_set

from gitfast.cli import main
from gitfast.errors import EvaluationError
from gitfast.evaluation.files import read_answers, read_captions, read_questions, read_references
from gitfast.evaluation.run import find_images


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    write_data_set(folder, 12)
    return folder


def test_model_captions_are_scored_and_reported(data_set, tmp_path, capsys):
    report, scores = tmp_path / "report.html", tmp_path / "scores.json"
    command = [
        "evaluate",
        "captions",
        str(data_set / "captions.jsonl"),
        "--model",
        "git-tiny",
        "--images",
        str(data_set),
    ]
    assert main([*command, "--worst", "2", "--report", str(report), "--json", str(scores)]) == 0
    said = capsys.readouterr().out
    assert "ROUGE-L" in said
    assert "lowest CIDEr-D" in said
    page = report.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= 2
    assert "<script" not in page
    assert "http" not in page
    values = json.loads(scores.read_text(encoding="utf-8"))
    assert values["scores"]["ROUGE-L"] > 0.9
    assert len(values["details"]) == 12


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_outputs_that_are_inputs_are_refused(data_set, tmp_path, capsys, option):
    references = tmp_path / "references.jsonl"
    references.write_bytes((data_set / "captions.jsonl").read_bytes())
    (tmp_path / "link.jsonl").symlink_to(references)
    captions = tmp_path / "captions.jsonl"
    captions.write_bytes(references.read_bytes())
    picture = next(data_set.glob("*.png"))
    before = {file: file.read_bytes() for file in (references, captions, picture)}
    command = ["evaluate", "captions", str(references), "--captions", str(captions), "--images", str(data_set)]
    for output in (references, tmp_path / "link.jsonl", captions, picture):
        assert main([*command, option, str(output)]) == 1
        assert f"{option}: {output} is an input" in capsys.readouterr().err
    assert main([*command, "--json", str(tmp_path / "x"), "--report", str(tmp_path / "x")]) == 1
    assert "--json, --report: expected two files" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


def test_halves_of_surrogate_pairs_are_written(tmp_path, capsys):
    (tmp_path / "r.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}\n')
    (tmp_path / "c.jsonl").write_text('{"file_name": "a.png", "text": "a \\ud800 dog"}\n')
    command = ["evaluate", "captions", str(tmp_path / "r.jsonl"), "--captions", str(tmp_path / "c.jsonl")]
    report, scores = tmp_path / "report.html", tmp_path / "scores.json"
    assert main([*command, "--json", str(scores), "--report", str(report), "--worst", "1"]) == 0
    assert json.loads(scores.read_text("utf-8"))["details"]["a.png"]["caption"] == "a \ud800 dog"
    assert "a \\ud800 dog" in report.read_text("utf-8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("option", ["--json", "--report"])
def test_outputs_are_checked_before_anything_is_read(tmp_path, capsys, option):
    """A pipe waited for its reader, and a folder that is not there was known when all had been scored."""
    os.mkfifo(tmp_path / "pipe")
    for file, why in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "no" / "x", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        command = ["evaluate", "captions", str(tmp_path / "none"), "--captions", str(tmp_path / "none")]
        assert main([*command, option, str(file)]) == 1
        assert capsys.readouterr().err == f"gitfast: {option}: cannot write {file}: {why}\n"


def test_model_answers_are_scored(data_set, tmp_path, capsys):
    questions = str(data_set / "questions.jsonl")
    command = ["evaluate", "vqa", questions, "--model", "git-tiny", "--images", str(data_set)]
    assert main([*command, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["scores"]
    assert scores["accuracy"] == scores["exact match"] > 0.9


def test_files_of_every_format_give_the_same_scores(tmp_path, capsys):
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 10, "image_id": 1, "caption": "a dog"},
            {"id": 11, "image_id": 1, "caption": "one dog"},
            {"id": 12, "image_id": 2, "caption": "a cat"},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "captions": ["a dog", "one dog"]}\n{"id": "2", "text": "a cat"}\n')
    (tmp_path / "rows.csv").write_text("image_id,caption\n1,a dog\n1,one dog\n2,a cat\n")
    (tmp_path / "results.json").write_text('[{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a dog"}]')
    said = []
    textcaps = [
        {"image_id": i, "reference_strs": texts} for i, texts in (("1", ["a dog", "one dog"]), ("2", ["a cat"]))
    ]
    (tmp_path / "textcaps.json").write_text(json.dumps({"data": textcaps}))
    for name in ("coco.json", "rows.jsonl", "rows.csv", "textcaps.json"):
        assert main(["evaluate", "captions", str(tmp_path / name), "--captions", str(tmp_path / "results.json")]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] == said[3]
    assert read_references(tmp_path / "coco.json").file_names == {"1": "a.jpg", "2": "b.jpg"}


def test_official_vqa_files(tmp_path, capsys):
    questions = {"questions": [{"question_id": 7, "image_id": 42, "question": "what color?"}]}
    answers = [{"answer": "red", "answer_id": i} for i in range(10)]
    annotations = {"annotations": [{"question_id": 7, "image_id": 42, "answer_type": "other", "answers": answers}]}
    (tmp_path / "q.json").write_text(json.dumps(questions))
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    (tmp_path / "r.json").write_text('[{"question_id": 7, "answer": "red"}]')
    found = read_questions(tmp_path / "a.json", tmp_path / "q.json")
    assert found["7"].text == "what color?"
    assert main(["evaluate", "vqa", str(tmp_path / "a.json"), "--answers", str(tmp_path / "r.json")]) == 0
    assert "accuracy     1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reader", "name", "content", "message"),
    [
        (read_references, "x.json", "{", "x.json: not valid JSON"),
        (read_references, "x.json", "3", "expected a JSON object or list, got int"),
        (read_references, "x.json", "{}", "annotations: expected a list, got NoneType"),
        (read_references, "x.json", "[]", "expected captions of at least one image"),
        (read_references, "x.json", "[3]", "row 1: expected an object, got int"),
        (read_references, "x.json", '{"images": null, "annotations": []}', "images: expected a list, got NoneType"),
        (read_references, "x.json", '{"images": [{"id": 1}]}', "images: row 1: file_name: expected text, got None"),
        (
            read_references,
            "x.json",
            '{"images": [{"id": 1, "file_name": [2]}]}',
            r"file_name: expected text, got \[2\]",
        ),
        (read_references, "x.jsonl", '{"a": 1}\n', "row 1: expected one of image_id, id"),
        (read_references, "x.jsonl", '{"id": 1}\n', "row 1: expected a text under"),
        (read_references, "x.jsonl", '{"id": 1, "captions": [1]}\n', "captions: expected a list of texts"),
        (read_references, "x.jsonl", '{"id": 1, "text": "a"}\n[]\n', "line 2: expected a JSON object, got list"),
        (read_captions, "x.jsonl", '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', "a second caption of image 1"),
        (read_answers, "x.json", '[{"question_id": 1, "answer": 2}]', "answer: expected text, got 2"),
        (read_questions, "x.json", '[{"question_id": 1, "image_id": 2}]', "answers: expected a list of texts"),
        (
            read_questions,
            "x.json",
            '[{"question_id": 1, "image_id": 2, "answer_type": []}]',
            "answer_type: expected text",
        ),
        (read_captions, "x.csv", "image_id,caption\n1\n", "expected a text under"),
    ],
)
def test_bad_files_are_named(tmp_path, reader, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(EvaluationError, match=message):
        reader(tmp_path / name)


def test_files_that_are_none(tmp_path):
    with pytest.raises(EvaluationError, match=r"none\.json: No such file"):
        read_captions(tmp_path / "none.json")
    with pytest.raises(EvaluationError, match="expected a regular file, got a folder"):
        read_captions(tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(EvaluationError, match=r"large\.json: expected at most 1073741824 bytes, got 1073741825"):
        read_captions(tmp_path / "large.json")
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(EvaluationError, match="expected UTF-8"):
        read_captions(tmp_path / "latin.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--captions, --model: expected exactly one of them"),
        (["--model", "git-tiny"], "--images: expected the folder"),
        (["--captions", "x", "--model", "y"], "expected exactly one"),
        (["--model", "git-tiny", "--images", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_arguments_that_do_not_fit(data_set, capsys, arguments, message):
    assert main(["evaluate", "captions", str(data_set / "captions.jsonl"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_missing_pictures_are_counted(data_set, tmp_path, capsys):
    assert (
        main(
            ["evaluate", "captions", str(data_set / "captions.jsonl"), "--model", "git-tiny", "--images", str(tmp_path)]
        )
        == 1
    )
    assert "no picture for 12 of 12 images, such as 000000.png" in capsys.readouterr().err


def test_file_names_of_data_stay_in_the_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    for path in (tmp_path / "outside.png", tmp_path / "inside" / "a.png"):
        path.write_bytes(b"x")
    assert find_images(["1"], {"1": "../inside/a.png"}, tmp_path / "inside").keys() == {"1"}
    for name in ("../outside.png", str(tmp_path / "outside.png"), "a\0.png", "x" * 5000):
        with pytest.raises(EvaluationError, match="no picture for 1 of 1 images"):
            find_images(["1"], {"1": name}, tmp_path / "inside")
