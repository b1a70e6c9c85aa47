"""`lint`: every rule over a shard set, and against the splits that it must not overlap.

The index is asked first. Texts are read once, shard by shard, in their order; what is kept of a
sample is a few digests, about 50 bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omr_io.errors import ConfigError
from omr_io.images import MAX_ASPECT
from omr_io.index import ShardSet
from omr_io.lint import images
from omr_io.lint.equal import DIGEST, also_in, as_digests, group_equal
from omr_io.lint.findings import MAX_EXAMPLES, RULES, Example, Finding, Tally, finding
from omr_io.lint.letters import LetterBias, biases
from omr_io.lint.texts import answer_text, question_digest, text_findings
from omr_io.remote.urls import place_of
from omr_io.remote_storage import RemoteOptions
from omr_io.sample_set import in_turn
from omr_io.types import Int64Array, UInt8Array

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LintOptions:
    """What to look for.

    Args:
        pixels: decode every image, and compare pixels too: finds equal images that are stored in
            other bytes (metadata stripped, lossless formats). Slow: it decodes all sets in full.
        ignore: rules to leave out.
        strict: warnings fail the set as errors do.
        max_question_bytes, max_reasoning_bytes: longer texts are named; in bytes of UTF-8.
        max_aspect: of an image's sides.
        min_side: of an image, in pixels.
        threads: that decode images; None: one a core.
    """

    pixels: bool = False
    ignore: tuple[str, ...] = ()
    strict: bool = False
    max_question_bytes: int = 8 << 10
    max_reasoning_bytes: int = 64 << 10
    max_aspect: float = MAX_ASPECT
    min_side: int = 28
    threads: int | None = None

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.ignore if rule not in RULES]
        if unknown:
            raise ConfigError(
                f"there is no rule {unknown[0]!r}", mend=f"The rules are {', '.join(RULES)}"
            )


@dataclass(frozen=True, slots=True)
class LintReport:
    """What `lint` found.

    Attributes:
        folder, against: the sets: folders, or URLs without their secrets.
        samples, images: of the set.
        findings: errors first, then by the number found.
        letters: the answers' letters by number of options, whether biased or not.
        traces: samples with a reasoning trace.
        traces_naming_letters: those whose thinking names an option by its letter.
        pixels: whether pixels were compared.
        strict: whether warnings fail the set.
        seconds: wall clock.
    """

    folder: Path | str
    against: tuple[Path | str, ...]
    samples: int
    images: int
    findings: tuple[Finding, ...]
    letters: tuple[LetterBias, ...]
    traces: int
    traces_naming_letters: int
    pixels: bool
    strict: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no finding is an error and, if strict, there is none at all."""
        return not any(self.strict or item.severity == "error" for item in self.findings)


def lint(
    folder: str | Path,
    against: Iterable[str | Path] = (),
    options: LintOptions | None = None,
    progress: Progress | None = None,
    remote: RemoteOptions | None = None,
) -> LintReport:
    """Look for what is wrong with the content of a shard set (`RULES` has what is looked for).

    Args:
        folder: the shard set: a folder or a URL.
        against: shard sets of other splits, with which it must share no image, question or id.
        options: see `LintOptions`.
        progress: called with (stage, samples done, samples).
        remote: how what URLs name is read.

    Raises:
        SourceError: a folder is no shard set.
        ConfigError: the set is given as its own other split.
        IntegrityError: bytes on disk are not what was written; `verify` names all of it.
    """
    start = time.monotonic()
    options = options or LintOptions()
    report = progress or (lambda stage, done, total: None)
    given = tuple(against)
    splits = tuple(map(place_of, given))
    with ExitStack() as stack:
        shards = stack.enter_context(ShardSet.open(folder, remote))
        others = [stack.enter_context(ShardSet.open(split, remote)) for split in given]
        for other in others:
            if other.fingerprint == shards.fingerprint:
                raise ConfigError(
                    "the set is compared with itself", mend="Give the other split to --against"
                )
        texts = _Texts(shards, options, report)
        findings = texts.findings()
        findings += images.size_findings(shards, options.max_aspect, options.min_side)
        findings += images.duplicate_images(shards)
        for split, other in zip(splits, others, strict=True):
            leaks = [
                *images.leaked_images(shards, other),
                *_leaked_ids(shards, other),
                *_leaked_questions(shards, texts.questions, other, report),
            ]
            findings += [_into(split, leak) for leak in leaks]
        if options.pixels:
            findings += _pixels(shards, list(zip(splits, others, strict=True)), options, report)
        kept = [item for item in findings if item.rule not in options.ignore]
        return LintReport(
            folder=place_of(folder),
            against=splits,
            samples=len(shards),
            images=len(shards.image_widths),
            findings=tuple(sorted(kept, key=lambda item: (item.severity, -item.count, item.rule))),
            letters=texts.letters,
            traces=texts.traces,
            traces_naming_letters=texts.naming,
            pixels=options.pixels,
            strict=options.strict,
            seconds=time.monotonic() - start,
        )


