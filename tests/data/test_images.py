"""Every format in which images come, written here in small and read back; what is wrong with it is one line."""

import gzip
import io
import json
import re
import shlex
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hgrn2.cli.main import entry
from hgrn2.data.classes import ClassData, open_examples
from hgrn2.data.image_files import tar_entries
from hgrn2.data.image_sets import CIFAR10
from hgrn2.data.lra.images import make_image
from hgrn2.data.read_image import read_image

RANDOM = np.random.default_rng(0)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def write_folder(root: Path, splits: dict[str, dict[str, list[bytes]]], suffix: str = ".png") -> Path:
    for split, classes in splits.items():
        for name, files in classes.items():
            (root / split / name).mkdir(parents=True)
            for n, data in enumerate(files):
                (root / split / name / f"{n:04}{suffix}").write_bytes(data)
    return root


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_idx(path: Path, array: np.ndarray, magic: int | None = None) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim if magic is None else magic, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder: Path, suffix: str = ".gz", count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir()
    images, labels = noise(count, 28, 28), np.arange(count) % 10
    for prefix, size in (("train", count), ("t10k", 20)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images[:size])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels[:size])
    return images, labels


def write_cifar(folder: Path, count: int = 20) -> np.ndarray:
    """Records of one byte of label and the three planes; returns the images [6 * count,32,32,3]."""
    folder.mkdir(parents=True)
    planes = noise(6 * count, 3, 32, 32)
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    for part, name in enumerate(names):
        rows = planes[part * count : (part + 1) * count].reshape(count, -1)
        labels = (np.arange(count) % 10).astype(np.uint8)[:, None]
        (folder / name).write_bytes(np.concatenate([labels, rows], axis=1).tobytes())
    return planes.transpose(0, 2, 3, 1)


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[ClassData, str]]:
    """Runs `hgrn2 data image`, and opens what it made."""

    def run(*arguments: str | Path) -> tuple[ClassData, str]:
        code = entry(["data", "image", *map(str, arguments), "--out", str(tmp_path / "out")])
        said = capsys.readouterr()
        assert code == 0, said.err
        return open_examples(tmp_path / "out"), said.out

    return run


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs it on something wrong: one line, exit code 2, nothing left behind. Returns the line."""

    def run(*arguments: str | Path) -> str:
        before = sorted(tmp_path.iterdir())
        assert entry(["data", "image", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == 1
        assert sorted(tmp_path.iterdir()) == before
        return lines[0]

    return run


def with_pixels(data: ClassData, split: str) -> list[tuple[bytes, str]]:
    """Every image with the name of its class, in any order."""
    examples = data.split(split)
    return sorted((examples.a[n].tobytes(), data.described.classes[examples.labels[n]]) for n in range(len(examples)))


@pytest.mark.parametrize(("name", "suffix"), [("mnist", ".gz"), ("fashion-mnist", "")])
def test_idx_files(tmp_path: Path, prepare: Callable, name: str, suffix: str) -> None:
    images, labels = write_mnist(tmp_path / "files", suffix)
    data, said = prepare(name, "--source", tmp_path / "files", "--valid", "10")
    assert "60 images instead of 70,000" in said
    assert [len(data.split(split)) for split in ("train", "valid", "test")] == [30, 10, 20]
    assert np.bincount(data.split("valid").labels).tolist() == [1] * 10
    test = data.split("test")
    assert np.array_equal(test.a[..., 0], images[:20])
    assert np.array_equal(test.labels, labels[:20])
    learned = sorted(with_pixels(data, "train") + with_pixels(data, "valid"))
    names = data.described.classes
    assert learned == sorted((image.tobytes(), names[label]) for image, label in zip(images, labels, strict=True))
    mean = data.described.settings["mean"][0]
    assert mean == pytest.approx(data.split("train").a.mean() / 255, abs=1e-4)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: write_idx(f / "train-images-idx3-ubyte", noise(40, 28, 28), 0x801), "header 00000801, not 00000803"),
        (lambda f: (f / "train-images-idx3-ubyte").write_bytes(b""), "header of an empty file"),
        (lambda f: write_idx(f / "train-labels-idx1-ubyte", np.arange(40)), "label 10 of example 10 is outside 0 to 9"),
        (lambda f: write_idx(f / "train-labels-idx1-ubyte", np.zeros(39)), "40 images.* 39 labels"),
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "lacks t10k-labels-idx1-ubyte"),
        (lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x14abc"), "truncated"),
        (lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02abc"), "longer than its header"),
        (lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12), "promises"),
    ],
)  # fmt: skip
def test_wrong_idx_files(tmp_path: Path, refused: Callable, damage: Callable, said: str) -> None:
    write_mnist(tmp_path / "files", "")
    damage(tmp_path / "files")
    assert re.search(said, refused("mnist", "--source", tmp_path / "files"))


def test_a_truncated_gzip(tmp_path: Path, refused: Callable) -> None:
    write_mnist(tmp_path / "files")
    path = tmp_path / "files" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    assert "train-images-idx3-ubyte.gz is damaged" in refused("mnist", "--source", tmp_path / "files")


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_cifar10_binary(tmp_path: Path, prepare: Callable, form: str) -> None:
    source = tmp_path / "files" / "cifar-10-batches-bin"
    images = write_cifar(source)
    if form == "tar":
        members = {f"cifar-10-batches-bin/{p.name}": p.read_bytes() for p in source.iterdir()}
        (tmp_path / "packed").mkdir()
        write_tar(tmp_path / "packed" / "cifar-10-binary.tar.gz", members, "w:gz")
    data, _ = prepare("cifar10", "--source", source.parent if form == "folder" else tmp_path / "packed", "--valid", "0")
    assert data.described.classes == CIFAR10
    assert "valid" not in data.manifest["splits"]
    assert np.array_equal(data.split("train").a, images[:100])
    assert np.array_equal(data.split("test").a, images[100:])
    assert data.split("train").labels.tolist() == list(range(10)) * 10


def test_wrong_cifar10(tmp_path: Path, refused: Callable) -> None:
    source = tmp_path / "bin"
    write_cifar(source)
    path = source / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "data_batch_3.bin is truncated" in refused("cifar10", "--source", source)
    path.write_bytes(b"\x0a" + whole[1:])
    assert "data_batch_3.bin: label 10 of example 0" in refused("cifar10", "--source", source)
    path.unlink()
    assert "lacks data_batch_3.bin" in refused("cifar10", "--source", source)
    pickled = tmp_path / "py"
    (pickled / "cifar-10-batches-py").mkdir(parents=True)
    assert "download the binary version" in refused("cifar10", "--source", pickled)
    assert "say with --source" in refused("cifar10")


def two_classes(count: int = 3, size: tuple[int, ...] = (8, 8, 3), kind: str = "PNG") -> dict[str, list[bytes]]:
    return {name: [encoded(noise(*size), kind) for _ in range(count)] for name in ("cat", "dog")}


def test_image_folders(tmp_path: Path, prepare: Callable) -> None:
    pixels = {(s, c): noise(3, 8, 8, 3) for s in ("train", "val") for c in ("cat", "dog")}
    source = write_folder(
        tmp_path / "pets",
        {s: {c: [encoded(p) for p in pixels[s, c]] for c in ("cat", "dog")} for s in ("train", "val")},
    )
    (source / "train" / "cat" / ".hidden.png").write_bytes(b"no image")
    data, said = prepare(source, "--workers", "2")
    assert "image files of pets" in said
    assert data.described.classes == ("cat", "dog")
    for split, folder in (("train", "train"), ("valid", "val")):
        expected = np.concatenate([pixels[folder, "cat"], pixels[folder, "dog"]])
        assert np.array_equal(data.split(split).a, expected)
        assert data.split(split).labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_tars_of_folders_are_the_folders(tmp_path: Path, prepare: Callable) -> None:
    pixels = noise(40, 8, 8, 3)
    (tmp_path / "tars").mkdir()
    members = {f"./pets/train/{'cat' if n % 2 else 'dog'}/{n:03}.png": encoded(p) for n, p in enumerate(pixels)}
    write_tar(tmp_path / "tars" / "a.tar.xz", members, "w:xz")
    data, _ = prepare(tmp_path / "tars", "--valid", "4", "--channels", "1")
    assert data.split("train").a.shape == (36, 8, 8, 1)
    assert sorted(data.split("valid").labels) == [0, 0, 1, 1]
    assert data.described.settings["converted"] == {"train": 40}
    assert data.described.settings["valid"] == 4
    assert len({image for image, _ in with_pixels(data, "train") + with_pixels(data, "valid")}) == 40


def test_tars_with_numbers_beside_images(tmp_path: Path, prepare: Callable, refused: Callable) -> None:
    pixels, source = noise(12, 8, 8, 3), tmp_path / "shards"
    source.mkdir()
    for shard, first in (("train-0", 0), ("train-1", 4), ("val-0", 8)):
        members = {}
        for n in range(first, first + 4):
            members[f"{n:03}.cls"] = str(n % 3).encode()
            members[f"{n:03}.png"] = encoded(pixels[n])
        write_tar(source / f"{shard}.tar", members)
    write_tar(source / "val-1.tar", {"9.png": encoded(pixels[0]), "9.cls": b"3"})
    assert "valid has the label 3, outside 0 to 2" in refused(source)
    write_tar(source / "val-1.tar", {"9.png": encoded(pixels[0]), "9.cls": b"-1"})
    assert "must hold the number of a class" in refused(source)
    write_tar(source / "val-1.tar", {"9.png": encoded(pixels[0])})
    assert ".cls or image lacks" in refused(source)
    (source / "val-1.tar").unlink()
    data, _ = prepare(source)
    assert data.described.classes == ("0", "1", "2")
    assert np.array_equal(data.split("train").a, pixels[:8])
    assert data.split("valid").labels.tolist() == [2, 0, 1, 2]


def test_other_sizes_are_cut_to_one(tmp_path: Path, prepare: Callable, refused: Callable) -> None:
    even = np.full((20, 40, 3), 200, dtype=np.uint8)
    even[:, :10], even[:, 30:] = 0, 0  # what the middle square of 20 x 40 leaves out
    files = [encoded(even), encoded(np.full((30, 10, 3), 200, dtype=np.uint8))]
    source = write_folder(tmp_path / "mixed", {"train": {"a": files, "b": files}, "test": {"a": files, "b": files}})
    assert "give them one size with --size" in refused(source)
    data, _ = prepare(source, "--size", "10", "--valid", "0")
    assert data.split("train").a.shape == (4, 10, 10, 3)
    assert data.split("train").a[:, :, 1:-1].min() >= 195


def test_unreadable_images_stop_or_are_counted(tmp_path: Path, prepare: Callable, refused: Callable) -> None:
    classes = two_classes(4, (16, 16, 3), "JPEG")
    classes["cat"][1] = classes["cat"][1][:-150]
    classes["dog"][2] = b"GIF89a no"
    source = write_folder(tmp_path / "pets", {"train": classes, "val": two_classes(1, (16, 16, 3), "JPEG")}, ".jpg")
    line = refused(source)
    assert "0001.jpg cannot be read" in line
    assert "--corrupt skip" in line
    data, said = prepare(source, "--corrupt", "skip")
    assert len(data.split("train")) == 6
    assert data.described.settings["skipped"] == {"train": 2}
    assert "2 unreadable and left out" in said


def test_channels_are_converted_and_counted(tmp_path: Path, prepare: Callable) -> None:
    classes = two_classes(2)
    classes["cat"].append(encoded(noise(8, 8)))
    data, said = prepare(write_folder(tmp_path / "pets", {"train": classes, "val": two_classes(1)}))
    assert data.split("train").a.shape == (5, 8, 8, 3)
    assert "1 of other channels, converted" in said
    assert data.described.settings["converted"] == {"train": 1}


def test_sixteen_bits_are_not_cut_silently(tmp_path: Path, refused: Callable) -> None:
    classes = two_classes(1)
    classes["cat"].append(encoded(noise(8, 8).astype(np.uint16) * 256))
    assert "mode I;16" in refused(write_folder(tmp_path / "pets", {"train": classes}))


def test_classes_that_a_split_lacks(tmp_path: Path, refused: Callable) -> None:
    full, part = two_classes(), {"cat": two_classes()["cat"]}
    lacking = write_folder(tmp_path / "a", {"train": full, "val": part})
    assert "valid has no images of class dog, which train has" in refused(lacking)
    beyond = write_folder(tmp_path / "b", {"train": part, "val": full})
    assert "valid has the class dog, which train lacks" in refused(beyond)
    (tmp_path / "c" / "train" / "cat").mkdir(parents=True)
    assert "holds no image files" in refused(tmp_path / "c")
    assert "no training images" in refused(write_folder(tmp_path / "d", {"test": full}))
    (tmp_path / "e").mkdir()
    assert "neither train/CLASS/ folders" in refused(tmp_path / "e")
    assert "none of cifar10" in refused("imagnet")


def test_dangerous_archives(tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {f"train/{c}/1.png": encoded(noise(8, 8, 3)) for c in ("cat", "dog")}
    path = tmp_path / "bad.tar"
    write_tar(path, {**good, "../train/cat/2.png": b"x"})
    assert "a name that leads out of the archive" in refused(path)
    write_tar(path, {**good, "/train/cat/2.png": b"x"})
    assert "a name that leads out of the archive" in refused(path)
    write_tar(path, good)
    path.write_bytes(path.read_bytes()[:700])
    assert "bad.tar" in refused(path)
    write_tar(path, good)
    monkeypatch.setattr("hgrn2.data.read_image.PIXEL_LIMIT", 63)
    assert "8 × 8 pixels are more than 63" in refused(path)
    monkeypatch.setattr("hgrn2.data.image_files.BYTE_LIMIT", 10)
    assert "10 at most are read" in refused(path)


def test_links_in_archives_are_passed_over(tmp_path: Path, prepare: Callable) -> None:
    path = tmp_path / "linked.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("cat", "dog"):
            data = encoded(noise(8, 8, 3))
            member = tarfile.TarInfo(f"train/{name}/1.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("train/cat/secret.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    data, _ = prepare(path, "--valid", "0")
    assert len(data.split("train")) == 2


def test_the_same_set_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "pets", {"train": two_classes(30), "test": two_classes(1)})
    manifests = []
    for out, extra in (("a", []), ("b", ["--workers", "2"]), ("c", ["--seed", "1"])):
        assert entry(["data", "image", str(source), "--out", str(tmp_path / out), "--json", *extra]) == 0
        manifests.append(json.loads(capsys.readouterr().out))
    assert manifests[0] == manifests[1]
    assert manifests[0]["splits"]["valid"] != manifests[2]["splits"]["valid"]
    assert manifests[0]["splits"]["valid"]["count"] == 4
    assert manifests[0]["splits"]["test"] == manifests[2]["splits"]["test"]


def test_jpeg_cifar_is_named_so(tmp_path: Path, prepare: Callable, refused: Callable) -> None:
    classes = {name: [encoded(noise(32, 32, 3), "JPEG") for _ in range(2)] for name in CIFAR10}
    other = write_folder(tmp_path / "other", {"train": two_classes(1)})
    assert "is not CIFAR-10" in refused("cifar10", "--source", other)
    source = write_folder(tmp_path / "jpeg", {"train": classes, "test": classes}, ".jpg")
    data, said = prepare("cifar10", "--source", source)
    origin = "JPEG CIFAR-10: lossy JPEG, 20 of the 50,000 training images, not comparable with published CIFAR-10"
    assert data.described.origin == origin
    assert origin in said


def test_lra_image_is_cifar10_in_grey_or_colour(tmp_path: Path) -> None:
    images = write_cifar(tmp_path / "bin")
    for grey in (True, False):
        described, splits = make_image(tmp_path / "bin", grey=grey, scratch=tmp_path, progress=lambda *_: None)
        assert {name: len(split) for name, split in splits.items()} == {"train": 90, "valid": 10, "test": 20}
        assert described.origin.startswith("LRA Image of CIFAR-10")
        test = splits["test"].a
        if grey:
            weighted = images[100:] @ np.array([0.299, 0.587, 0.114])
            assert np.abs(test[..., 0] - weighted).max() <= 0.51
        else:
            assert np.array_equal(test, images[100:])


def test_the_real_jpeg_tar_begins_as_it_should(real: Callable[[str], Path]) -> None:
    pytest.importorskip("PIL")
    entries = tar_entries([real("cifar10-jpeg-test6k.tar.xz")])
    for entry_ in (next(entries) for _ in range(20)):
        assert (entry_.split, entry_.label) == ("test", "airplane")
        image = read_image(entry_.data, 0, 3)
        assert image.pixels.shape == (32, 32, 3)
        assert image.pixels.std() > 5


@pytest.mark.full
def test_the_real_jpeg_tars(real: Callable[[str], Path], prepare: Callable) -> None:
    data, said = prepare("cifar10", "--source", real("cifar10-jpeg-train30k.tar.xz").parent)
    counts = {split: np.bincount(data.split(split).labels).tolist() for split in ("train", "valid", "test")}
    assert counts == {"train": [2800] * 10, "valid": [200] * 10, "test": [600] * 10}
    assert "lossy quality-75 JPEG, 30,000 of the 50,000 training images" in said
    assert data.described.settings["mean"] == pytest.approx([0.491, 0.482, 0.447], abs=0.005)  # as published ones
    assert data.described.settings["std"] == pytest.approx([0.247, 0.243, 0.262], abs=0.005)


PAGE = Path(__file__).parents[2] / "docs" / "images.md"


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "downloads").mkdir()
    write_mnist(tmp_path / "downloads" / "fashion")
    write_cifar(tmp_path / "downloads" / "cifar" / "cifar-10-batches-bin")
    write_folder(tmp_path / "images", {"train": two_classes(20), "val": two_classes(1)})
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert len(commands) >= 3
    for command in commands:
        assert entry(command) == 0, command
    for name, side in (("fashion", 28), ("cifar10", 32), ("images", 64)):
        data = open_examples(tmp_path / "data" / name)
        assert data.split("train").a.shape[1:3] == (side, side)
        assert data.verify() > 0


def test_the_python_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", block)
