"""What is done by the first rank, and how long the others wait."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch.distributed as dist

from omr_io.errors import ConfigError, TrainingError
from omr_io.train.ranks import Ranks, on_first
from tests.train.gloo_ranks import on_ranks


def test_the_first_rank_does_it_once_and_the_others_wait(tmp_path: Path) -> None:
    def check(ranks: Ranks) -> None:
        on_first(ranks, lambda: (tmp_path / "made").write_text("x"))
        assert (tmp_path / "made").exists()
        done: list[Ranks] = []
        on_first(ranks, lambda: done.append(ranks))
        assert bool(done) == ranks.is_first

    on_ranks(3, tmp_path / "ranks", check)


def test_what_fails_on_the_first_rank_ends_all(tmp_path: Path) -> None:
    """Also what is no error of ours: the others would else wait until their time is up."""

    def check(ranks: Ranks) -> None:
        def refuse() -> None:
            raise ConfigError("refused", mend="Mend it")

        with pytest.raises(ConfigError, match=r"refused\. Mend it"):
            on_first(ranks, refuse)

        def fail() -> None:
            raise OSError("no space")

        with pytest.raises(
            OSError if ranks.is_first else TrainingError,
            match="no space" if ranks.is_first else "first rank failed: OSError: no space",
        ):
            on_first(ranks, fail)
        assert ranks.any(False) is False  # nobody is left behind

    on_ranks(2, tmp_path / "ranks", check)


def test_a_group_on_the_host_waits_as_long_as_the_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new group of torch.distributed's takes its own 30 minutes, whatever the default's."""
    asked: list[object] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "new_group", lambda **options: asked.append(options["timeout"]))
    Ranks(0, 2, timeout_seconds=7200.0).on_host()
    Ranks(0, 2).on_host()
    assert asked == [datetime.timedelta(hours=2), None]
