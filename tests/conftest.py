"""Fixtures that several test modules share."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from omr_io.config import VisionConfig
from omr_io.conversion import ConvertOptions, write_shard_set
from omr_io.tokenizer import train_bpe
from omr_io.types import EncodedImage, Option, Record

# A busy machine is no failure, and what passed today passes tomorrow: the examples of a test are
# the same each time. Others: pytest --hypothesis-profile=other.
ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", **ANY_SPEED, derandomize=True)
settings.register_profile("other", **ANY_SPEED)
settings.load_profile("same")

TOKENS = {"image": 7, "vision_start": 8, "vision_end": 9, "pad": 6, "video": 5, "vocabulary": 100}


def pytest_configure():
    """Nothing that an earlier run kept may help a test: those of the caches name a folder."""
    os.environ["OMR_IO_CACHE_DIR"] = ""
    # Without a GPU kernels run under Triton's interpreter, which is chosen when they are imported.
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def tiny_tokens():
    """The token ids that `tiny_models` know."""
    return SimpleNamespace(**TOKENS)


@pytest.fixture(scope="session")
def tiny_models():
    """One random model of each family, patch_size 2, merge_size 2, with SDPA, in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": TOKENS["vocabulary"],
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "num_heads": 2, "patch_size": 2, "spatial_merge_size": 2}
    wide = vision | {"hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32}
    ids = {
        "image_token_id": TOKENS["image"],
        "video_token_id": TOKENS["video"],
        "vision_start_token_id": TOKENS["vision_start"],
        "vision_end_token_id": TOKENS["vision_end"],
    }
    parts = {
        "Qwen2VL": (
            text | {"rope_parameters": rope},
            vision | {"embed_dim": 32, "hidden_size": 32},
        ),
        "Qwen2_5_VL": (
            text | {"rope_parameters": rope},
            wide | {"window_size": 8, "fullatt_block_indexes": [1]},
        ),
        "Qwen3VL": (
            text | {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True}},
            wide | {"num_position_embeddings": 25, "deepstack_visual_indexes": [0]},
        ),
    }
    families = {"Qwen2VL": "qwen2_vl", "Qwen2_5_VL": "qwen2_5_vl", "Qwen3VL": "qwen3_vl"}
    models = {}
    for name, (text_config, vision_config) in parts.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(
            text_config=text_config, vision_config=vision_config, **ids
        )
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
        models[families[name]] = model.eval()
    return models


VISION = {"min_pixels": 32 * 32, "max_pixels": 96 * 96}  # 1 to 9 image tokens of 32 x 32 pixels


def _encoded(kind: str, height: int, width: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _make_records(count: int, *, broken: tuple[int, ...] = ()) -> list[Record]:
    """Records with 0 to 2 images each; those in `broken` have a JPEG that is cut short."""
    records = []
    for i in range(count):
        kinds = [("JPEG", "PNG")[(i + n) % 2] for n in range((1, 1, 0, 2, 1)[i % 5])]
        images = [
            _encoded(kind, 40 + 13 * (i % 7), 50 + 11 * (i % 5) + 9 * n, seed=10 * i + n)
            for n, kind in enumerate(kinds)
        ]
        if i in broken:
            whole = _encoded("JPEG", 64, 80, seed=i)
            images[-1] = whole[: len(whole) // 2]
        letter = "ABC"[i % 3]
        records.append(
            Record(
                id=f"study-{i}",
                question=f"Which region is brightest in view {i}?\nA. left\nB. right\nC. none",
                options=(Option("A", "left"), Option("B", "right"), Option("C", "none")),
                answer=letter,
                reasoning=f"<think>{'The view shows it. ' * (1 + i % 4)}</think>\n"
                f"<answer>{letter}</answer>",
                images=tuple(EncodedImage(data) for data in images),
                source=f"test.parquet#{i}",
            )
        )
    return records


@pytest.fixture(scope="session")
def write_shards(tmp_path_factory):
    """A function: records → the folder of a shard set. Only headers of images are checked.

    Files are stored as they came, since what is cut short could not be stripped.
    """

    def write(records, samples_per_shard=10):
        folder = tmp_path_factory.mktemp("shards") / "set"
        options = ConvertOptions(
            check="header", keep_metadata=True, max_shard_samples=samples_per_shard
        )
        summary = write_shard_set(enumerate(records), folder, options)
        assert summary.samples == len(records)
        return folder

    return write


@pytest.fixture(scope="session")
def make_records():
    """A function: (count, broken=()) → records with 0 to 2 images each."""
    return _make_records


@pytest.fixture(scope="session")
def records():
    """37 sound records."""
    return _make_records(37)


@pytest.fixture(scope="session")
def shards(write_shards, records):
    """The folder of a shard set of `records`, in 4 shards."""
    return write_shards(records)


@pytest.fixture(scope="session")
def tokenizer(records):
    """A byte-level BPE with Qwen's special tokens, trained on `records`."""
    texts = [text for record in records for text in (record.question, record.reasoning)]
    return train_bpe(texts, vocab_size=400)


@pytest.fixture(scope="session")
def vision():
    """Qwen3-VL's patches, small images."""
    return VisionConfig(**VISION)
