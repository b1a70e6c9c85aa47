"""Corpora of conversations: LLaVA and LLaVA-Med, PubMedVision, ms-swift, TRL, verl."""

from __future__ import annotations

from omr_io.corpus.raw import RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas.conversation import (
    Turn,
    adapt,
    exchange,
    fields_of,
    holds_parts,
    holds_turns,
    no_other_media,
    turns_of,
)
from omr_io.corpus.schemas.row import Found, Need, RowError, RowFields, Schema, Table

_LLAVA_KEYS = ("from", "value")
_MESSAGE_KEYS = ("role", "content")
_PUBMEDVISION = ("modality", "body_part")
_IMAGE = Need("image", ("images", "image"), "picture", optional=True)
# LLaVA-Med's own files spell it without the second "i".
_CONVERSATION = Need("conversation", ("conversations", "conversatons"), "messages")


def _against_llava(table: Table, found: Found) -> str | None:
    if not holds_turns(table, found["conversation"], _LLAVA_KEYS):
        return f"{found['conversation']} is not of {{from, value}}"
    if all(name in table.columns for name in _PUBMEDVISION):
        return "has modality and body_part, as PubMedVision"
    return None


def _against_pubmedvision(table: Table, found: Found) -> str | None:
    if not all(name in table.columns for name in _PUBMEDVISION):
        return "has no modality and body_part"
    if not holds_turns(table, found["conversation"], _LLAVA_KEYS):
        return f"{found['conversation']} is not of {{from, value}}"
    return None


LLAVA = Schema(
    name="llava",
    summary="LLaVA, LLaVA-Med: image, conversations of {from: human or gpt, value}",
    needs=(_CONVERSATION, _IMAGE),
    adapt=adapt,
    against=_against_llava,
    reasoning="reply",
    aliases=("llava-med",),
)

PUBMEDVISION = Schema(
    name="pubmedvision",
    summary="PubMedVision: id, image (a list of paths), conversations, modality, body_part",
    needs=(_CONVERSATION, _IMAGE, Need("id", ("id",), "exact-id", optional=True)),
    adapt=adapt,
    against=_against_pubmedvision,
    reasoning="reply",
)


def _against_swift(table: Table, found: Found) -> str | None:
    if not holds_turns(table, found["conversation"], _MESSAGE_KEYS):
        return "messages are not of {role, content}"
    if holds_parts(table, found["conversation"]):
        return "the contents of messages are lists of parts, as TRL's"
    return None


MS_SWIFT = Schema(
    name="ms-swift",
    summary="ms-swift: messages of {role, content: text}, images, for RL a solution",
    needs=(
        Need("conversation", ("messages",), "messages"),
        _IMAGE,
        Need("solution", ("solution",), "answer", optional=True),
    ),
    adapt=adapt,
    against=_against_swift,
    reasoning="reply",
    aliases=("swift",),
)


def _against_trl_messages(table: Table, found: Found) -> str | None:
    if not holds_turns(table, found["conversation"], _MESSAGE_KEYS):
        return "messages are not of {role, content}"
    if not holds_parts(table, found["conversation"]):
        return "the contents of messages are text, as ms-swift's"
    return None


TRL_MESSAGES = Schema(
    name="trl-messages",
    summary="TRL: messages of {role, content: text and image parts}, images",
    needs=(Need("conversation", ("messages",), "messages"), _IMAGE),
    adapt=adapt,
    against=_against_trl_messages,
    reasoning="reply",
)


def adapt_trl(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A prompt, text or messages, and its completion or solution."""
    no_other_media(raw)
    columns = [found[role] for role in ("prompt", "completion") if role in found]
    turns = _side(raw.get(columns[0]), columns[0], "user")
    for column in columns[1:]:
        turns += _side(raw.get(column), column, "assistant")
    return fields_of(raw, found, exchange(turns, options), tuple(columns))


def _side(value: object, column: str, role: str) -> list[Turn]:
    return [Turn(role, value)] if isinstance(value, str) else turns_of(value, column)


def _against_trl(table: Table, found: Found) -> str | None:
    if "reward_model" in table.columns:
        return "has reward_model, as verl"
    if "completion" not in found and "solution" not in found:
        return "has neither completion nor solution, answer or ground_truth"
    for role in ("prompt", "completion"):
        column = found.get(role)
        plain = column is None or table.columns[column].kind in ("text", "mixed")
        if column is not None and not plain and not holds_turns(table, column, _MESSAGE_KEYS):
            return f"{column} is neither text nor of {{role, content}}"
    return None


TRL = Schema(
    name="trl",
    summary="TRL: prompt (text or messages), completion or solution, images",
    needs=(
        Need("prompt", ("prompt",), "prompt"),
        Need("completion", ("completion",), "prompt", optional=True),
        Need("solution", ("solution", "answer", "ground_truth"), "answer", optional=True),
        _IMAGE,
    ),
    adapt=adapt_trl,
    against=_against_trl,
    reasoning="reply",
)


def adapt_verl(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A prompt, and the reward model's ground truth.

    Prompts often end in an instruction on the line of the last option. So options are looked for in
    extra_info's own question, where there is one and the prompt holds it.
    """
    column = found["prompt"]
    asked = exchange(_side(raw.get(column), column, "user"), options)
    reward = raw.get(found["reward"])
    if not isinstance(reward, dict):
        raise RowError("null-answer", "reward_model is null, or no struct")
    fields = fields_of(raw, found, asked, (column,))
    about = raw.get("extra_info")
    own = about.get("question") if isinstance(about, dict) else None
    own = own.replace("<image>", "").strip() if isinstance(own, str) else ""
    inside = bool(own) and own in (asked.question or "")
    return fields._replace(
        answer=reward.get("ground_truth"),
        options_text=own if inside else None,
        keep=(*fields.keep, found["reward"]),
    )


VERL = Schema(
    name="verl",
    summary="verl: prompt (messages), images, reward_model {ground_truth}, extra_info",
    needs=(
        Need("prompt", ("prompt",), "prompt"),
        Need("reward", ("reward_model",), "struct"),
        _IMAGE,
    ),
    adapt=adapt_verl,
    options="letters",
    reasoning="reply",
)
