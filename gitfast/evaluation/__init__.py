"""Scores of captions and answers as papers report them: CIDEr-D, BLEU, ROUGE-L, VQA accuracy."""

from gitfast.evaluation.captions import CaptionScores, ImageScores, score_captions
from gitfast.evaluation.vqa import AnswerScores, normalize_answer, score_answers, vqa_accuracy

__all__ = [
    "AnswerScores",
    "CaptionScores",
    "ImageScores",
    "normalize_answer",
    "score_answers",
    "score_captions",
    "vqa_accuracy",
]
