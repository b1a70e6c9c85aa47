"""Values as JSON, with their tensors aside.

None, booleans, numbers, strings and lists are JSON's own; {"tensor": NAME}, {"tuple": [...]} and
{"dict": [[key, value], ...]} stand for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from omr_io.errors import ConfigError


def to_json(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A value as JSON, its tensors moved to `tensors` under names that begin with `name`.

    Tuples and integer keys are kept as such. The same tensor twice (tied weights) is stored once.
    On ranks that hold the same structure, the names are the same.

    Raises:
        ConfigError: a value that could not be stored without pickle.
    """
    seen: dict[tuple[Any, ...], str] = {}

    def store(tensor: Tensor, path: str) -> dict[str, str]:
        here = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        # The storage itself, not its address: the shards that a rank has nothing of have none.
        storage = here.untyped_storage()._cdata
        key = (storage, here.storage_offset(), tensor.shape, here.stride(), tensor.dtype)
        if key not in seen:
            while path in tensors:  # keys "1" and 1, or a name with a slash
                path += "+"
            tensors[path] = tensor.detach()
            seen[key] = path
        return {"tensor": seen[key]}

    def walk(item: Any, path: str) -> Any:
        if isinstance(item, Tensor):
            return store(item, path)
        if item is None or isinstance(item, bool | int | float | str):
            return item
        if isinstance(item, tuple):
            return {"tuple": [walk(x, f"{path}/{i}") for i, x in enumerate(item)]}
        if isinstance(item, list):
            return [walk(x, f"{path}/{i}") for i, x in enumerate(item)]
        if isinstance(item, Mapping) and all(type(k) in (str, int) for k in item):
            # Pairs, so that integer keys stay integers and no key is mistaken for a tag.
            return {"dict": [[k, walk(v, f"{path}/{k}")] for k, v in item.items()]}
        raise ConfigError(
            f"cannot store a {type(item).__name__} in a checkpoint at {path!r}",
            mend="Use JSON values, tuples and tensors",
        )

    return walk(value, name)


def from_json(value: Any, tensor: Callable[[str], Any]) -> Any:
    """What `to_json` was given, with `tensor(name)` for each tensor.

    Raises:
        ValueError: not what `to_json` gives.
    """
    if isinstance(value, list):
        return [from_json(x, tensor) for x in value]
    if isinstance(value, dict):
        (tag, content), *more = value.items()
        if more or tag not in ("tensor", "tuple", "dict"):
            raise ValueError(f"unknown tag {tag!r}")
        if tag == "tensor":
            return tensor(content)
        if tag == "tuple":
            return tuple(from_json(x, tensor) for x in content)
        return {k: from_json(v, tensor) for k, v in content}
    return value


def tensor_names(value: Any) -> Iterator[str]:
    """The names of the tensors of a JSON value, in order, each once."""
    names: dict[str, None] = {}
    from_json(value, lambda name: names.setdefault(name))
    return iter(names)
