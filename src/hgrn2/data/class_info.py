"""What a folder of labelled examples holds, in numbers."""

from typing import Any

import numpy as np

from hgrn2.data.classes import ClassData


def class_info(data: ClassData) -> dict[str, Any]:
    """Task, origin, classes, seed, settings; and of each split how many examples, how they are labelled, how long.

    `labels` counts the examples of each class; `lengths` are the least, the median and the greatest number of tokens
    (of a pair the longer text, of an image its pixels); `bytes` are those of its files.
    """
    described = data.described
    splits = {}
    for name, stated in data.manifest["splits"].items():
        examples = data.split(name)
        lengths = examples.lengths(np.arange(len(examples)))
        files = [array["file"] for array in stated["arrays"].values()]
        splits[name] = {
            "count": len(examples),
            "labels": np.bincount(examples.labels, minlength=len(described.classes)).tolist(),
            "lengths": {"least": int(lengths.min()), "median": int(np.median(lengths)), "most": int(lengths.max())},
            "shape": list(examples.a.shape[1:]) if examples.a_offsets is None else None,
            "pairs": examples.b is not None,
            "bytes": sum((data.folder / file).stat().st_size for file in files),
        }
    return {
        "task": described.task,
        "origin": described.origin,
        "classes": list(described.classes),
        "vocab_size": described.vocab_size,
        "seed": described.seed,
        "settings": described.settings,
        "splits": splits,
    }
