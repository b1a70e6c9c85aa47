"""Fixtures that several test modules share."""

from types import SimpleNamespace

import pytest

TOKENS = {"image": 7, "vision_start": 8, "vision_end": 9, "pad": 6, "video": 5, "vocabulary": 100}


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
