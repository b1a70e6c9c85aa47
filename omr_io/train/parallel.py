"""Several ranks, and mixed precision: the process group, FSDP2, checkpointed and compiled blocks.

    torchrun --nproc_per_node 8 train_example.py --config ...

A block (of the vision tower, of the text model) is the unit that is gathered, freed, recomputed and
compiled. What lies outside the blocks (embeddings, head, norms, mergers) is the root's: gathered
once a forward pass and kept until its backward pass is done. So a tied embedding and head are one
gathered tensor, whose gradients add up before they are reduced, and a head's weight is whole where
log-probabilities are made of it.

Everything that uses parameters must run as a forward pass of the root: `run_as_forward`.

Precision: masters are float32 shards, gathered as `dtype`; gradients are reduced in float32. A
frozen parameter needs no master and is stored as `dtype`. So one process too goes through FSDP2,
alone in a group, when dtype is not float32; when it is, the model stays as it is.

On CUDA collectives are NCCL's, on a CPU gloo's. Both are given sums only: averages and scaled sums
are NCCL's alone.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from omr_io.errors import ConfigError, TrainingError
from omr_io.train.model import FORWARD_METHOD, run_as_forward
from omr_io.train.ranks import Ranks, environment_ranks

T = TypeVar("T")


@contextmanager
def start_ranks(*, timeout_seconds: float = 1800.0) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, and leave them at the end; alone without torchrun.

    Args:
        timeout_seconds: how long a rank waits for the others before it gives up.

    Raises:
        ConfigError: torchrun's variables contradict each other, or there are fewer GPUs than ranks
            on this machine.
    """
    rank, world_size, local_rank = _checked_environment()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local rank {local_rank} has no GPU: there are {torch.cuda.device_count()}",
                mend="Give torchrun --nproc_per_node as many processes as this machine has GPUs",
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=timeout_seconds),
            device_id=device if device.type == "cuda" else None,
        )
    failed = True
    try:
        yield Ranks(rank, world_size, device, timeout_seconds=timeout_seconds)
        failed = False
    finally:
        # A rank that fails goes at once, so that torchrun ends the others, which may wait for it.
        # One process may have a group too, by `shard`.
        if dist.is_initialized() and not (failed and world_size > 1):
            dist.destroy_process_group()


