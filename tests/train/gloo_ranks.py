"""Several ranks for tests: forked from this warm process, so that each costs milliseconds."""

from __future__ import annotations

import datetime
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from omr_io.train.ranks import Ranks


def on_ranks(world_size: int, folder: Path, function: Callable[[Ranks], None]) -> None:
    """Run `function` on each of `world_size` gloo ranks; one that raises fails the test.

    Args:
        folder: an empty place for what ranks find each other by; made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    children = [_child(rank, world_size, folder, function) for rank in range(world_size)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("error-*")))
    assert codes == [0] * world_size, errors


def _child(rank: int, world_size: int, folder: Path, function: Callable[[Ranks], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(folder / "store"), world_size),
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=600),
        )
        function(Ranks(rank, world_size))
        code = 0
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(code)  # not pytest's own end
