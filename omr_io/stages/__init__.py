"""Online stages for a stream of samples that has no index: decode, tokenize and pack as it comes.

    import webdataset as wds
    from omr_io import stages

    pipeline = wds.DataPipeline(
        wds.SimpleShardList(urls),
        wds.split_by_node,
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(1000),
        stages.encode(tokenizer=tokenizer, vision=vision),
        stages.pack(seq_len=8192),
    )
    for batch in wds.WebLoader(pipeline, batch_size=None, num_workers=4):
        ...

A stage is a callable from an iterable to an iterator, so webdataset is not needed: any iterable of
dicts will do, `stages.pack(seq_len=8192)(stages.encode(...)(samples))`. Stages can be pickled, and
batches go from worker to consumer as they are.

A sample's ids, labels and pixels, and the layout of a batch, are those of `omr_io.DataLoader`. What
follows from a plan cannot be had from a stream: see `Pack`.
"""

from omr_io.stages.encoding import Encode, OnBad, encode
from omr_io.stages.packing import Pack, pack
from omr_io.stages.records import RecordOf, recognise
from omr_io.stages.samples import SampleForm, StreamedSample

__all__ = [
    "Encode",
    "OnBad",
    "Pack",
    "RecordOf",
    "SampleForm",
    "StreamedSample",
    "encode",
    "pack",
    "recognise",
]
