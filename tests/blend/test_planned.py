"""An epoch of a blend as it is planned: every draw in a pack, every window a mixture."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.blend import Blend, Source, open_blend
from omr_io.packing import EpochPlan, Lengths


def lengths_of(count: int) -> Lengths:
    text = np.arange(count, dtype=np.int32) % 17 + 5
    return Lengths(text, text * 2, text - 2, text * 8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(0, 2**40), st.integers(10, 90))
def test_an_epoch_is_planned_from_a_draw(folders, epoch, seed, window):
    sources = [
        Source(folders["mixed"], repeat=1.5),
        Source(folders["single"], repeat=0.5),
        Source(folders["biased"], balance_answers="upsample"),
    ]
    with open_blend(Blend(sources)) as blend:
        drawing = blend.drawing()
        numbers = drawing.draw(epoch, seed)
        plan = EpochPlan(
            lengths_of(len(blend.samples)), epoch=epoch, seed=seed, seq_len=128, packs_per_step=4,
            window=window, samples=numbers,
        )  # fmt: skip
        windows = [plan.window(place).samples for place in range(plan.num_windows)]
        assert Counter(np.concatenate(windows).tolist()) == Counter(numbers.tolist())
        for held in windows:
            for stratum in drawing.strata:
                share = stratum.size(epoch) * len(held) / len(numbers)
                mine = int(np.isin(held, stratum.numbers).sum())
                assert abs(mine - share) <= len(drawing.strata)
