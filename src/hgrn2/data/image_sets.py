"""Published sets in their published files: CIFAR-10's binary version, and IDX files as of MNIST and Fashion-MNIST."""

import struct
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hgrn2.data.classes import check_labels
from hgrn2.data.reading import open_binary
from hgrn2.errors import UserError
from hgrn2.files import refuse_special
from hgrn2.settings import refuse

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR_RECORD = 1 + 3 * 32 * 32
CIFAR_FILES = {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)}
CIFAR_TARS = ("cifar-10-binary.tar.gz", "cifar-10-binary.tar")
CIFAR_LIMIT = 20_000 * CIFAR_RECORD  # twice a published file
IDX_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
             "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
IDX_LIMIT = 1 << 31


class Labelled(NamedTuple):
    """Images uint8 [N,H,W,C] and labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


def find_cifar10(source: Path) -> Path | None:
    """The folder or tar of CIFAR-10's binary version in (or at) `source`; None where there is none.

    Raises:
        UserError: only the pickled version is there.
    """
    if source.is_file():
        refuse("cifar-10-python" in source.name, _pickled(source))
        return source if source.name in CIFAR_TARS else None
    names = {name for files in CIFAR_FILES.values() for name in files}
    for folder in (source, source / "cifar-10-batches-bin"):
        if any((folder / name).exists() for name in names):
            return folder
    for name in CIFAR_TARS:
        if (source / name).exists():
            return source / name
    for path in (source / "cifar-10-python.tar.gz", source / "cifar-10-batches-py", source / "data_batch_1"):
        refuse(path.exists(), _pickled(path))
    return None


def _pickled(path: Path) -> str:
    return (
        f"{path} is the Python version of CIFAR-10, which is pickled: reading it could run any code; "
        "download the binary version (cifar-10-binary.tar.gz)"
    )


def read_cifar10(place: Path) -> dict[str, Labelled]:
    """CIFAR-10 from what `find_cifar10` found: train of five files, and test."""
    blobs = _from_tar(place) if place.is_file() else {p.name: p for p in place.iterdir() if p.suffix == ".bin"}
    splits = {}
    for split, names in CIFAR_FILES.items():
        parts = []
        for name in names:
            refuse(name not in blobs, f"{place} lacks {name}")
            blob = blobs[name]
            data = blob if isinstance(blob, bytes) else _read(blob, CIFAR_LIMIT)
            parts.append(_cifar_records(data, f"{place / name}"))
        splits[split] = Labelled(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return splits


def _cifar_records(data: bytes, where: str) -> Labelled:
    count, rest = divmod(len(data), CIFAR_RECORD)
    refuse(
        not count or bool(rest), f"{where} is truncated or damaged: {len(data):,} bytes are no whole number of images"
    )
    records = np.frombuffer(data, dtype=np.uint8).reshape(count, CIFAR_RECORD)
    labels = records[:, 0].astype(np.int64)
    check_labels(labels, len(CIFAR10), where)
    return Labelled(records[:, 1:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _from_tar(path: Path) -> dict[str, bytes]:
    names, found = {name for files in CIFAR_FILES.values() for name in files}, {}
    refuse_special(path)
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in names:
                    refuse(member.size > CIFAR_LIMIT, f"{path}:{member.name} has {member.size:,} bytes: too many")
                    stream = archive.extractfile(member)
                    found[name] = stream.read() if stream is not None else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged, truncated or no tar: {error}") from None
    return found


def read_idx_set(source: Path) -> dict[str, Labelled]:
    """MNIST's four files (plain or .gz) as train and test; images [N,28,28,1] or whatever their headers say."""
    refuse(not source.is_dir(), f"{source} is not a folder with IDX files such as {IDX_FILES['train'][0]}.gz")
    splits = {}
    for split, (images_name, labels_name) in IDX_FILES.items():
        images_path, labels_path = _idx_path(source, images_name), _idx_path(source, labels_name)
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1).astype(np.int64)
        refuse(
            len(images) != len(labels),
            f"{images_path} has {len(images)} images, {labels_path} has {len(labels)} labels",
        )
        check_labels(labels, 10, str(labels_path))
        splits[split] = Labelled(images[..., None], labels)
    return splits


def _idx_path(source: Path, name: str) -> Path:
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"):
        if (source / candidate).is_file():
            return source / candidate
    raise UserError(f"{source} lacks {name} (or {name}.gz)")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of bytes with so many dimensions, plain or .gz.

    Raises:
        UserError: another header, fewer or more bytes than it promises.
    """
    with open_binary(path) as opened:
        magic = opened.stream.read(4)
        wanted = bytes((0, 0, 8, dimensions))
        refuse(magic != wanted, f"{path} has the header {magic.hex() or 'of an empty file'}, not {wanted.hex()} of IDX")
        sizes = opened.stream.read(4 * dimensions)
        refuse(len(sizes) != 4 * dimensions, f"{path} is truncated")
        shape = struct.unpack(f">{dimensions}I", sizes)
        count = int(np.prod(shape, dtype=object))
        refuse(not 0 < count <= IDX_LIMIT, f"{path}: its header promises {count:,} bytes")
        data = opened.stream.read(count + 1)
    refuse(len(data) != count, f"{path} is {'truncated' if len(data) < count else 'longer than its header says'}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _read(path: Path, limit: int) -> bytes:
    with open_binary(path) as opened:
        data = opened.stream.read(limit + 1)
    refuse(len(data) > limit, f"{path} has more than {limit:,} bytes")
    return data
