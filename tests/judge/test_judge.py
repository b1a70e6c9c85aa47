"""The client: what is tried again and what is not, time, numbers at once, the key, the cache."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from omr_io.errors import ConfigError, OmrError, SourceError
from omr_io.judge import AskOptions, Endpoint, Judge, key_of
from omr_io.judge.answers import UnitVerdict, unit_verdict
from omr_io.judge.judge import Question
from omr_io.judge.rubric_prompts import SCORES_FORM, Prompt
from omr_io.remote.retries import RetryPolicy
from tests.judge.conftest import KEY, QUICK
from tests.judge.judge_server import Asked, Say, scores

FINE = UnitVerdict(2, 1, "So.")


def question(text: str = "Q", images: tuple[str, ...] = ()) -> Question[UnitVerdict]:
    prompt = Prompt("system", f"Claim: {text}")
    hashes = tuple(f"hash of {image}" for image in images)
    return Question(text, lambda: prompt, hashes, lambda: images, unit_verdict, SCORES_FORM)


def fails_first(*failures: Say):
    """A script: these failures in turn for each body, then a fine answer."""

    def script(asked: Asked) -> Say:
        return failures[asked.attempt] if asked.attempt < len(failures) else scores(2, 1)

    return script


PASSING = {
    "500": Say("broken", 500),
    "503 with Retry-After": Say("busy", 503, {"Retry-After": "0"}),
    "429": Say("slow down", 429, {"Retry-After": "1"}),
    "closed mid-body": Say("x" * 500, cut=100),
    "closed before any byte": Say(cut=0),
    "no JSON": Say(raw=b"<html>gateway</html>"),
    "an error in a 200": Say(raw=b'{"error": {"message": "overloaded"}}'),
    "no choices": Say(raw=b'{"choices": []}'),
    "content that is no text": Say(raw=b'{"choices": [{"message": {"content": [1]}}]}'),
    "a list": Say(raw=b"[]"),
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(serve, judge_of, failure):
    server = serve(fails_first(failure, failure))
    with judge_of(server) as judge:
        assert judge.ask(question()).verdict == FINE
    assert len(server.asked) == 3
    assert (judge.usage.requests, judge.usage.retries) == (3, 2)
    assert judge.usage.asked_again == 0


def test_a_stall_and_a_trickle_are_tried_again(serve, judge_of):
    """The trickle alone would take ten hours, the stall for ever; a slow machine tries more."""
    server = serve(fails_first(Say(stall=36_000), Say("y" * 720_000, trickle=0.05)))
    policy = RetryPolicy(tries=100, first_wait=0.01, max_wait=0.05, timeout=0.4)
    with judge_of(server, policy=policy, deadline=600) as judge:
        assert judge.ask(question()).verdict == FINE
    assert len(server.asked) >= 3


def test_tries_end_and_are_a_judge_error(serve, judge_of):
    server = serve(lambda asked: Say("broken", 500))
    with judge_of(server) as judge:
        answer = judge.ask(question())
        assert answer.verdict is None
        assert "4 tries failed" in answer.error
        assert "500: broken" in answer.error
        assert len(server.asked) == 4
        judge.ask(question())  # nothing of it was kept
    assert len(server.asked) == 8


def test_a_cut_body_is_no_answer_even_if_it_reads_like_one(serve, judge_of):
    whole = scores(2, 1).body()
    server = serve(lambda asked: Say(raw=whole + b" " * 100, cut=len(whole)))
    with judge_of(server) as judge:
        assert "closed in the middle of the answer" in judge.ask(question()).error
    assert len(server.asked) == 4


def test_the_deadline_is_over_all_tries(serve, judge_of):
    server = serve(lambda asked: Say("busy", 429, {"Retry-After": "1000"}))
    policy = RetryPolicy(tries=100, first_wait=0.01, max_wait=60, timeout=50)
    with judge_of(server, policy=policy, deadline=50) as judge:
        answer = judge.ask(question())  # at once: a wait of 60 s would be over it
    assert "the deadline of 50 s would pass" in answer.error
    assert "429" in answer.error
    assert len(server.asked) == 1


def test_retry_after_holds_for_all_questions(serve, judge_of):
    """Also where it came with a question's last try: the limit is the account's."""
    times: dict[str, float] = {}

    def script(asked: Asked) -> Say:
        times[asked.claim] = time.monotonic()
        return Say("slow", 429, {"Retry-After": "9"}) if asked.claim == "0" else scores(2, 1)

    server = serve(script)
    policy = RetryPolicy(tries=1, first_wait=0.01, max_wait=0.6, timeout=60)
    with judge_of(server, policy=policy) as judge:
        assert "429" in judge.ask(question("0")).error
        assert judge.ask(question("1")).verdict == FINE
    assert times["1"] - times["0"] >= 0.6


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422, 307])
def test_a_refusal_is_final(serve, judge_of, status):
    server = serve(lambda asked: Say(f"no such thing for {KEY}", status, {"Location": "/other"}))
    with judge_of(server) as judge, pytest.raises(SourceError, match=str(status)) as error:
        judge.ask_all([question(str(number)) for number in range(50)])
    assert error.value.exit_code == 3
    assert KEY not in str(error.value)
    assert len(server.asked) <= 16  # those that were under way
    assert max(Counter(asked.claim for asked in server.asked).values()) == 1


def test_keep_going_makes_a_judge_error_of_one_refusal(serve, judge_of):
    server = serve(lambda asked: Say("too long", 400) if asked.claim == "1" else scores(2, 1))
    with judge_of(server, keep_going=True) as judge:
        answers = judge.ask_all([question(str(number)) for number in range(3)])
    assert [answer.verdict for answer in answers] == [FINE, None, FINE]
    assert "(400): too long" in answers[1].error
    server.script = lambda asked: Say("who are you", 401)
    with judge_of(server, keep_going=True) as judge, pytest.raises(SourceError, match="401"):
        judge.ask(question("4"))


def test_an_endpoint_that_is_down_ends_the_run(serve, judge_of):
    server = serve(lambda asked: Say("broken", 500))
    policy = RetryPolicy(tries=2, first_wait=0, max_wait=0, timeout=100)
    options = {"policy": policy, "give_up_after": 5, "concurrency": 2}
    with judge_of(server, **options) as judge, pytest.raises(SourceError, match="in a row"):
        judge.ask_all([question(str(number)) for number in range(500)])
    assert len(server.asked) <= 2 * (5 + 2 * 2)


def test_rubbish_is_asked_again_once(serve, judge_of):
    said = {"mended": ["no", None], "twice": ["no", "[1]"], "refusal": [None, None]}

    def script(asked: Asked) -> Say:
        text = said[asked.claim][asked.is_again]
        return scores(2, 1) if (asked.claim, asked.is_again) == ("mended", True) else Say(text)

    server = serve(script)
    with judge_of(server) as judge:
        mended, twice, refusal = judge.ask_all([question(name) for name in said])
    assert mended.verdict == FINE
    assert twice.verdict is refusal.verdict is None
    assert "rubbish twice: 'no' is not JSON; then it is no object" in twice.error
    assert "rubbish twice" in refusal.error
    assert len(server.asked) == 6
    assert (judge.usage.asked_again, judge.usage.retries) == (3, 0)
    assert judge.usage.prompt_tokens == 600  # rubbish costs as well
    again = next(one for one in server.asked if one.is_again and one.claim == "twice")
    assert [message["role"] for message in again.body["messages"]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    assert "'no' is not JSON" in again.body["messages"][3]["content"]


def test_at_most_so_many_at_once(serve, judge_of):
    barrier = threading.Barrier(3, timeout=100)

    def script(asked: Asked) -> Say:
        barrier.wait()  # three come together or this fails
        time.sleep(0.02)
        return scores(2, 1)

    server = serve(script)
    with judge_of(server, concurrency=3) as judge:
        seen: list[tuple[int, int]] = []
        answers = judge.ask_all(
            [question(str(number)) for number in range(12)], lambda *now: seen.append(now)
        )
    assert [answer.verdict for answer in answers] == [FINE] * 12
    assert server.most_at_once == 3
    assert seen == [(number, 12) for number in range(1, 13)]


def test_the_request(serve, judge_of):
    server = serve(lambda asked: scores(2, 1))
    settings = {"temperature": None, "max_tokens": 7, "response_format": {"type": "json_object"}}
    with judge_of(server, settings=settings) as judge:
        judge.ask(question("1", ("data:image/png;base64,AAAA",)))
        judge.ask(question("2"))
    with_image, without = server.asked
    assert with_image.path == "/v1/chat/completions"
    assert with_image.headers["authorization"] == f"Bearer {KEY}"
    assert with_image.body.keys() == {"model", "messages", "max_tokens", "response_format"}
    assert with_image.body["max_tokens"] == 7
    assert with_image.images == ["data:image/png;base64,AAAA"]
    assert without.body["messages"][1] == {"role": "user", "content": "Claim: 2"}
    with judge_of(server, key="") as judge:
        judge.ask(question("3"))
    assert "authorization" not in server.asked[-1].headers


def test_the_cache(serve, judge_of, tmp_path):
    server = serve(lambda asked: scores(2, 1))
    image = ("data:,",)
    with judge_of(server) as judge:
        assert not judge.ask(question("1", image)).from_cache
    with judge_of(server, key="another") as judge:  # whose key it is makes no difference
        answer = judge.ask(question("1", image))
        assert answer.from_cache
        assert answer.verdict == FINE
        assert (judge.usage.questions, judge.usage.cached, judge.usage.requests) == (1, 1, 0)
    for changes, other in (
        ({}, question("2", image)),
        ({}, question("1", ("data:,x",))),
        ({}, question("1")),
        ({"settings": {"temperature": 1}}, question("1", image)),
        ({"name": "elsewhere"}, question("1", image)),
    ):
        with judge_of(server, **changes) as judge:
            assert not judge.ask(other).from_cache
    with judge_of(server) as judge:
        judge.endpoint = Endpoint(server.url, "judge-2")
        assert not judge.ask(question("1", image)).from_cache
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:  # damage is found, and asked anew
        path.write_bytes(path.read_bytes()[:-30])
    with judge_of(server) as judge:
        assert not judge.ask(question("1", image)).from_cache
        assert judge.ask(question("1", image)).from_cache


def test_the_cache_is_bounded_and_may_be_none(serve, judge_of, tmp_path):
    server = serve(lambda asked: scores(2, 1, reason="r" * 500))
    questions = [question(str(number)) for number in range(60)]
    # One answer a folder; a name, as folders go by the endpoint, whose port is another each time.
    with judge_of(server, name="here", cache_bytes=256 * 700) as judge:
        judge.ask_all(questions)
    folders = list((tmp_path / "cache").iterdir())
    assert len(folders) < 60  # so that some held two
    assert max(len(list(folder.iterdir())) for folder in folders) == 1
    asked = len(server.asked)
    with judge_of(server, cache_bytes=0) as judge:
        judge.ask_all(questions[:5])
    assert len(server.asked) == asked + 5


def test_tokens_that_are_not_told(serve, judge_of):
    usages = [None, {"prompt_tokens": "7"}, {"prompt_tokens": 7, "completion_tokens": -1}]
    server = serve(lambda asked: Say(scores(2, 1).text, usage=usages[int(asked.claim)]))
    with judge_of(server) as judge:
        judge.ask_all([question(str(number)) for number in range(3)])
    assert (judge.usage.unreported, judge.usage.prompt_tokens) == (3, 0)


def test_the_key_is_repeated_nowhere(serve, judge_of, tmp_path):
    script = {
        "0": Say(f'bad key "{KEY}" (Bearer {KEY})', 500),
        "1": Say(raw=f'{{"error": "{KEY}"}}'.replace("/", "\\/").encode()),
        "2": scores(2, 1, reason=f"I was called with {KEY}"),
        "3": Say(f"{KEY} is not JSON"),
    }
    server = serve(lambda asked: script[asked.claim])
    policy = RetryPolicy(tries=1, timeout=100)
    with judge_of(server, policy=policy) as judge:
        answers = judge.ask_all([question(name) for name in script])
        shown = repr((answers, judge.endpoint, judge.usage))
    assert KEY not in shown
    assert shown.count("***") >= 4
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_nobody_there():
    with socket.socket() as taken:  # and not listened to
        taken.bind(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "m")
        judge = Judge(endpoint, AskOptions(policy=QUICK, deadline=300), cache_bytes=0)
        assert "ConnectionRefusedError" in judge.ask(question()).error
        assert judge.usage.requests == 4


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/v1", "no URL of http"),
        ("host:8000", "no URL of http"),
        ("http://me:hush@host/v1", "user or password"),
        ("http://host:99999/v1", "malformed"),
        ("http://host/a b", "malformed"),
        ("http://", "no URL of http"),
    ],
)
def test_endpoints_that_cannot_be(url, words):
    with pytest.raises(ConfigError, match=words) as error:
        Endpoint(url, "m")
    assert "hush" not in str(error.value)


def test_where_requests_go():
    for url in ("http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"):
        assert Endpoint(url, "m").post_url == "http://h/v1/chat/completions"
    assert Endpoint("http://h/v1?a=b", "m").post_url == "http://h/v1/chat/completions?a=b"
    assert Endpoint("http://h/v1?token=b", "m").label == "http://h/v1?***"


def test_keys_and_settings(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
        key_of("JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    assert key_of("JUDGE_KEY") == KEY
    assert key_of(None) == ""
    for wrong in ({"model": "x"}, {"stream": True}):
        with pytest.raises(ConfigError, match="not to be changed"):
            Endpoint("http://h/v1", "m", settings=wrong)
    with pytest.raises(ConfigError, match="no name"):
        Endpoint("http://h/v1", "")
    with pytest.raises(ConfigError) as error:
        Endpoint("http://h/v1", "m", key=f"{KEY}\nX-Other: 1")
    assert KEY not in str(error.value)
    assert isinstance(error.value, OmrError)
    assert not Path("cache").exists()