class _Texts:
    """One pass over the texts of a set.

    Attributes:
        questions: (n, 16) uint8, a digest of each sample's question and images.
        letters: the answers' letters.
        traces, naming: samples with a trace; those whose thinking names a letter.
    """

    def __init__(self, shards: ShardSet, options: LintOptions, progress: Progress) -> None:
        self._shards = shards
        self._tally = Tally()
        answers: dict[int, Counter[str]] = {}
        questions, rights = bytearray(), bytearray()
        for i in in_turn(shards, range(len(shards)), images=False):
            record = shards.read_record(i, images=False)
            found = [*text_findings(record), *self._long_texts(i, options)]
            for rule, detail in found:
                self._tally.add(rule, shards.shard(i), shards.key(i), detail)
            answers.setdefault(len(record.options), Counter())[record.answer] += 1
            questions += question_digest(record, _hashes(shards, i))
            right = " ".join(answer_text(record).split()).casefold().encode()
            rights += hashlib.blake2b(right, digest_size=DIGEST).digest()
            progress("texts", i + 1, len(shards))
        self.questions = as_digests([questions])
        self._rights = as_digests([rights])
        self.letters = biases(answers)
        empty = self._tally.count("empty-traces")
        self.traces = len(shards) - empty
        self.naming = self._tally.count("letters-in-traces")

    def _long_texts(self, i: int, options: LintOptions) -> Iterator[tuple[str, str]]:
        question, trace = self._shards.question_bytes[i], self._shards.reasoning_bytes[i]
        if question > options.max_question_bytes or trace > options.max_reasoning_bytes:
            yield "long-texts", f"question {question} bytes, trace {trace} bytes"

    def findings(self) -> list[Finding]:
        """All that the texts show."""
        found = self._tally.findings(
            {"": len(self._shards)}
            | dict.fromkeys(
                (
                    "letters-in-traces", "early-answers", "missing-tags", "unclosed-tags",
                    "wrong-answers",
                ),
                self.traces,
            )
        )  # fmt: skip
        found += _bias_findings(self.letters)
        return found + self._repeated()

    def _repeated(self) -> list[Finding]:
        """duplicate-questions and contradictions."""
        shards, groups = self._shards, group_equal(self.questions)
        firsts = groups.firsts()
        again = firsts != np.arange(len(firsts))
        other_answer = (self._rights != self._rights[firsts]).any(axis=1)
        found = []
        for rule, wrong in (
            ("duplicate-questions", again & ~other_answer),
            ("contradictions", again & other_answer),
        ):
            places = np.flatnonzero(wrong)
            if len(places):
                examples = _pairs(shards, places, shards, firsts[places])
                found.append(finding(rule, len(places), len(shards), examples))
        return found


def _hashes(shards: ShardSet, i: int) -> bytes:
    begin, end = shards.image_offsets[i : i + 2].tolist()
    return shards.image_hashes[begin:end].tobytes()


