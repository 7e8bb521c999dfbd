"""Image files on disk as one stream of entries: class folders, tars of them, and tars of NAME.jpg + NAME.cls.

Tars are read from beginning to end and never unpacked onto the disk; links and devices in them are passed over, a
name that leads out of the archive is refused.
"""

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from hgrn2.data.read_image import BYTE_LIMIT, SUFFIXES
from hgrn2.errors import UserError
from hgrn2.files import refuse_special
from hgrn2.settings import refuse

SPLITS = {"train": "train", "training": "train", "val": "valid", "valid": "valid", "validation": "valid",
          "test": "test", "testing": "test"}  # fmt: skip
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


class Entry(NamedTuple):
    """One image file and what is known of it."""

    split: str
    """train, valid or test."""
    label: str | int
    """The name of its class, or its number where the source has numbers only."""
    name: str
    """Where it is, for messages."""
    data: bytes | Path


def is_tar(path: Path) -> bool:
    """Whether the name says that it is a tar."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def tars_in(source: Path, pattern: str = "*") -> list[Path]:
    """The tars of a folder by name, or the one tar that is given."""
    if source.is_file():
        return [source] if is_tar(source) else []
    return sorted(path for path in source.glob(pattern) if path.is_file() and is_tar(path))


def class_folders(source: Path) -> dict[str, Path]:
    """The folders of a source's splits: train/, val/ or valid/, test/."""
    found: dict[str, Path] = {}
    for path in sorted(source.iterdir()) if source.is_dir() else []:
        split = SPLITS.get(path.name.lower())
        if split and path.is_dir():
            refuse(split in found, f"{source} has two folders for the split {split}: {found.get(split)} and {path}")
            found[split] = path
    return found


def folder_entries(source: Path) -> list[Entry]:
    """Every image file of SPLIT/CLASS/, by split, class and name; a class without files is a `UserError`."""
    entries = []
    for split, folder in class_folders(source).items():
        for kind in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            files = sorted(path for path in kind.iterdir() if _is_image(path))
            refuse(not files, f"{kind} holds no image files")
            entries += [Entry(split, kind.name, str(file), file) for file in files]
    return entries


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()


def tar_entries(tars: list[Path]) -> Iterator[Entry]:
    """Every image of tars, one after another: [.../]SPLIT/CLASS/FILE, or FILE with a number in FILE's .cls beside it,
    the split then being told by the tar's name (train-0001.tar)."""
    for path in tars:
        refuse_special(path)
        try:
            with tarfile.open(path, "r|*") as archive:
                yield from _archive_entries(path, archive)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
            raise UserError(f"{path} is damaged, truncated or no tar: {error}") from None


def _archive_entries(path: Path, archive: tarfile.TarFile) -> Iterator[Entry]:
    waiting: dict[str, bytes | int] = {}  # by stem: the image or the number whose other half has not come yet
    for member in archive:
        if not member.isfile():
            continue
        where, parts = f"{path}:{member.name}", PurePosixPath(member.name).parts
        refuse(member.name.startswith("/") or ".." in parts, f"{where}: a name that leads out of the archive")
        suffix = PurePosixPath(member.name).suffix.lower()
        if suffix not in (*SUFFIXES, ".cls") or parts[-1].startswith("."):
            continue
        refuse(member.size > BYTE_LIMIT, f"{where} has {member.size:,} bytes; {BYTE_LIMIT:,} at most are read")
        stream = archive.extractfile(member)
        assert stream is not None  # it is a plain file
        data = _whole(stream, member.size, where)
        *_, above, kind, _ = ("", "", *parts)
        if above.lower() in SPLITS and suffix != ".cls":
            yield Entry(SPLITS[above.lower()], kind, where, data)
            continue
        stem = member.name[: -len(suffix)]
        half = _number(data, where) if suffix == ".cls" else data
        other = waiting.pop(stem, None)
        if other is None or isinstance(other, int) == isinstance(half, int):
            waiting[stem] = half
            refuse(len(waiting) > 1000, f"{path}: {stem} and others lie in no split/class/ and have no .cls")
            continue
        label, image = (half, other) if isinstance(half, int) else (other, half)
        assert isinstance(label, int)
        assert isinstance(image, bytes)
        yield Entry(_split_of(path), label, where, image)
    refuse(bool(waiting), f"{path}: {next(iter(waiting), '')} lies in no split/class/, and .cls or image lacks")


def _whole(stream: IO[bytes], size: int, where: str) -> bytes:
    data = stream.read()
    refuse(len(data) != size, f"{where} is truncated")
    return data


def _number(data: bytes, where: str) -> int:
    text = data[:100].decode("ascii", "replace").strip()
    refuse(not text.isdigit(), f"{where} must hold the number of a class, not {text[:20]!r}")
    return int(text)


def _split_of(path: Path) -> str:
    found = {SPLITS[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in SPLITS}
    refuse(len(found) != 1, f"{path}: its name must say whether it is of train, val or test (as train-0001.tar)")
    return found.pop()
