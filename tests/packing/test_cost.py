"""The cost model, against counts of the models' own weights and by hand."""

import json

import numpy as np
import pytest

from omr_io.errors import ConfigError
from omr_io.packing import CostModel

# As the model cards' config.json have them: Qwen2-VL and Qwen2.5-VL flat, Qwen3-VL nested.
QWEN2_5_VL_7B = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "temporal_patch_size": 2,
    },
}
QWEN2_VL_7B = QWEN2_5_VL_7B | {
    "model_type": "qwen2_vl",
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
QWEN3_VL_8B = {
    "model_type": "qwen3_vl",
    "text_config": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "in_channels": 3,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}


def parts(made: CostModel) -> tuple[int, int, int, int]:
    return (made.text_linear, made.text_quadratic, made.vision_linear, made.vision_quadratic)


def test_qwen2_5_vl_by_hand():
    attention = 3584 * 3584 * 2 + 3584 * 512 * 2  # q and o; k and v have 4 heads of 128
    text = 28 * (attention + 3 * 3584 * 18944) + 3584 * 152064
    tower = 32 * (4 * 1280**2 + 3 * 1280 * 3420) + 3 * 2 * 14 * 14 * 1280
    merger = (5120 * 5120 + 5120 * 3584) / 4  # passed once by four patches
    windows = 28 * 4 * 1280 * 64  # 28 layers see 64 patches each
    expected = (
        round(2 * text / 1000),
        round(28 * 2 * 3584 / 1000),
        round((2 * (tower + merger) + windows) / 1000),
        round(4 * 4 * 1280 / 1000),
    )
    made = CostModel.from_config(QWEN2_5_VL_7B)
    assert parts(made) == expected
    assert made == CostModel()  # the defaults


def test_qwen2_vl_by_hand():
    tower = 32 * (4 * 1280**2 + 2 * 1280 * 5120) + 3 * 2 * 14 * 14 * 1280
    merger = (5120 * 5120 + 5120 * 3584) / 4
    made = CostModel.from_config(QWEN2_VL_7B)
    assert parts(made)[:2] == parts(CostModel())[:2]  # the same text model
    assert parts(made)[2:] == (round(2 * (tower + merger) / 1000), round(32 * 4 * 1280 / 1000))


def test_qwen3_vl_by_hand():
    attention = 4096 * 4096 * 2 + 4096 * 1024 * 2
    text = 36 * (attention + 3 * 4096 * 12288) + 4096 * 151936
    tower = 27 * (4 * 1152**2 + 2 * 1152 * 4304) + 3 * 2 * 16 * 16 * 1152
    mergers = 4 * (4608 * 4608 + 4608 * 4096) / 4  # the last, and three of deepstack
    assert parts(CostModel.from_config(QWEN3_VL_8B)) == (
        round(2 * text / 1000),
        round(36 * 2 * 4096 / 1000),
        round(2 * (tower + mergers) / 1000),
        round(27 * 4 * 1152 / 1000),
    )


def test_a_head_dim_that_is_not_hidden_size_by_heads():
    text = QWEN3_VL_8B["text_config"] | {"hidden_size": 2560, "head_dim": 128}
    made = CostModel.from_config(QWEN3_VL_8B | {"text_config": text})
    assert made.text_quadratic == round(36 * 2 * 32 * 128 / 1000)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_costs_are_the_weights_of_transformers_models(family):
    """Tiny models: the matrices that a token or patch passes, twice."""
    transformers = pytest.importorskip("transformers")
    import torch

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    text = {
        "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "vocab_size": 512,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {"depth": 4, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 96, "hidden_size": 128, "mlp_ratio": 4}
    elif family == "qwen2_5_vl":
        vision |= {"hidden_size": 96, "out_hidden_size": 128, "intermediate_size": 200}
        vision |= {"fullatt_block_indexes": [1, 3], "window_size": 112}
    else:
        text["head_dim"] = 32
        vision |= {"hidden_size": 96, "out_hidden_size": 128, "intermediate_size": 200}
        vision |= {"deepstack_visual_indexes": [0, 2]}
    config = getattr(transformers, f"{names[family]}Config")(text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = getattr(transformers, f"{names[family]}ForConditionalGeneration")(config)
    matrices = {"text": 0.0, "vision": 0.0}
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or "embed_tokens" in name or "pos_embed" in name:
            continue  # norms, biases and tables multiply nothing
        side = "vision" if "visual" in name else "text"
        matrices[side] += weight.numel() / (4 if "merger" in name else 1)
    made = CostModel.from_config(config.to_dict())
    windows = 2 * 4 * 96 * 64 if family == "qwen2_5_vl" else 0
    assert made.text_linear == round(2 * matrices["text"] / 1000)
    assert made.vision_linear == round((2 * matrices["vision"] + windows) / 1000)


def test_folders_and_files(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN3_VL_8B))
    expected = CostModel.from_config(QWEN3_VL_8B)
    assert CostModel.from_config(tmp_path) == CostModel.from_config(str(path)) == expected
    with pytest.raises(ConfigError, match="does not exist"):
        CostModel.from_config(tmp_path / "other.json")


def test_a_frozen_vision_tower_costs_a_third():
    trained = CostModel.from_config(QWEN3_VL_8B)
    frozen = trained.with_frozen_vision()
    assert parts(frozen)[2:] == parts(trained)[2:]
    assert parts(frozen)[:2] == tuple(3 * part for part in parts(trained)[:2])


def test_configs_that_lack_or_are_something_else():
    with pytest.raises(ConfigError, match="model_type 'llava' has no cost model"):
        CostModel.from_config({"model_type": "llava"})
    with pytest.raises(ConfigError, match="vision_config of config is missing"):
        CostModel.from_config({"model_type": "qwen3_vl", "text_config": {}})
    for name in ("depth", "hidden_size", "fullatt_block_indexes", "window_size"):
        vision = {k: v for k, v in QWEN2_5_VL_7B["vision_config"].items() if k != name}
        with pytest.raises(ConfigError, match=f"{name} of vision_config is missing"):
            CostModel.from_config(QWEN2_5_VL_7B | {"vision_config": vision})
    for wrong in ("4096", 0, -3, True, 1.5):
        with pytest.raises(ConfigError, match="vocab_size of text_config is"):
            CostModel.from_config(QWEN2_5_VL_7B | {"vocab_size": wrong})


def test_costs_are_quadratic_in_tokens_and_patches():
    made = CostModel(text_linear=3, text_quadratic=1, vision_linear=10, vision_quadratic=100)
    costs = made.cost(np.asarray([5, 7]), np.asarray([4, 0]))
    assert costs.dtype == np.int64
    assert costs.tolist() == [3 * 5 + 25 + 40 + 1600, 3 * 7 + 49]


def test_costs_that_are_none():
    with pytest.raises(ConfigError, match="at least 0"):
        CostModel(text_linear=-1)
    with pytest.raises(ConfigError, match="not all 0"):
        CostModel(0, 0, 0, 0)
