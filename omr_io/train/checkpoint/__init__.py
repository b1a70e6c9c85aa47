"""Checkpoints: everything a run needs to go on, on one rank or many, without pickle.

A checkpoint is a folder `checkpoint-NNNNNN`:

    rank-RRRRR.safetensors   the tensors, or shards of tensors, that rank RRRRR wrote
    state.json               everything that is not a tensor, and where each tensor's chunks are
    manifest.json            bytes and SHA-256 of the files above

torch.distributed.checkpoint plans who writes and who reads what, so that sharded tensors are
written where they are and another number of ranks can read them. Its own files hold pickles; ours
do not: a storage writer and reader of our own (`storage`) speak safetensors and JSON.

A checkpoint is written under another name, synced, and renamed last, so a folder with its final
name is complete. Loading trusts nothing: a file more or less, or one changed bit, and the
checkpoint is named, skipped, and the one before it is taken. One run at a time writes in the folder
(it holds `.lock`). The manifest finds what disks and
crashes do. It does not protect from somebody who may write to the folder: they can write a manifest
too. What they can do by it is to set weights and numbers; nothing in a checkpoint is executed.
"""

from omr_io.train.checkpoint.export import export_hf
from omr_io.train.checkpoint.folder import CheckpointWarning
from omr_io.train.checkpoint.random_states import RandomState, random_state, set_random_state
from omr_io.train.checkpoint.saved import Saved
from omr_io.train.checkpoint.saving import Checkpoints

__all__ = [
    "CheckpointWarning",
    "Checkpoints",
    "RandomState",
    "Saved",
    "export_hf",
    "random_state",
    "set_random_state",
]
