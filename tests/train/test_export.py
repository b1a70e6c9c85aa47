from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DiskError
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


def end_at_touch(folder: Path, turn: int) -> None:
    """End this process without a word before its call number `turn` that touches the folder."""
    kinds = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
    left = turn

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in kinds and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os._exit(9)

    sys.addaudithook(hook)


def test_a_kill_at_any_point_leaves_a_whole_export_or_none(tmp_path: Path) -> None:
    """Killed before each call that touches the disk, in turn; where there was an export before."""
    from safetensors.torch import load_file

    from tests.train import tiny_models as tiny

    model, vision = tiny.tiny_model("qwen3_vl"), VisionConfig(patch_size=4)
    name = "model.language_model.norm.weight"

    def export(value: float) -> None:
        with torch.no_grad():
            model.get_parameter(name).fill_(value)
        export_hf(tmp_path / "hf", model, FakeTokenizer(), vision)

    def held() -> float | None:
        if not (tmp_path / "hf").exists():
            return None
        assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == whole
        return float(load_file(tmp_path / "hf/model.safetensors")[name][0])

    export(1.0)
    whole = sorted(path.name for path in (tmp_path / "hf").iterdir())
    found, code, turn = [], 9, 0
    while code:
        child = os.fork()
        if not child:
            end_at_touch(tmp_path, turn)
            export(2.0)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        found.append(held())
        export(1.0)
        assert held() == 1.0
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]
        turn += 1
    assert set(found) == {1.0, 2.0, None}
    # Without the name only between two renames, after which the export before has it again.
    assert found.count(None) == 1
    assert found == sorted(found, key=lambda value: {1.0: 0, None: 1, 2.0: 2}[value])


def test_a_full_disk_leaves_the_export_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from tests.train import tiny_models as tiny

    model, vision = tiny.tiny_model("qwen3_vl"), VisionConfig(patch_size=4)
    export_hf(tmp_path / "hf", model, FakeTokenizer(), vision)
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    for error in (OSError(28, "No space left on device"), SafetensorError("I/O error: No space")):
        with monkeypatch.context() as patch:

            def full(*args: object, error: Exception = error, **kwargs: object) -> None:
                raise error

            patch.setattr(model, "save_pretrained", full)
            with pytest.raises(DiskError, match=r"writing .*/hf failed: .*No space.*ree space"):
                export_hf(tmp_path / "hf", model, FakeTokenizer(), vision)
        assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_export_never_deletes_what_it_did_not_write(tmp_path: Path) -> None:
    from tests.train import tiny_models as tiny

    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds thesis\.tex, which no export writes"):
        export_hf(tmp_path, tiny.tiny_model("qwen3_vl"), FakeTokenizer(), VisionConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_export_goes_where_a_link_points_and_is_for_all_to_read(tmp_path: Path) -> None:
    from tests.train import tiny_models as tiny

    (tmp_path / "large-disk").mkdir()
    (tmp_path / "hf").symlink_to(tmp_path / "large-disk")
    vision = VisionConfig(patch_size=4)
    for _ in range(2):
        export_hf(tmp_path / "hf", tiny.tiny_model("qwen3_vl"), FakeTokenizer(), vision)
    assert (tmp_path / "hf").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "large-disk"]
    modes = {path.stat().st_mode for path in (tmp_path / "large-disk").iterdir()}
    assert len(modes) == 1
