"""``gitfast evaluate``: score captions and answers, from files or from a model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gitfast.cli import common

if TYPE_CHECKING:
    from gitfast.evaluation.report import Report

_CAPTIONS_EXAMPLE = """\
  gitfast evaluate captions references.json --captions captions.jsonl
  gitfast evaluate captions captions_val2014.json --model base-coco --images val2014/ --report coco.html"""
_VQA_EXAMPLE = """\
  gitfast evaluate vqa annotations.json --answers answers.json
  gitfast evaluate vqa annotations.json --questions questions.json --model base-vqav2 --images val2014/ --worst 20"""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="Score captions and answers against what people wrote.",
        description="Score captions (CIDEr-D, BLEU, ROUGE-L) and answers (VQA accuracy, exact match).",
    )
    kinds = parser.add_subparsers(title="what to score", required=True, metavar="captions|vqa")
    captions = common.add_command(
        kinds, "captions", run_captions, help="Score captions against references.", example=_CAPTIONS_EXAMPLE
    )
    captions.add_argument("references", help="COCO caption JSON, JSON lines or CSV: reference captions per image")
    captions.add_argument("--captions", metavar="FILE", help="captions to score: COCO results JSON, JSON lines or CSV")
    vqa = common.add_command(kinds, "vqa", run_vqa, help="Score answers to questions.", example=_VQA_EXAMPLE)
    vqa.add_argument("annotations", help="VQA annotation JSON, or JSON lines: answers of annotators per question")
    vqa.add_argument("--questions", metavar="FILE", help="VQA question JSON, where the annotations have no questions")
    vqa.add_argument("--answers", metavar="FILE", help="answers to score: VQA results JSON, JSON lines or CSV")
    for command in (captions, vqa):
        common.add_model_arguments(command, None)
        command.add_argument("--images", metavar="FOLDER", help="the pictures, for --model and --report")
        command.add_argument("--preset", choices=["paper"], help="search as for the published scores")
        command.add_argument("--beams", type=common.positive, metavar="N", help="beams (default: 1, greedy search)")
        command.add_argument(
            "--max-new-tokens", type=common.positive, metavar="N", help="end a text here (default: 50)"
        )
        command.add_argument("--json", metavar="FILE", help="write all scores, of every picture too")
        command.add_argument("--report", metavar="FILE", help="write an HTML page with pictures, the worst first")
        command.add_argument(
            "--worst", type=common.positive, metavar="N", help="print the N lowest, and show as many in the report"
        )


def run_captions(args: argparse.Namespace) -> int:
    from gitfast.evaluation.captions import score_captions
    from gitfast.evaluation.files import read_captions, read_references
    from gitfast.evaluation.report import Example, Report
    from gitfast.evaluation.run import caption_images, find_images

    _check_sources(args, args.captions, "--captions")
    references = read_references(args.references)
    images = find_images(list(references.texts), references.file_names, args.images) if args.images else {}
    _check_outputs(args, [args.references, args.captions, *images.values()])
    if args.model:
        captions = caption_images(common.load_model(args), references, images, _options(args))
    else:
        captions = read_captions(args.captions)
    scores = score_captions(captions, references.texts)
    report = Report(
        title="Captions",
        about=f"{_source(args, args.captions)} against {args.references}",
        scores=scores.as_dict(),
        examples=[
            Example(
                name=references.file_names.get(image, image),
                text=captions[image],
                references=texts,
                score=scores.per_image[image].cider,
                image=images.get(image),
            )
            for image, texts in references.texts.items()
        ],
        score_name="CIDEr-D",
        best=10.0,
    )
    per_image = {
        image: {"caption": captions[image], "CIDEr": one.cider, "BLEU-4": one.bleu[3], "ROUGE-L": one.rouge_l}
        for image, one in scores.per_image.items()
    }
    return _finish(args, report, per_image)


def run_vqa(args: argparse.Namespace) -> int:
    from gitfast.evaluation.files import read_answers, read_questions
    from gitfast.evaluation.report import Example, Report
    from gitfast.evaluation.run import answer_questions, find_images
    from gitfast.evaluation.vqa import score_answers

    _check_sources(args, args.answers, "--answers")
    questions = read_questions(args.annotations, args.questions)
    ids = list(dict.fromkeys(question.image_id for question in questions.values()))
    images = find_images(ids, {}, args.images) if args.images else {}
    _check_outputs(args, [args.annotations, args.questions, args.answers, *images.values()])
    if args.model:
        if unasked := [question_id for question_id, question in questions.items() if not question.text]:
            raise ValueError(f"{args.annotations}: question {unasked[0]} has no text; --questions names their file")
        answers = answer_questions(common.load_model(args), questions, images, _options(args))
    else:
        answers = read_answers(args.answers)
    scores = score_answers(
        answers,
        {question_id: question.answers for question_id, question in questions.items()},
        {question_id: question.kind for question_id, question in questions.items() if question.kind},
    )
    report = Report(
        title="Answers",
        about=f"{_source(args, args.answers)} against {args.annotations}",
        scores=scores.as_dict(),
        examples=[
            Example(
                name=question.image_id,
                text=answers[question_id],
                references=question.answers,
                score=scores.per_question[question_id],
                question=question.text or question_id,
                image=images.get(question.image_id),
            )
            for question_id, question in questions.items()
        ],
        score_name="Accuracy",
        best=1.0,
    )
    per_question = {
        question_id: {"answer": answers[question_id], "accuracy": accuracy}
        for question_id, accuracy in scores.per_question.items()
    }
    return _finish(args, report, per_question)


def _check_sources(args: argparse.Namespace, file: str | None, name: str) -> None:
    """Check what is read and written, before a model is loaded."""
    from gitfast.bench.report import check_writable

    if (file is None) == (args.model is None):
        raise ValueError(f"{name}, --model: expected exactly one of them")
    if args.model and not args.images:
        raise ValueError("--images: expected the folder of the pictures that --model reads")
    for option, path in (("--json", args.json), ("--report", args.report)):
        if path is not None:
            check_writable(option, Path(path), devices=True)


def _check_outputs(args: argparse.Namespace, inputs: Sequence[str | Path | None]) -> None:
    """Refuse outputs that would replace what is read, or each other, before a model is loaded."""
    for option, path in (("--json", args.json), ("--report", args.report)):
        if path and os.path.isfile(path) and any(file and os.path.samefile(path, file) for file in inputs):
            raise ValueError(f"{option}: {path} is an input")
    if args.json and args.report and os.path.realpath(args.json) == os.path.realpath(args.report) != os.devnull:
        raise ValueError("--json, --report: expected two files")


def _source(args: argparse.Namespace, file: str | None) -> str:
    return str(file or args.model)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    given = {"preset": args.preset, "num_beams": args.beams, "max_new_tokens": args.max_new_tokens}
    return {name: value for name, value in given.items() if value is not None}


def _finish(args: argparse.Namespace, report: Report, details: Mapping[str, Any]) -> int:
    from gitfast.evaluation.report import write_report

    width = max(map(len, report.scores))
    for name, value in report.scores.items():
        print(f"{name:<{width}}  {value:.4f}")
    if args.worst:
        print(f"\nlowest {report.score_name}:")
        for example in sorted(report.examples, key=lambda example: example.score)[: args.worst]:
            asked = f"{example.question}\t" if example.question else ""
            print(f"{example.score:.3f}\t{example.name}\t{asked}{example.text}\t({example.references[0]})")
    try:
        if args.json:
            text = json.dumps({"scores": dict(report.scores), "details": details}, indent=1, ensure_ascii=False)
            # Half of a surrogate pair, which JSON and names can hold, is written as JSON's escape of it.
            Path(args.json).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        if args.report:
            write_report(report, args.report, **({"worst": args.worst} if args.worst else {}))
    except OSError as error:
        print(f"gitfast: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
