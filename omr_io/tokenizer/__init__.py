"""Text → token ids, equal to Hugging Face's, where text cannot forge a control token."""

from omr_io.tokenizer.core import Segment, Tokenizer, train_bpe

__all__ = [
    "Segment",
    "Tokenizer",
    "train_bpe",
]