def _bias_findings(letters: Sequence[LetterBias]) -> list[Finding]:
    biased = [item for item in letters if item.biased]
    if not biased:
        return []
    detail = "; ".join(
        f"{item.num_options} options: {item.letter} in {item.share:.1%} of {item.samples}, "
        f"{1 / item.num_options:.1%} expected, chi-square {item.chi_square:.1f}, "
        f"p {item.p_value:.1e}, effect {item.effect:.2f}"
        for item in biased
    )
    return [finding("answer-bias", len(biased), len(letters), [], detail)]


def _leaked_ids(shards: ShardSet, other: ShardSet) -> list[Finding]:
    twins = also_in(_key_digests(shards), _key_digests(other))
    return _leaked("leaked-ids", shards, other, twins, len(shards))


def _key_digests(shards: ShardSet) -> UInt8Array:
    keys = (shards.key(i).encode() for i in range(len(shards)))
    return as_digests(hashlib.blake2b(key, digest_size=DIGEST).digest() for key in keys)


def _leaked_questions(
    shards: ShardSet, questions: UInt8Array, other: ShardSet, progress: Progress
) -> list[Finding]:
    """Of samples without images: with them, a common question is no leak, and the image is."""
    here = np.flatnonzero(np.diff(shards.image_offsets) == 0)
    there = np.flatnonzero(np.diff(other.image_offsets) == 0)
    if not len(here) or not len(there):
        return []
    digests = []
    for done, i in enumerate(in_turn(other, there.tolist(), images=False), 1):
        digests.append(question_digest(other.read_record(i, images=False), b""))
        progress("texts of the other split", done, len(there))
    found = also_in(questions[here], as_digests(digests))
    twins = np.full(len(shards), -1, np.int64)
    twins[here[found >= 0]] = there[found[found >= 0]]
    return _leaked("leaked-questions", shards, other, twins, len(here))


def _leaked(
    rule: str, shards: ShardSet, other: ShardSet, twins: Int64Array, of: int
) -> list[Finding]:
    places = np.flatnonzero(twins >= 0)
    if not len(places):
        return []
    return [finding(rule, len(places), of, _pairs(shards, places, other, twins[places]))]


def _pairs(
    shards: ShardSet, places: Int64Array, other: ShardSet, twins: Int64Array
) -> list[Example]:
    pairs = zip(places[:MAX_EXAMPLES].tolist(), twins[:MAX_EXAMPLES].tolist(), strict=True)
    return [
        Example(shards.shard(i), shards.key(i), f"as in {other.shard(j)}, key {other.key(j)}")
        for i, j in pairs
    ]


def _pixels(
    shards: ShardSet,
    others: Sequence[tuple[Path | str, ShardSet]],
    options: LintOptions,
    progress: Progress,
) -> list[Finding]:
    tally = Tally()

    def digests(of: ShardSet, stage: str, into: Tally) -> UInt8Array:
        return images.pixel_digests(
            of, into, options.threads, lambda done: progress(stage, done, len(of))
        )

    pixels = digests(shards, "pixels", tally)
    found = tally.findings({"": len(pixels)}) + list(images.duplicate_pixels(shards, pixels))
    for split, other in others:
        undecoded = Tally()
        there = digests(other, "pixels of the other split", undecoded)
        # What does not decode there was not compared: a leak may hide behind it.
        found += [
            dataclasses.replace(item, detail=f"in {split}")
            for item in undecoded.findings({"": len(there)})
        ]
        leaks = images.leaked_pixels(shards, pixels, other, there)
        found += [_into(split, leak) for leak in leaks]
    return found


def _into(split: Path | str, leak: Finding) -> Finding:
    """A leak with the set that it goes into: there may be several."""
    detail = f"into {split}: {leak.detail}" if leak.detail else f"into {split}"
    return dataclasses.replace(leak, detail=detail)
