"""Accuracy of models on shard sets, with baselines: what `omr-io eval` does.

    Named, EvaluationOptions ─▶ read_items ─▶ complete_all (Answerer, CompletionsLog) ─▶ figures

`compare` is all of it; `omr_io.train.report.comparison` makes a page of what it gives.
"""

from omr_io.train.evaluation.comparison import PAPER, Comparison, compare
from omr_io.train.evaluation.figures import Figures, ModelDifference, ModelOnSet, Score, SetFacts
from omr_io.train.evaluation.items import read_items
from omr_io.train.evaluation.log import Line, read_completions
from omr_io.train.evaluation.models import Answerer, Ask, FolderModel
from omr_io.train.evaluation.options import VARIANTS, EvaluationOptions, Named
from omr_io.train.evaluation.scoring import Said, trace_of
from omr_io.train.evaluation.shuffle import Shuffled, permutation, shuffle_options

__all__ = [
    "PAPER",
    "VARIANTS",
    "Answerer",
    "Ask",
    "Comparison",
    "EvaluationOptions",
    "Figures",
    "FolderModel",
    "Line",
    "ModelDifference",
    "ModelOnSet",
    "Named",
    "Said",
    "Score",
    "SetFacts",
    "Shuffled",
    "compare",
    "permutation",
    "read_completions",
    "read_items",
    "shuffle_options",
    "trace_of",
]
