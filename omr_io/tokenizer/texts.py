"""What is wrong with a text: the same words whichever backend found it."""

from __future__ import annotations

from collections.abc import Sequence

from omr_io.errors import ConfigError, DataError, TokenizerError


def as_tuple(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts in a tuple, so that they stay while other threads change what they came in.

    Raises:
        ConfigError: one text instead of many.
    """
    if isinstance(texts, str):
        raise ConfigError("expected a sequence of texts, got one text", mend="Put it in a list")
    return tuple(texts)


def require_texts(texts: Sequence[object], first: int = 0) -> None:
    """Raise DataError for what is not a str, counting from `first`: HF takes a tuple as a pair."""
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            raise not_text(text, index)


def not_text(text: object, index: int) -> DataError:
    """An item that is no str."""
    return DataError(f"text {index} is a {type(text).__name__}, not a str")


def lone_surrogate(index: int, position: int, code_point: int) -> DataError:
    """A str that is not valid Unicode."""
    return DataError(
        f"text {index} is not valid Unicode: a lone surrogate "
        f"U+{code_point:04X} at character {position}",
        mend="Decode the source with its true encoding",
    )


def surrogate(texts: Sequence[str], first: int = 0) -> DataError | TokenizerError:
    """Say which of `texts` is not valid Unicode: the one thing Hugging Face refuses in a str."""
    for index, text in enumerate(texts, first):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return lone_surrogate(index, error.start, ord(text[error.start]))
    return TokenizerError("Hugging Face tokenizers refused a valid text")


def control_text(index: int, position: int, content: str) -> DataError:
    """A text that spells a control token, where the policy is "error"."""
    return DataError(
        f"text {index} spells the control token {content!r} at character {position}",
        mend='Take it out of the corpus, or let it be plain text with on_special_text="text"',
    )


def control_id(content: str | None) -> TokenizerError:
    """A vocabulary whose pieces or merges make a control token."""
    return TokenizerError(
        f"a text yields the control token {content!r}",
        mend="This tokenizer.json cannot keep text and control tokens apart",
    )


def unknown_id(number: int, vocab_size: int) -> TokenizerError:
    """An id that no token has."""
    return TokenizerError(
        f"id {number} is not in the vocabulary of {vocab_size}",
        mend="Use the tokenizer that the ids were made with",
    )
