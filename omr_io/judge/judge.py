"""Questions to a judge: asked concurrently, tried again, kept; whatever happens is counted."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from omr_io.cache import Cache, cache_root
from omr_io.errors import DataError, SourceError
from omr_io.judge.answers import RubbishError
from omr_io.judge.endpoint import AskOptions, Endpoint, refusal
from omr_io.judge.posting import Poster, Reply
from omr_io.judge.rubric_prompts import Prompt, again_text
from omr_io.remote.retries import TransientError, retry_after
from omr_io.text import one_line, printable

V = TypeVar("V")

DEFAULT_CACHE_BYTES = 1 << 30
_FOLDERS = 256
_TRANSIENT = (408, 409, 425, 429)
_OF_ONE_REQUEST = (400, 413, 422)
_MAX_REPEATED = 2000  # characters of a rubbish answer that the judge is shown again


@dataclass(frozen=True, slots=True)
class Question(Generic[V]):
    """One thing to ask.

    Attributes:
        name: for messages: whose trace, which unit.
        prompt: gives the texts; called when its turn comes, so that few are held at once.
        image_hashes: of the images that go with it, in order; they stand for them in the cache.
        images: gives their data URLs; called only where the question is really asked.
        read: an answer's text → what it says; raises RubbishError.
        form: the form of the answer, for asking again.
        estimate: tokens of the images, roughly.
    """

    name: str
    prompt: Callable[[], Prompt]
    image_hashes: tuple[str, ...]
    images: Callable[[], Sequence[str]]
    read: Callable[[str], V]
    form: str
    estimate: int = 0


@dataclass(frozen=True, slots=True)
class Answer(Generic[V]):
    """What came of a question: a verdict, or why there is none."""

    verdict: V | None
    error: str = ""
    from_cache: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """What was sent, and what the endpoint said it took.

    Attributes:
        questions: asked of the judge or of the cache.
        cached: of these, answered by the cache.
        requests: sent, those that failed included.
        retries: of these, sent because one before brought no answer.
        asked_again: of these, sent because an answer was rubbish.
        prompt_tokens, completion_tokens: by the endpoint's own count, rubbish included.
        unreported: answers whose tokens the endpoint did not say.
    """

    questions: int = 0
    cached: int = 0
    requests: int = 0
    retries: int = 0
    asked_again: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What asking would take: requests if none fails, tokens by rule of thumb.

    Attributes:
        questions, cached: all, and those that the cache answers.
        requests: that would be sent.
        prompt_tokens: a token for 4 bytes of text, and for each 28 x 28 pixels of images.
        completion_tokens: 80 a request.
    """

    questions: int
    cached: int
    requests: int
    prompt_tokens: int
    completion_tokens: int


class _NoAnswerError(Exception):
    """A question that failed for want of an answer; the text is what a person reads."""


class _RefusedError(Exception):
    """A question whose request was refused, and the run goes on."""


