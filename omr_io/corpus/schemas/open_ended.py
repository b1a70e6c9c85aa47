"""Open-ended questions and captions: VQA-RAD, PathVQA, SLAKE, BIOMEDICA."""

from __future__ import annotations

from omr_io.corpus.raw import RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas.conversation import take_out_placeholders
from omr_io.corpus.schemas.openmedreason import looks_multiple_choice
from omr_io.corpus.schemas.row import Found, Need, RowError, RowFields, Schema, Table

# A source with one of these says more than image, question and answer: it is of another schema.
_MORE = ("reasoning", "reasoning_trace", "options", "gt", "answer_label", "q_lang", "img_name")


def adapt(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """An image, a question, a short answer."""
    question, count, between = raw.get(found["question"]), 0, False
    if isinstance(question, str):
        question, count, between = take_out_placeholders(question)
    return RowFields(
        question,
        raw.get(found["answer"]),
        None,
        raw.get(found["image"]),
        placeholders=count,
        keep=(found["question"],) if between else (),
    )


def _against_vqa(table: Table, found: Found) -> str | None:
    more = [name for name in _MORE if name in table.columns]
    if more:
        return f"has {more[0]} besides"
    if not table.head:
        return "has no row to tell by that its questions have no options"
    if looks_multiple_choice(table, found["question"], found["answer"]):
        return "its questions end in options, and answers are letters"
    return None


VQA = Schema(
    name="vqa",
    summary="VQA-RAD, PathVQA, SLAKE as Parquet: image, question, answer, all open-ended",
    needs=(
        Need("image", ("image", "images"), "picture"),
        Need("question", ("question",), "text"),
        Need("answer", ("answer",), "answer"),
    ),
    adapt=adapt,
    against=_against_vqa,
    images="needed",
    aliases=("vqa-rad", "path-vqa", "pathvqa"),
)


def _against_slake(table: Table, found: Found) -> str | None:
    if "q_lang" not in table.columns and "qid" not in table.columns:
        return "has neither q_lang nor qid"
    return None


SLAKE = Schema(
    name="slake",
    summary="SLAKE: img_name (a path) or image, question, answer, q_lang, qid, modality, ...",
    needs=(
        Need("image", ("image", "img_name"), "picture"),
        Need("question", ("question",), "text"),
        Need("answer", ("answer",), "answer"),
    ),
    adapt=adapt,
    against=_against_slake,
    images="needed",
)


def adapt_caption(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """An image and its caption; the question is an option's."""
    caption = raw.get(found["caption"])
    if isinstance(caption, bytes):
        try:
            caption = caption.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowError("invalid-utf8", f"the caption is not UTF-8: {error}") from None
    if isinstance(caption, str):
        caption = caption.strip()
    image: object = raw.get(found["image"])
    if image is not None and "id" in found:
        image = {"bytes": image, "path": f"{raw.get(found['id'])}.{found['image']}"}
    return RowFields(options.question, caption, caption, image)


BIOMEDICA = Schema(
    name="biomedica",
    summary="BIOMEDICA and other captioned WebDataset tars: jpg, txt (the caption), json",
    needs=(
        Need("image", ("jpg", "jpeg", "png", "webp", "tif", "tiff"), "bytes"),
        Need("caption", ("txt",), "caption"),
        Need("id", ("__key__",), "exact-id", optional=True),
    ),
    adapt=adapt_caption,
    reasoning="reply",
    images="needed",
    aliases=("captions",),
)
