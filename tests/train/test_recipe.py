import json
import re
from pathlib import Path

import pytest

from omr_io.errors import ConfigError, ResumeError
from omr_io.train.parameters import LoRA
from omr_io.train.recipe import check_recipe, load_recipe, recipe_fields

ROOT = Path(__file__).parents[2]
MINIMAL = """
name: x
data: {train: a, test: b, seq_len: 256, packs_per_step: 2}
sft: {steps: 1, lr: 1e-3}
rl: {steps: 1, lr: 1, prompts_per_step: 2, group: 2, max_new_tokens: 8}
evaluation: {max_new_tokens: 8}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_every_recipe_in_the_tree_loads() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert load_recipe(path).name == path.stem


def test_the_authors_settings() -> None:
    recipe = load_recipe(ROOT / "recipes/openmedreason_qwen2_5vl_7b.yaml")
    assert recipe.model.lora == LoRA(rank=128, alpha=256)
    assert (recipe.sft.lr, recipe.sft.vision_lr, recipe.sft.warmup) == (5e-7, 1e-8, 0.03)
    assert (recipe.sft.epochs, recipe.sft.weight_decay, recipe.sft.freeze) == (2, 0.01, ())
    assert (recipe.vision.min_pixels, recipe.vision.max_pixels) == (256 * 32**2, 768 * 32**2)
    assert (recipe.rl.group, recipe.rl.max_new_tokens, recipe.rl.lr) == (16, 512, 5e-5)
    assert "vision" in recipe.rl.freeze
    bounds = recipe.rl_vision.min_pixels, recipe.rl_vision.max_pixels
    assert bounds == (128 * 28**2, 256 * 28**2)
    assert recipe.rl_vision.image_mean == recipe.vision.image_mean


def test_numbers_are_floats_however_yaml_reads_them(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.sft.lr == 1e-3  # YAML 1.1 reads 1e-3 as text
    assert recipe.rl.lr == 1.0
    assert isinstance(recipe.rl.lr, float)


def test_nested_values_become_tuples_and_dataclasses(tmp_path: Path) -> None:
    text = MINIMAL + "vision: {family: qwen2_5_vl, patch_size: 14, image_mean: [0.1, 0.2, 0.3]}\n"
    vision = load_recipe(write(tmp_path, text)).vision
    assert (vision.family, vision.patch_size) == ("qwen2_5_vl", 14)
    assert vision.image_mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("steps: 1, lr: 1e-3", "steps: 1, lr: fast"), "sft: lr is 'fast'"),
        (("steps: 1, lr: 1e-3", "steps: 1.5, lr: 1"), "sft: steps is 1.5"),
        (("steps: 1, lr: 1e-3", "steps: yes, lr: 1"), "sft: steps is True"),
        (("seq_len: 256", "seqlen: 256"), "Did you mean 'seq_len'"),
        (("seq_len: 256, ", ""), "missing seq_len"),
        (("name: x", "name: x\nvision: {family: llava}"), "qwen3_vl"),
        (("name: x", "name: x\nvision: {image_mean: [1, 2]}"), "image_mean"),
        (("name: x", "name: x\nmodel: 7"), "must be a mapping"),
        (("name: x", "name: [x"), "not YAML"),
        (("name: x", "name: ../x"), "no folder's name"),
        (("name: x", "name: ''"), "no folder's name"),
        (("name: x", "name: .."), "no folder's name"),
        (("group: 2", "group: 1"), "rl: group is 1"),
        (("steps: 1, lr: 1e-3", "steps: 0, lr: 1"), "sft: steps is 0"),
        (("group: 2", "group: 2, temperature: 0"), "temperature is 0"),
        (("group: 2", "group: 2, temperature: 0.005"), "temperature is 0.005"),
        (("group: 2", "group: 2, temperature: 2.5"), "temperature is 2.5"),
        (("steps: 1, lr: 1e-3", "lr: 1"), "sft: steps is 0 and epochs is 0"),
        (("steps: 1, lr: 1e-3", "steps: 1, epochs: 1, lr: 1"), "steps is 1 and epochs is 1"),
        (("steps: 1, lr: 1e-3", "steps: 1, lr: 1, freeze: [head]"), "freeze is 'head'"),
        (("steps: 1, lr: 1e-3", "steps: 1, lr: 1, freeze: [vision]"), "rl trains vision, which"),
        (
            ("steps: 1, lr: 1e-3", "steps: 1, lr: 1, vision_lr: 1, freeze: [vision]"),
            "sft: vision_lr is 1.0, but vision is frozen",
        ),
        (("steps: 1, lr: 1e-3", "steps: 1, lr: 1, merger_lr: -1"), "merger_lr is -1"),
        (("group: 2", "group: 2, max_pixels: 9"), "bound nothing"),
        (("name: x", "name: x\nmodel: {dtype: float16}"), "Use one of float32, bfloat16"),
        (("name: x", "name: x\nmodel: {lora: {rank: 8}}"), "lora: missing alpha"),
        (("name: x", "name: x\nmodel: {lora: {rank: 0, alpha: 1}}"), "lora: rank 0"),
        (("name: x", "name: x\nparallel: {timeout_minutes: 0}"), "timeout_minutes is 0"),
        (("group: 2", "group: 2, objective: ppo"), "rl: objective is 'ppo'. Use one of grpo, dr_"),
        (("group: 2", "group: 2, updates: 0"), "rl: updates is 0"),
        (("group: 2", "group: 2, updates: 3"), "rl: updates is 3 for 2 groups a step"),
        (("group: 2", "group: 2, max_draws: 0"), "rl: max_draws is 0"),
        (("group: 2", "group: 2, engine: sglang"), "rl: engine is 'sglang'. Use one of transf"),
        (("group: 2", "group: 2, importance_clip: 0.9"), "rl: importance_clip is 0.9"),
        (("group: 2", "group: 2, clip_low: -0.1"), "rl: clip_low is -0.1"),
        (("group: 2", "group: 2, vllm_memory: 1.5"), "rl: vllm_memory is 1.5"),
        (("lr: 1e-3", "lr: .nan"), "sft: lr is nan. It must be a finite number"),
        (("lr: 1e-3", "lr: '-inf'"), "sft: lr is '-inf'. It must be a finite number"),
        (("lr: 1e-3", "lr: 1, warmup: 3"), "sft: warmup is 3.0. It must be from 0 to 1"),
        (("lr: 1e-3", "lr: 1, min_lr_share: -1"), "sft: min_lr_share is -1.0"),
        (("lr: 1e-3", "lr: 1, max_grad_norm: -1"), "sft: max_grad_norm is -1.0"),
        (("lr: 1e-3", "lr: 1, weight_decay: -1"), "sft: weight_decay is -1.0"),
        (("lr: 1e-3", "lr: 1, beta2: 1"), "sft: beta2 is 1.0. It must be from 0 to below 1"),
        (("group: 2", "group: 2, warmup: -1"), "rl: warmup is -1.0"),
        (("group: 2", "group: 2, beta2: 1.5"), "rl: beta2 is 1.5"),
        (("group: 2", "group: 2, max_grad_norm: 0"), "rl: max_grad_norm is 0.0"),
        (("group: 2", "group: 2, freeze: [text, vision, merger]"), "rl: freeze leaves nothing"),
        (("name: x", "name: x\nseed: -1"), "seed is -1. It must be from 0 to 4,294,967,295"),
        (("name: x", "name: x\npeak_tflops: .inf"), "peak_tflops is inf"),
        (("name: x", "name: x\nparallel: {timeout_minutes: 1e30}"), "timeout_minutes is 1e+30"),
        (("name: x", "name: x\nvision: {image_std: [0, 1, 1]}"), "image_std (0.0, 1.0, 1.0)"),
        (("name: x", "name: x\nname: y"), "'name' is there twice, again in line 3"),
        (("group: 2", "group: 2, group: 4"), "rl: 'group' is there twice, again in line 5"),
        (
            ("group: 2", "group: 2, objective: dr_grpo, scale_by_std: true"),
            "dr_grpo is GRPO without it",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_place(
    tmp_path: Path, edit: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_recipe(write(tmp_path, MINIMAL.replace(*edit)))


def test_an_objective_is_one_line(tmp_path: Path) -> None:
    for name, scaled in (("grpo", True), ("dr_grpo", False), ("gspo", True)):
        text = MINIMAL.replace("group: 2", f"group: 2, objective: {name}")
        rl = load_recipe(write(tmp_path, text)).rl
        assert (rl.objective, rl.scales_by_std) == (name, scaled)
        assert (rl.clip_low, rl.clip_high) == (None, None)
    plain = MINIMAL.replace("group: 2", "group: 2, scale_by_std: false, clip_high: 0.3")
    rl = load_recipe(write(tmp_path, plain)).rl
    assert (rl.scales_by_std, rl.clip_high) == (False, 0.3)


def test_another_recipe_is_refused_on_resume_with_what_differs(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    saved = json.loads(json.dumps(recipe_fields(recipe)))
    check_recipe(saved, recipe)
    shown = MINIMAL.replace("evaluation: {", "evaluation: {shown: 3, ")
    shown = shown.replace("seq_len: 256", "seq_len: 256, num_threads: 4")
    shown += "parallel: {activation_checkpointing: true}\n"
    check_recipe(saved, load_recipe(write(tmp_path, shown)))
    other = MINIMAL.replace("lr: 1e-3", "lr: 2e-3").replace("group: 2", "group: 4") + "seed: 1\n"
    with pytest.raises(ResumeError) as caught:
        check_recipe(saved, load_recipe(write(tmp_path, other)))
    for name in ("sft.lr (saved 0.001, here 0.002)", "rl.group", "seed (saved 0, here 1)"):
        assert name in str(caught.value)
    assert "seq_len" not in str(caught.value)


def test_adapters_and_frozen_parts_are_what_a_run_depends_on(tmp_path: Path) -> None:
    text = MINIMAL.replace("lr: 1e-3", "lr: 1e-3, freeze: [vision, merger]")
    text = text.replace("group: 2", "group: 2, freeze: [merger, vision]")
    text += "model: {lora: {rank: 2, alpha: 4, target_modules: [q_proj, v_proj]}}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.sft.freeze == ("vision", "merger")
    assert recipe.model.lora == LoRA(2, 4, target_modules=("q_proj", "v_proj"))
    saved = json.loads(json.dumps(recipe_fields(recipe)))
    check_recipe(saved, recipe)
    other = load_recipe(write(tmp_path, text.replace("rank: 2", "rank: 3")))
    with pytest.raises(ResumeError, match=r"model.lora.rank \(saved 2, here 3\)"):
        check_recipe(saved, other)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not YAML"):
        load_recipe(tmp_path / "binary.yaml")
