"""Every implementation of the assembly: against transformers' get_rope_index, the contract, and
the definition. "triton" runs under the interpreter where there is no GPU.
"""

import dataclasses
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.batches.spans import pack_spans, span_table
from omr_io.errors import ConfigError, DataError, SampleTooLongError
from omr_io.ops import PACK, pack_implementation
from omr_io.reference.pack import pack as reference
from omr_io.reference.spans import span_table as reference_table
from omr_io.types import IGNORE_INDEX, MAX_PACKED_TOKENS, EncodedSample, PackedTensors

IMAGE, START, END, PAD = 7, 8, 9, 6
WIDTH = 12  # D


def make_sample(key, grids, texts, merge_size=2, seed=0) -> EncodedSample:
    """texts[0], image 0, texts[1], image 1, ..., texts[-1]; the last text is trained."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    for number, (frames, height, width) in enumerate(grids):
        ids += rng.integers(10, 90, texts[number]).tolist()
        ids += [START, *[IMAGE] * (frames * height * width // merge_size**2), END]
    ids += rng.integers(10, 90, texts[-1]).tolist()
    trained = np.zeros(len(ids), bool)
    trained[len(ids) - texts[-1] :] = True
    patches = sum(frames * height * width for frames, height, width in grids)
    return EncodedSample(
        key=key,
        input_ids=np.asarray(ids, np.int32),
        trained=trained,
        pixel_values=rng.standard_normal((patches, WIDTH)).astype(np.float32) if grids else None,
        image_grid_thw=np.asarray(grids, np.int64).reshape(-1, 3),
    )


@st.composite
def samples(draw, merge_size=2):
    """Images of 1 to 16 tokens, one after the other or not; any tokens trained."""
    sides = st.integers(1, 4).map(lambda side: side * merge_size)
    frames = st.sampled_from([1, 1, 1, 2])
    grids = draw(st.lists(st.tuples(frames, sides, sides), max_size=3))
    texts = [draw(st.integers(0, 4)) for _ in grids] + [draw(st.integers(0, 6))]
    key = f"key-{draw(st.integers(0, 10**6))}"
    sample = make_sample(key, grids, texts, merge_size, draw(st.integers(0, 99)))
    wrapped = draw(st.booleans())  # else images without a token before, after and between them
    ids = sample.input_ids if wrapped else sample.input_ids[~np.isin(sample.input_ids, [8, 9])]
    mask = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return dataclasses.replace(
        sample,
        input_ids=ids,
        trained=np.asarray(mask, np.bool_),
        loss_weight=draw(st.sampled_from([1.0, 0.0, 0.1, -2.5, 1e-30])),
    )


DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
IMPLEMENTATIONS = [
    name
    if name != "triton"
    else pytest.param(
        name,
        marks=pytest.mark.skipif(
            DEVICE == "cuda" and not torch.cuda.is_available(),
            reason="neither a CUDA device nor TRITON_INTERPRET=1",
        ),
    )
    for name in sorted(PACK)
]


def as_numpy(made: PackedTensors) -> SimpleNamespace:
    """The same on the host, as NumPy arrays."""
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return SimpleNamespace(
        **{
            name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
    )


@pytest.fixture(params=IMPLEMENTATIONS)
def assemble(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    device = DEVICE if request.param == "triton" else "cpu"
    implementation = pack_implementation(request.param, device)

    def run(packs, seq_len=128, merge_size=2, **options):
        options = {"pad_id": PAD, "image_token_id": IMAGE} | options
        return as_numpy(implementation(packs, seq_len=seq_len, merge_size=merge_size, **options))

    run.examples = 30 if request.param == "triton" else 80  # a launch takes 20 ms and more there
    return run


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_mrope_equals_get_rope_index(tiny_models, family, assemble):
    model = tiny_models[family].model

    @settings(max_examples=assemble.examples, deadline=None)
    @given(samples())
    def check(sample):
        # transformers takes neighbouring images for one, and several frames for a video.
        if (sample.image_grid_thw[:, 0] > 1).any() or not (sample.input_ids == START).any():
            sample = dataclasses.replace(
                sample,
                input_ids=sample.input_ids[sample.input_ids != IMAGE],
                trained=sample.trained[sample.input_ids != IMAGE],
                image_grid_thw=np.empty((0, 3), np.int64),
            )
        if not len(sample.input_ids):
            return
        made = assemble([[sample]], seq_len=max(1, len(sample.input_ids)))
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        grids = torch.from_numpy(sample.image_grid_thw) if len(sample.image_grid_thw) else None
        expected, _ = model.get_rope_index(
            ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=grids
        )
        np.testing.assert_array_equal(made.position_ids[1:], expected.numpy())

    check()


def check_rows(made, packs, seq_len):
    """Each row is its samples and then padding, said without the reference."""
    segments = []
    for pack in packs:
        segments += [(sample.input_ids, sample) for sample in pack]
        tail = seq_len - sum(len(s.input_ids) for s in pack)
        if tail:
            segments.append((np.full(tail, PAD), None))
    bounds = made.cu_seqlens
    assert bounds.dtype == np.int32
    assert len(bounds) == len(segments) + 1
    assert (bounds[0], bounds[-1]) == (0, len(packs) * seq_len)
    assert made.max_seqlen == max(len(ids) for ids, _ in segments)
    assert made.num_tokens == sum(len(ids) for ids, sample in segments if sample)
    positions_4 = made.position_ids.reshape(4, -1)
    flat = {
        "ids": made.input_ids.ravel(),
        "labels": made.labels.ravel(),
        "types": made.mm_token_type_ids.ravel(),
        "weights": made.loss_weights.ravel(),
        "segments": made.segment_ids.ravel(),
    }
    places = enumerate(zip(segments, bounds[:-1], bounds[1:], strict=True))
    for number, ((ids, sample), start, stop) in places:
        part = {name: values[start:stop] for name, values in flat.items()}
        np.testing.assert_array_equal(part["ids"], ids)
        np.testing.assert_array_equal(positions_4[0, start:stop], np.arange(len(ids)))
        assert (part["segments"] == number).all()
        if sample is None:
            np.testing.assert_array_equal(positions_4[3, start:stop], np.arange(len(ids)))
            assert not part["types"].any()
            assert not part["weights"].any()
            assert (part["labels"] == IGNORE_INDEX).all()
            continue
        np.testing.assert_array_equal(part["types"], ids == IMAGE)
        for place, label in enumerate(part["labels"]):
            loss = place > 0 and sample.trained[place] and ids[place] != IMAGE
            assert label == (ids[place] if loss else IGNORE_INDEX)
            assert part["weights"][place] == (np.float32(sample.loss_weight) if loss else 0)
    assert made.num_label_tokens == (flat["labels"] != IGNORE_INDEX).sum()


def check_equal(made, want):
    for name, value in vars(made).items():
        expected = getattr(want, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == expected.dtype, name
            np.testing.assert_array_equal(value, expected, err_msg=name)
        else:
            assert value == expected, name


many_packs = st.lists(st.lists(samples(), max_size=3), min_size=1, max_size=3)


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_every_row_is_its_samples_then_padding(assemble, dtype):
    @settings(max_examples=assemble.examples, deadline=None)
    @given(many_packs, st.integers(0, 40))
    def check(packs, room):
        seq_len = max([1, *(sum(len(s.input_ids) for s in pack) for pack in packs)]) + room
        made = assemble(packs, seq_len=seq_len, dtype=dtype)
        for name in ("input_ids", "labels", "position_ids", "mm_token_type_ids"):
            assert getattr(made, name).dtype == dtype
        assert made.segment_ids.dtype == np.int32
        assert made.loss_weights.dtype == np.float32
        check_rows(made, packs, seq_len)
        check_equal(
            made,
            reference(
                packs,
                seq_len=seq_len,
                pad_id=PAD,
                image_token_id=IMAGE,
                merge_size=2,
                dtype=dtype,
            ),
        )

    check()


@settings(max_examples=100, deadline=None)
@given(many_packs, st.integers(0, 40), st.sampled_from([1, 2, 3]))
def test_the_span_table_equals_its_definition(packs, room, merge_size):
    if merge_size != 2:  # other grids for the same placeholders
        packs = [[regrid(sample, merge_size) for sample in pack] for pack in packs]
    seq_len = max([1, *(sum(len(s.input_ids) for s in pack) for pack in packs)]) + room
    options = {
        "seq_len": seq_len,
        "pad_id": PAD,
        "image_token_id": IMAGE,
        "merge_size": merge_size,
    }
    made, want = span_table(packs, **options), reference_table(packs, **options)
    for field in dataclasses.fields(made):
        value, expected = getattr(made, field.name), getattr(want, field.name)
        if isinstance(value, np.ndarray):
            assert value.dtype == np.int32
            np.testing.assert_array_equal(value, expected, err_msg=field.name)
        else:
            assert value == expected, field.name


def regrid(sample, merge_size):
    grids = sample.image_grid_thw.copy()
    grids[:, 1:] = grids[:, 1:] // 2 * merge_size + (merge_size - 1)  # what is left over is cut
    return dataclasses.replace(sample, image_grid_thw=grids)


def test_a_sample_takes_three_rows(assemble):
    """A prompt, its image, and the rest of the prompt with a completion and an untrained end."""
    sample = make_sample("a", [(1, 4, 8)], [30, 50])
    sample.trained[-50:] = [False] * 10 + [True] * 38 + [False] * 2
    table = span_table([[sample]], seq_len=128, pad_id=PAD, image_token_id=IMAGE, merge_size=2)
    first, image, rest, padding = table.spans.tolist()
    bits = int(np.float32(1).view(np.int32))
    assert first == [0, 0, 0, 0, 0, 0, 0, 0, 0, bits]
    assert image == [31, 31, 31, 31, 31, 31, 2, 4, 0, bits]
    assert rest == [39, 39, 39, 35, 50, 88, 0, 0, 0, bits]
    assert padding == [90, -1, 0, 0, 90, 90, 0, 0, 1, 0]


def test_a_worked_example(assemble):
    """By hand: two words, a 4 x 8 image (8 tokens in 2 rows of 4), one word; then padding."""
    made = assemble([[make_sample("a", [(1, 4, 8)], [1, 1])]], seq_len=14)
    assert made.position_ids[:, 0].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1],
        [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 6, 7, 0, 1],
        [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 6, 7, 0, 1],
        [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7, 0, 1],
    ]
    assert made.cu_seqlens.tolist() == [0, 12, 14]
    assert made.num_label_tokens == 1


def test_no_packs_and_empty_packs(assemble):
    made = assemble([[], []], seq_len=5)
    assert made.input_ids.tolist() == [[PAD] * 5] * 2
    assert made.cu_seqlens.tolist() == [0, 5, 10]
    assert made.max_seqlen == 5
    none = assemble([], seq_len=5)
    assert none.input_ids.shape == (0, 5)
    assert none.cu_seqlens.tolist() == [0]


def test_arrays_that_are_not_contiguous(assemble):
    plain = make_sample("a", [(1, 4, 8), (1, 4, 4)], [3, 2, 5])
    spread = dataclasses.replace(
        plain,
        input_ids=np.repeat(plain.input_ids, 2)[::2],
        trained=np.repeat(plain.trained, 3)[::3],
        image_grid_thw=np.asfortranarray(plain.image_grid_thw),
    )
    assert not spread.input_ids.flags.c_contiguous
    check_equal(assemble([[spread, spread]]), assemble([[plain, plain]]))


def broken(**changes) -> EncodedSample:
    return dataclasses.replace(make_sample("bad", [(1, 4, 4)], [2, 3]), **changes)


def grid(*rows):
    return np.asarray(rows, np.int64).reshape(-1, 3)


@pytest.mark.parametrize(
    "sample",
    [
        broken(image_grid_thw=grid([1, 4, 2])),
        broken(image_grid_thw=grid([1, 4, 8])),
        broken(image_grid_thw=grid([1, 4, 4], [1, 2, 2])),
        broken(image_grid_thw=grid(), pixel_values=None),
        broken(image_grid_thw=grid([1, 0, 4])),
        broken(image_grid_thw=grid([1, -4, -4])),
        broken(image_grid_thw=grid([-1, 4, -4])),
        broken(image_grid_thw=grid([2**62, 2**62, 2**62])),
        broken(image_grid_thw=grid([2**32, 2**32, 2])),
    ],
    ids=["short", "long", "two", "none", "zero", "negative", "signs", "huge", "overflowing"],
)
def test_placeholders_and_grid_must_agree(assemble, sample):
    with pytest.raises(DataError, match=r"placeholders.*bad"):
        assemble([[make_sample("good", [], [3])], [make_sample("fine", [], [2]), sample]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": np.zeros(9, np.int64)}, "input_ids is no 1-dimensional int32"),
        ({"input_ids": np.zeros((9, 1), np.int32)}, "input_ids is no 1-dimensional int32"),
        ({"input_ids": [1, 2]}, "input_ids is no 1-dimensional int32"),
        ({"input_ids": np.arange(-11, 0, dtype=np.int32)}, "input_ids has a negative id"),
        ({"trained": np.ones(11, np.int8)}, "trained is no 1-dimensional bool"),
        ({"trained": np.ones(8, np.bool_)}, "trained has not the length"),
        ({"image_grid_thw": np.ones((1, 3), np.int32)}, "image_grid_thw is no 2-dimensional int64"),
        ({"image_grid_thw": np.ones((1, 2), np.int64)}, "image_grid_thw has not 3 columns"),
        ({"loss_weight": float("nan")}, "loss_weight is not finite"),
        ({"loss_weight": 1e39}, "loss_weight is not finite"),
    ],
)
def test_samples_that_are_not_what_they_should_be(assemble, change, message):
    sample = broken(**change)
    with pytest.raises(DataError, match=f"{message}.*key bad"):
        assemble([[make_sample("good", [], [3]), sample]])


def test_a_pack_that_is_too_full(assemble):
    sample = make_sample("long", [], [9])
    other = make_sample("other", [], [9])
    with pytest.raises(SampleTooLongError, match=r"more than 17 tokens.*long"):
        assemble([[other], [other, sample]], seq_len=17)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "seq_len 0"),
        ({"merge_size": 0}, "merge_size 0"),
        ({"pad_id": -1}, "pad_id -1"),
        ({"image_token_id": 2**31}, "image_token_id"),
        ({"dtype": "float32"}, "float32"),
        ({"seq_len": MAX_PACKED_TOKENS // 2 + 1}, "packs_per_batch"),
        ({"seq_len": 2**62}, "packs_per_batch"),
    ],
)
def test_options_that_cannot_be_right(assemble, options, message):
    with pytest.raises(ConfigError, match=message):
        assemble([[], []], **options)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spans: spans[1:],
        lambda spans: spans[:0],
        lambda spans: spans[::-1],
        lambda spans: np.where(np.arange(10) == 1, spans + 1, spans),
        lambda spans: np.where(np.arange(10) == 5, 2**30, spans),
        lambda spans: np.where(np.arange(10) == 4, -1, spans),
        lambda spans: np.where(np.arange(10) == 7, 3, spans),
        lambda spans: spans[:, :9],
    ],
)
def test_a_table_that_is_unsound_writes_nothing(spoil):
    sample = make_sample("a", [(1, 4, 8)], [3, 5])
    table = span_table([[sample]], seq_len=18, pad_id=PAD, image_token_id=IMAGE, merge_size=2)
    spoiled = np.ascontiguousarray(spoil(table.spans)).astype(np.int32)
    with pytest.raises(ValueError, match="spans"):
        pack_spans(dataclasses.replace(table, spans=spoiled))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("seq_len", [1, 16, 255, 507])
def test_nothing_is_left_unwritten(assemble, monkeypatch, seq_len, dtype):
    """Outputs are poisoned: an element that is forgotten shows."""
    empty, torch_empty = np.empty, torch.empty
    sample = make_sample("a", [(1, 4, 8), (1, 2, 2)], [30, 0, 50])
    full = make_sample("b", [], [seq_len])
    packs = [[], [full], [sample] if len(sample.input_ids) <= seq_len else []]
    options = {"pad_id": PAD, "image_token_id": IMAGE, "merge_size": 2, "dtype": dtype}
    want = reference(packs, seq_len=seq_len, **options)

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        made.view(np.uint8).fill(0xA5)
        return made

    def torch_poisoned(*args, **kwargs):
        made = torch_empty(*args, **kwargs)
        return made.fill_(0xA5 if made.dtype == torch.uint8 else -(2**20))

    monkeypatch.setattr(np, "empty", poisoned)
    monkeypatch.setattr(torch, "empty", torch_poisoned)
    check_equal(assemble(packs, seq_len=seq_len, dtype=dtype), want)


def test_the_default_follows_the_device():
    pack = pack_implementation()
    assert pack.args[0] is pack_implementation("cpu").args[0]
    installed = pytest.importorskip("triton") is not None
    on_device = pack_implementation("auto", "cuda")
    assert installed
    assert on_device.func is pack_implementation("triton", "cuda").func
    assert on_device.args == (torch.device("cuda"),)


def test_triton_that_is_not_installed(monkeypatch):
    import omr_io.ops

    monkeypatch.setattr(omr_io.ops, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        pack_implementation("triton", "cuda")
    fallback = pack_implementation("auto", "cuda")
    assert fallback.args[0] is pack_implementation("cpu").args[0]


def test_an_implementation_that_does_not_exist():
    with pytest.raises(ConfigError, match="reference"):
        pack_implementation("abacus")
