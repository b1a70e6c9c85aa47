"""Source files → `Record`: the rows of a corpus, or a named `Refusal` for each that is none."""

from omr_io.corpus.formats import open_source
from omr_io.corpus.image_roots import open_image_root
from omr_io.corpus.options import parse_options
from omr_io.corpus.pieces import Corpus, Piece, open_corpus
from omr_io.corpus.reader import read_source
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.sources import count_rows, list_sources, source_fingerprint

__all__ = [
    "Corpus",
    "Piece",
    "ReadOptions",
    "count_rows",
    "list_sources",
    "open_corpus",
    "open_image_root",
    "open_source",
    "parse_options",
    "read_source",
    "source_fingerprint",
]
