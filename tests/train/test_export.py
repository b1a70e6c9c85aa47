from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omr_io.config import VisionConfig
from omr_io.train.attention import use_varlen
from omr_io.train.checkpoint import export_hf
from omr_io.train.model import load_model


class FakeTokenizer:
    def save(self, folder: str | Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_export_reads_back(family: str, tmp_path: Path) -> None:
    import transformers

    from tests.train import tiny_models as tiny

    model = tiny.tiny_model(family).eval()
    sample = tiny.tiny_sample([(4, 6)], 5, 0)
    with torch.no_grad():
        expected = tiny.alone(model, sample)
    use_varlen(model)
    vision = VisionConfig(family=family, patch_size=4, min_pixels=64, max_pixels=4096)  # type: ignore[arg-type]
    export_hf(tmp_path / "hf", model, FakeTokenizer(), vision)
    assert VisionConfig.from_pretrained(tmp_path / "hf") == vision
    assert "omr_" not in (tmp_path / "hf/config.json").read_text()
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert torch.equal(tiny.alone(plain, sample), expected)
    assert load_model(tmp_path / "hf").config.model_type == family
    processor = transformers.Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "hf")
    assert processor.patch_size == 4
    assert processor.size["longest_edge"] == 4096


def test_given_weights_are_written_in_their_dtype(tmp_path: Path) -> None:
    from tests.train import tiny_models as tiny

    model = tiny.tiny_model("qwen3_vl")
    weights = {name: w.bfloat16() for name, w in model.state_dict().items()}
    export_hf(tmp_path, model, FakeTokenizer(), VisionConfig(patch_size=4), weights=weights)
    again = load_model(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor.bfloat16(), weights[name]), name
    assert '"dtype": "bfloat16"' in (tmp_path / "config.json").read_text()
