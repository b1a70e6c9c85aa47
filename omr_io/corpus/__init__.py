"""Parquet → `Record`: the rows of a corpus, or a named `Refusal` for each that cannot be one."""

from omr_io.corpus.options import parse_options
from omr_io.corpus.pieces import Corpus, Piece, open_corpus
from omr_io.corpus.reader import read_parquet
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.sources import count_rows, list_sources, source_fingerprint

__all__ = [
    "Corpus",
    "Piece",
    "ReadOptions",
    "count_rows",
    "list_sources",
    "open_corpus",
    "parse_options",
    "read_parquet",
    "source_fingerprint",
]