def _checked_environment() -> tuple[int, int, int]:
    """torchrun's variables, all of them or none.

    Raises:
        ConfigError: some are missing, no numbers, or out of range.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    mend = "Start several ranks by torchrun, which sets them all; one rank needs none of them"
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return environment_ranks()
    missing = [name for name in names if not os.environ.get(name)]
    if missing and os.environ.get("WORLD_SIZE") != "1":
        raise ConfigError(f"the environment lacks {', '.join(missing)}", mend=mend)
    try:
        rank, world_size, local_rank = environment_ranks()
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE or LOCAL_RANK: {error}", mend=mend) from error
    if not (0 <= rank < world_size and 0 <= local_rank < world_size):
        raise ConfigError(
            f"RANK {rank}, LOCAL_RANK {local_rank} and WORLD_SIZE {world_size} contradict each "
            "other",
            mend=mend,
        )
    return rank, world_size, local_rank


def blocks_of(model: Any) -> list[nn.Module]:
    """The vision tower's blocks, then the text model's layers, in the order they run.

    They are what transformers marks as checkpointable: one class for all families.

    Raises:
        ConfigError: a part of the model has none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks: list[nn.Module] = []
    for part in (model.model.visual, model.model.language_model):
        found = [m for m in part.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not found:
            raise ConfigError(
                f"{type(part).__name__} has no blocks to shard",
                mend="Use a Qwen2-VL, Qwen2.5-VL or Qwen3-VL of transformers 5.17 or later",
            )
        blocks += found
    return blocks


def shard(
    model: Any,
    ranks: Ranks,
    *,
    dtype: torch.dtype = torch.float32,
    activation_checkpointing: bool = False,
    compile_blocks: bool = False,
    compile_backend: str = "inductor",
) -> None:
    """Prepare a model for training on these ranks, in place: see the module's words.

    Freeze parameters and add adapters before, make optimizers after. Every rank must hold the same
    weights; they are compared.

    FSDP2 would average gradients over ranks. A step's loss is a sum over ranks (each divides by the
    global number of labels), so it is told to add up: exact, and the loss of a rank keeps its size.

    Args:
        model: a transformers vision-language model, on the CPU or on the ranks' device.
        dtype: what blocks compute in: float32 or bfloat16.
        activation_checkpointing: keep a block's input only and compute the block again in the
            backward pass.
        compile_blocks: torch.compile each block; attention stays outside, as it is a kernel already
            and its boundaries change with every batch.
        compile_backend: torch.compile's.

    Raises:
        ConfigError: another dtype, or blocks are not found.
        TrainingError: the ranks' weights differ.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"dtype {dtype}", mend="Use float32 or bfloat16")
    blocks = blocks_of(model)
    _check_same_weights(model, ranks)
    for block in blocks:
        _wrap_forward(
            block,
            activation_checkpointing=activation_checkpointing,
            compile_backend=compile_backend if compile_blocks else None,
        )
    if compile_blocks:
        _prepare_compiling()
    if ranks.world_size == 1 and dtype == torch.float32:
        _store(model, dtype)
        model.to(ranks.device)
        return
    _fully_shard(model, blocks, ranks, dtype)


def _store(module: nn.Module, dtype: torch.dtype) -> None:
    """Trained parameters in float32, frozen ones in what is computed in; buffers as they are."""
    from torch.distributed.tensor import DTensor

    for parameter in module.parameters():
        if parameter.is_floating_point() and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def _wrap_forward(
    block: nn.Module, *, activation_checkpointing: bool, compile_backend: str | None
) -> None:
    """Replace the block's own forward, not its call: FSDP2's hooks stay outside and run once."""
    forward: Callable[..., Any] = block.forward
    if compile_backend is not None:
        # Patches and label counts vary from batch to batch: sizes that do become symbols.
        forward = torch.compile(forward, backend=compile_backend)
    if activation_checkpointing:
        forward = partial(_checkpointed, block, forward)
    if forward is not block.forward:
        block.forward = forward


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    from torch.utils.checkpoint import checkpoint

    # Not reentrant: arguments may be keywords, and need not require gradients (a frozen tower).
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _prepare_compiling() -> None:
    import torch._dynamo
    from transformers import AttentionInterface

    from omr_io.train.attention import TEXT_ATTENTION, VISION_ATTENTION, varlen_attention

    # All blocks of all kinds share transformers' one wrapper of forward, whose versions count
    # together: 9 in the first four steps of a tiny Qwen3-VL, none in the next four. Beyond the
    # limit, 8, blocks would run uncompiled, with no more than a warning.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    outside = torch.compiler.disable(varlen_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(TEXT_ATTENTION, outside)
    AttentionInterface.register(VISION_ATTENTION, outside)


def _fully_shard(model: Any, blocks: Iterable[nn.Module], ranks: Ranks, dtype: torch.dtype) -> None:
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ConfigError(
            f"torch {torch.__version__} is too old to shard a model", mend="Install 2.13 or later"
        )
    if not dist.is_initialized():  # one process: a group in memory, without a network
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    # Inputs are not cast: transformers keeps some in float32 on purpose (the vision tower's
    # rotations), and a loss weight of 1/3 must not become one of bfloat16.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # One after the other, so that a block's masters are whole only until its turn is over: the host
    # holds the model as it was stored, a GPU its shards and one block.
    for module in (*blocks, model):
        _store(module, dtype)
        fully_shard(module, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    setattr(model, FORWARD_METHOD, _call)
    register_fsdp_forward_method(model, FORWARD_METHOD)
    # The first module that runs becomes FSDP2's root for good: this one, whatever comes first.
    with torch.no_grad():
        run_as_forward(model, lambda: None)


def _call(function: Callable[[], T]) -> T:
    return function()


def _check_same_weights(model: Any, ranks: Ranks) -> None:
    """Each rank keeps its part of its own weights: if they differed, the model would be none.

    Raises:
        TrainingError: names the first parameter that is not the same on all ranks.
    """
    if ranks.world_size == 1:
        return
    digests = {}
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        # A spread of values: two loads of one file agree in all, two initialisations in none.
        some = flat[:: max(1, len(flat) // 1024)].float().cpu().contiguous().numpy()
        words = f"{tuple(parameter.shape)} {parameter.dtype} {parameter.requires_grad}"
        digests[name] = hashlib.sha256(some.tobytes() + words.encode()).hexdigest()[:16]
    everywhere = ranks.gather(digests)
    for other, theirs in enumerate(everywhere):
        names = {*everywhere[0], *theirs}
        differing = sorted(n for n in names if everywhere[0].get(n) != theirs.get(n))
        if differing:
            raise TrainingError(
                f"ranks 0 and {other} differ in {len(differing)} parameters, such as "
                f"{differing[0]}",
                mend="Load the same files on every machine, and seed what is random alike",
            )


def seed_step(seed: int, step: int, ranks: Ranks) -> None:
    """Seed what is random within a step (dropout): it depends on seed, step and rank alone."""
    words = hashlib.sha256(f"{seed} {step} {ranks.rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(words[:8], "little") >> 1)
