"""Conversations in ChatML (Qwen) or Llama-3's form: token ids and which of them are trained."""

from omr_io.chat.conversation import (
    Completion,
    Conversation,
    EncodedBatch,
    EncodedText,
    Turn,
)
from omr_io.chat.format import ChatFormat
from omr_io.chat.rows import corpus_completion

__all__ = [
    "ChatFormat",
    "Completion",
    "Conversation",
    "EncodedBatch",
    "EncodedText",
    "Turn",
    "corpus_completion",
]
