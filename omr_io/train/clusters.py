"""Which samples are not independent: they share an image."""

from __future__ import annotations

from collections.abc import Sequence

from omr_io.sample_set import SampleSet


def image_clusters(shards: SampleSet, numbers: Sequence[int]) -> list[str]:
    """A cluster for each sample: samples that share an image, also through others, share it.

    Images are the same if their encoded bytes are (the index' XXH3-128). A sample without an image
    is a cluster of its own. Crops and other views of a study are not found so: name a column for
    those.
    """
    owner: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := owner.setdefault(name, name)) != name:
            owner[name] = owner[above]  # halve the way
            name = above
        return name

    first: list[str] = []
    for number in numbers:
        begin, end = shards.image_offsets[number : number + 2].tolist()
        hashes = [f"image:{shards.image_hashes[i].tobytes().hex()}" for i in range(begin, end)]
        names = [root(name) for name in hashes] or [f"key:{shards.key(number)}"]
        for other in names[1:]:
            owner[root(other)] = root(names[0])
        first.append(names[0])
    return [root(name) if name in owner else name for name in first]