class Judge:
    """Asks an endpoint. Thread-safe; `close` it, or use it as a context manager.

    Args:
        endpoint: who is asked.
        options: how.
        cache_folder: where answers are kept; None: `judge` in the folder of the other caches (see
            `omr_io.cache`).
        cache_bytes: that they may take, 0 for none. Answers are spread over 256 folders by their
            hash, each of which keeps a 256th of it, so that adding one looks at few others.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: AskOptions | None = None,
        *,
        cache_folder: Path | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.endpoint = endpoint
        self.options = options or AskOptions()
        root = cache_root()
        folder = cache_folder or (None if root is None else root / "judge")
        self._folder = folder if cache_bytes > 0 else None
        self._folder_bytes = max(1, cache_bytes // _FOLDERS)
        bearer = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self._poster = Poster(endpoint.post_url, bearer)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(Usage.__slots__, 0)
        self._in_a_row = 0
        self._quiet_until = 0.0
        self._ended = threading.Event()

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        with self._lock:
            return Usage(**self._counts)

    def estimate(self, questions: Sequence[Question[V]]) -> Estimate:
        """What asking these would take; sends nothing. An answer counts as kept if it is sound."""
        cached = prompt_tokens = 0
        for question in questions:
            if self._kept(self._cache_key(question), question) is not None:
                cached += 1
                continue
            prompt = question.prompt()
            text = len(prompt.system.encode()) + len(prompt.text.encode())
            prompt_tokens += text // 4 + question.estimate
        sent = len(questions) - cached
        return Estimate(len(questions), cached, sent, prompt_tokens, 80 * sent)

    def ask_all(
        self,
        questions: Sequence[Question[V]],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Answer[V]]:
        """Ask all, at most `options.concurrency` at once.

        Returns:
            An answer a question, in order. A question that failed has an error and no verdict.

        Raises:
            SourceError: the endpoint refuses (401, 403, 404, ...), or counts as down.
            IntegrityError: an image in the set is not what was written.
        """
        answers: list[Answer[V] | None] = [None] * len(questions)
        todo = iter(range(len(questions)))
        running: dict[Future[Answer[V]], int] = {}
        done = 0
        pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="judge")
        try:
            while True:
                # A few beyond those at work: a question is made into a request when its turn comes.
                while len(running) < 2 * self.options.concurrency:
                    number = next(todo, None)
                    if number is None:
                        break
                    running[pool.submit(self.ask, questions[number])] = number
                if not running:
                    break
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    answers[running.pop(future)] = future.result()
                    done += 1
                    progress(done, len(questions))
        except BaseException:
            self.close()  # or the pool would wait for every try of every thread
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return [answer for answer in answers if answer is not None]

    def ask(self, question: Question[V]) -> Answer[V]:
        """Ask one question, in this thread; errors as in `ask_all`."""
        self._count(questions=1)
        key = self._cache_key(question)
        kept = self._kept(key, question)
        if kept is not None:
            self._count(cached=1)
            return Answer(kept, from_cache=True)
        try:
            verdict, text = self._ask(question)
        except _NoAnswerError as error:
            self._one_more_failure(str(error))
            return Answer(None, str(error))
        except (RubbishError, _RefusedError) as error:
            return Answer(None, str(error))
        except DataError as error:  # an image that cannot be re-encoded
            return Answer(None, f"its image cannot be sent: {one_line(error)}")
        self._keep(key, text)
        return Answer(verdict)

    def close(self) -> None:
        """End what is under way: whoever waits finds its connection closed."""
        self._ended.set()
        self._poster.end()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Question[V]) -> tuple[V, str]:
        """The verdict and the text that it was read from."""
        until = time.monotonic() + self.options.deadline
        content: list[dict[str, object]] = [
            {"type": "image_url", "image_url": {"url": url}} for url in question.images()
        ]
        prompt = question.prompt()
        text = prompt.text
        messages: list[dict[str, object]] = [
            {"role": "system", "content": prompt.system},
            # Text alone as text: endpoints without images may not know a list.
            {
                "role": "user",
                "content": [*content, {"type": "text", "text": text}] if content else text,
            },
        ]
        answer = self._complete(messages, until)
        try:
            return question.read(answer), answer
        except RubbishError as error:
            fault = str(error)
        self._count(asked_again=1)
        messages += [
            {"role": "assistant", "content": answer[:_MAX_REPEATED] or "(nothing)"},
            {"role": "user", "content": again_text(fault, question.form)},
        ]
        answer = self._complete(messages, until)
        try:
            return question.read(answer), answer
        except RubbishError as error:
            raise RubbishError(f"rubbish twice: {fault}; then {error}") from None

    def _complete(self, messages: Sequence[dict[str, object]], until: float) -> str:
        """The text that the model goes on with."""
        fields = {"model": self.endpoint.model, "messages": messages}
        body = json.dumps({**fields, **self.endpoint.request_settings()}).encode()
        policy, failures = self.options.policy, 0
        while True:
            self._wait_while_quiet(until)
            left = until - time.monotonic()
            if left <= 0:
                raise _NoAnswerError(f"the deadline of {self.options.deadline:g} s is over")
            self._count(retries=min(failures, 1))
            try:
                return self._try(body, min(policy.timeout, left))
            except TransientError as error:
                problem = error
            failures += 1
            pause = policy.pause(failures, problem.retry_after)
            if problem.retry_after is not None:  # for all threads: the limit is the account's
                with self._lock:
                    self._quiet_until = max(self._quiet_until, time.monotonic() + pause)
            if failures >= policy.tries:
                raise _NoAnswerError(f"{failures} tries failed, the last time: {problem.what}")
            if time.monotonic() + pause >= until:
                what = f"the deadline of {self.options.deadline:g} s would pass"
                raise _NoAnswerError(f"{what} before another try, the last time: {problem.what}")
            self._ended.wait(pause)

    def _try(self, body: bytes, seconds: float) -> str:
        if self._ended.is_set():
            raise SourceError("the judge was closed while it was asked")
        self._count(requests=1)
        reply = self._poster.post(body, seconds)
        if reply.status in _TRANSIENT or reply.status >= 500:
            after = retry_after(reply.headers.get("Retry-After", ""))
            raise TransientError(f"the endpoint answers {reply.status}{self._said(reply)}", after)
        if reply.status != 200:
            error = refusal(reply.status, self._said(reply).removeprefix(": "), self.endpoint)
            if self.options.keep_going and reply.status in _OF_ONE_REQUEST:
                raise _RefusedError(error.what)
            raise error
        text = self._text_of(reply)
        with self._lock:
            self._in_a_row = 0
        return text

    def _text_of(self, reply: Reply) -> str:
        """The message's text; "" where the model refused to give one, which is rubbish."""
        try:
            whole = json.loads(reply.body)
            message = whole["choices"][0]["message"]
            text = message.get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise TransientError(f"the answer is no chat completion{self._said(reply)}") from None
        if not isinstance(text, str | None):
            raise TransientError("the answer is no chat completion: its content is no text")
        self._count_tokens(whole.get("usage"))
        return self.endpoint.blank(text or "")

    def _count_tokens(self, usage: Any) -> None:
        found = usage if isinstance(usage, dict) else {}
        names = ("prompt_tokens", "completion_tokens")
        told = {name: value for name in names if type(value := found.get(name)) is int}
        if len(told) == len(names) and min(told.values()) >= 0:
            self._count(**told)
        else:
            self._count(unreported=1)

    def _said(self, reply: Reply) -> str:
        """What the server says went wrong, short, printable and without the key."""
        text = reply.body.decode("utf-8", "replace")
        try:
            error = json.loads(text)
            error = error.get("error", error.get("message", error))
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError, RecursionError):
            pass
        line = printable(" ".join(self.endpoint.blank(text).split()))[:200]
        return f": {line}" if line else ""

    def _wait_while_quiet(self, until: float) -> None:
        """Wait as long as the endpoint has asked any thread to."""
        while not self._ended.is_set():
            with self._lock:
                quiet = min(self._quiet_until, until) - time.monotonic()
            if quiet <= 0:
                return
            self._ended.wait(quiet)

    def _one_more_failure(self, problem: str) -> None:
        with self._lock:
            self._in_a_row += 1
            in_a_row = self._in_a_row
        if self._ended.is_set():
            raise SourceError("the judge was closed while it was asked")
        if in_a_row >= self.options.give_up_after:
            raise SourceError(
                f"{in_a_row} questions in a row got no answer: {problem}",
                mend="See to the endpoint, then run again: what was answered is kept",
            )

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self._counts[name] += number

    def _cache_key(self, question: Question[V]) -> str:
        """SHA-256 of all that decides an answer; the key to the endpoint is no part of it."""
        prompt = question.prompt()
        decisive = {
            "endpoint": self.endpoint.label,
            "model": self.endpoint.model,
            "settings": self.endpoint.request_settings(),
            "system": prompt.system,
            "text": prompt.text,
            "images": question.image_hashes,
            "format": 1,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _cache(self, key: str) -> Cache:
        folder = None if self._folder is None else self._folder / key[:2]
        return Cache(folder, max_files=1 << 30, max_bytes=self._folder_bytes)

    def _kept(self, key: str, question: Question[V]) -> V | None:
        """The kept answer, read again; None where there is none that can be read."""
        body = self._cache(key).load(key)
        if body is None:
            return None
        try:
            return question.read(json.loads(body)["answer"])
        except (ValueError, LookupError, TypeError):
            self._cache(key).discard(key)
            return None

    def _keep(self, key: str, text: str) -> None:
        self._cache(key).store(key, json.dumps({"answer": text}).encode())
