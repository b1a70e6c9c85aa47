"""A record as a ChatML (Qwen) conversation: token ids and which of them are trained."""

from omr_io.chat.format import ChatFormat, EncodedText, corpus_completion

__all__ = [
    "ChatFormat",
    "EncodedText",
    "corpus_completion",
]
