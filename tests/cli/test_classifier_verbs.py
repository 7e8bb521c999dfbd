"""`hgrn2 eval` and `hgrn2 classify` on classifiers: what they print, and one line for what does not fit."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.data.classes import Described, Examples, examples_of, write_examples
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import SequenceConfig, VisionConfig
from hgrn2.models.saved import load_classifier, save_model
from hgrn2.models.sequence import SequenceClassifier
from hgrn2.models.vision import VisionClassifier

DOCS = Path(__file__).parents[2] / "docs"
STACK: dict[str, Any] = {"width": 16, "layers": 1, "glu_width": 16}
NAMES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu")


def images(count: int, channels: int = 3, classes: tuple[str, ...] = NAMES) -> tuple[Described, dict[str, Examples]]:
    random = np.random.default_rng(0)
    splits = {
        name: Examples(
            a=random.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8),
            labels=np.arange(count, dtype=np.int64) % len(classes),
        )
        for name in ("train", "valid", "test")
    }
    return Described(task="zoo", classes=classes, vocab_size=256, origin="drawn by chance"), splits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with examples and a run of a few steps on them."""
    folder = tmp_path_factory.mktemp("classifiers")
    write_examples(folder / "zoo", *images(35))
    command = [
        "train",
        "image",
        "cifar10",
        "--data",
        str(folder / "zoo"),
        "--out",
        str(folder / "run"),
        "--size",
        "small",
    ]
    tiny = ["train.steps=4", "train.batch_size=8", "model.width=16", "model.glu_width=16", "model.layers=1"]
    assert entry([*command, "--json", "--device", "cpu", "--set", *tiny, "data.augment.crop_padding=0"]) == 0
    return folder


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "model"
    mixer = MixerConfig(head_size=4, direction="bidirectional")
    config = SequenceConfig(classes=2, vocab_size=257, positions="learned", max_length=12, mixer=mixer, **STACK)
    torch.manual_seed(0)
    save_model(folder, SequenceClassifier(config))
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert entry([*arguments, "--json", "--device", "cpu"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert entry([*arguments, "--device", "cpu"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    lines = [line for line in error.splitlines() if line.startswith("hgrn2: error: ")]
    assert len(lines) == 1
    return lines[0]


def image(path: Path, pixels: np.ndarray) -> str:
    Image = pytest.importorskip("PIL.Image", reason="Pillow is the extra vision")
    Image.fromarray(pixels).save(path)
    return str(path)


def test_eval_agrees_with_the_end_of_training_and_with_plain_counting(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((place / "run" / "summary.json").read_text())["held_out"]["test"]
    found = printed(capsys, "eval", str(place / "run"))
    assert found["accuracy"] == summary["accuracy"]
    assert found["loss"] == pytest.approx(summary["loss"], rel=1e-6)
    model = load_classifier(place / "run")
    test = images(35)[1]["test"]
    with torch.inference_mode():
        inputs = torch.from_numpy(test.a).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        logits = model(inputs)
    labels = torch.from_numpy(test.labels)
    assert found["accuracy"] == (logits.argmax(-1) == labels).double().mean().item()
    expected = torch.zeros(7, 7, dtype=torch.long)
    for label, guess in zip(labels, logits.argmax(-1), strict=True):
        expected[label, guess] += 1
    assert found["confusion"] == expected.tolist()
    assert [one["name"] for one in found["classes"]] == list(NAMES)
    assert [one["accuracy"] for one in found["classes"]] == [expected[n, n].item() / 5 for n in range(7)]
    ranks = (logits.argsort(-1, descending=True) == labels[:, None]).float().argmax(-1)
    assert found["top5"] == pytest.approx((ranks < 5).float().mean().item())


def test_eval_for_people(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert entry(["eval", str(place / "run"), "--split", "valid", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "split valid: 35 examples" in out
    assert "among the first five" in out
    assert all(name in out for name in NAMES)


def test_eval_of_a_saved_classifier_needs_data(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = VisionConfig(
        classes=7, image_size=8, patch=4, mixer=MixerConfig(head_size=4, direction="bidirectional"), **STACK
    )
    save_model(tmp_path / "model", VisionClassifier(config))
    assert "give --data" in refused(capsys, "eval", str(tmp_path / "model"))
    found = printed(capsys, "eval", str(tmp_path / "model"), "--data", str(place / "zoo"))
    assert found["examples"] == 35


def test_eval_refuses_data_that_does_not_fit(
    place: Path, text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(place / "run")
    write_examples(tmp_path / "few", *images(10, classes=("ant", "bee")))
    assert "2 classes, the model has 7" in refused(capsys, "eval", run, "--data", str(tmp_path / "few"))
    write_examples(tmp_path / "grey", *images(10, channels=1))
    assert "1 channels, the model reads 3" in refused(capsys, "eval", run, "--data", str(tmp_path / "grey"))
    assert "no split 'no'" in refused(capsys, "eval", run, "--split", "no")
    assert "no prepared examples" in refused(capsys, "eval", run, "--data", str(tmp_path))
    assert "--window is for language models" in refused(capsys, "eval", run, "--window", "3")
    for name, length, vocabulary, word in (("long", 20, 257, "positions"), ("words", 5, 999, "token ids up to 998")):
        tokens = [np.ones(length, dtype=np.uint16)] * 4
        described = Described(task=name, classes=("no", "yes"), vocab_size=vocabulary, origin="made up")
        write_examples(tmp_path / name, described, {"test": examples_of(tokens, [0, 1, 0, 1], "uint16")})
        assert word in refused(capsys, "eval", str(text_model), "--data", str(tmp_path / name))


def test_classify_names_the_classes_that_the_model_finds(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = images(3)[1]["test"].a
    files = [image(tmp_path / f"{n}.png", one) for n, one in enumerate(pixels)]
    found = printed(capsys, "classify", str(place / "run"), *files)
    with torch.inference_mode():
        logits = load_classifier(place / "run")(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 * 2 - 1)
    chances, classes = logits.softmax(-1).topk(5)
    for answer, file, number, chance in zip(found["answers"], files, classes, chances, strict=True):
        assert answer["input"] == file
        assert [one["name"] for one in answer["classes"]] == [NAMES[n] for n in number]
        assert [one["chance"] for one in answer["classes"]] == pytest.approx(chance.tolist(), rel=1e-5)
    capsys.readouterr()
    assert entry(["classify", str(place / "run"), *files, "--device", "cpu"]) == 0
    assert f"{found['answers'][0]['classes'][0]['chance']:.1%}" in capsys.readouterr().out


def test_classify_takes_any_size_when_told(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = image(tmp_path / "wide.png", np.full((20, 36, 3), 90, dtype=np.uint8))
    for size in ((), ("--size", "16"), ("--size", "0")):
        assert len(printed(capsys, "classify", str(place / "run"), file, *size)["answers"]) == 1
    odd = image(tmp_path / "odd.png", np.full((21, 36, 3), 90, dtype=np.uint8))
    assert "do not divide into patches of 4" in refused(capsys, "classify", str(place / "run"), odd, "--size", "0")


def test_classify_refuses_or_leaves_out(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(place / "run")
    grey = image(tmp_path / "grey.png", np.full((8, 8), 90, dtype=np.uint8))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff and no more")
    assert "one channel (grey), the model reads 3 channels" in refused(capsys, "classify", run, grey)
    assert "bad.jpg cannot be read" in refused(capsys, "classify", run, grey, str(bad), "--convert")
    found = printed(capsys, "classify", run, grey, str(bad), "--convert", "--corrupt", "skip")
    assert (found["skipped"], len(found["answers"])) == (1, 1)
    assert "none of 1 images" in refused(capsys, "classify", run, str(bad), "--corrupt", "skip")
    assert "does not exist" in refused(capsys, "classify", run, str(tmp_path / "no.png"))
    assert "is a folder" in refused(capsys, "classify", run, str(tmp_path))
    assert "give images, or --text" in refused(capsys, "classify", run)
    assert "does not read texts" in refused(capsys, "classify", run, "--text", "hello")


def test_classify_reads_texts_as_bytes(text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = printed(capsys, "classify", str(text_model), "--text", "süß")["answers"]
    ids = torch.tensor([[byte + 1 for byte in "süß".encode()]])
    with torch.inference_mode():
        chances = load_classifier(text_model)(ids).softmax(-1)[0]
    assert {one["number"]: one["chance"] for one in answer["classes"]} == pytest.approx(
        dict(enumerate(chances.tolist()))
    )
    (tmp_path / "text.txt").write_text("süß", encoding="utf-8")
    assert (
        printed(capsys, "classify", str(text_model), "--text-file", str(tmp_path / "text.txt"))["answers"][0] == answer
    )
    assert "12 positions" in refused(capsys, "classify", str(text_model), "--text", "thirteen bytes")
    assert "is empty" in refused(capsys, "classify", str(text_model), "--text", "")


def commands(page: str, verbs: tuple[str, ...]) -> list[list[str]]:
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [
        shlex.split(line, comments=True)[1:] for line in lines if line.startswith(tuple(f"hgrn2 {v}" for v in verbs))
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        *commands("classifiers.md", ("eval", "classify")),
        *commands("reproduce.md", ("reproduce",)),
        *commands("lra.md", ("train", "reproduce")),
    ],
    ids=" ".join,
)
def test_what_the_pages_say_to_type_is_understood(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry([*arguments[: 2 if arguments[0] in ("reproduce", "train") else 1], "--help"]) == 0
    known = capsys.readouterr().out
    assert all(word in known for word in arguments if word.startswith("--"))
