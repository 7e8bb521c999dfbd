"""`hgrn2 train classify` from a person's tables to answers: trained once, asked in every way."""

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrn2.cli.main import entry
from hgrn2.data.classes import Described, Examples, write_examples
from hgrn2.files import read_json
from hgrn2.tasks.classify.own_images import patch_of

SMALL = [
    "--minutes", "0", "--device", "cpu", "--set", "train.steps=30", "train.batch_size=16", "model.width=16",
    "model.glu_width=16", "model.layers=1", "model.dropout=0", "data.multiple=8", "train.eval_every=10",
    "optim.lr=2e-2", "optim.warmup_steps=2", "train.average=0", "data.drop_tokens=0",
]  # fmt: skip
WORDS = {"very good": "aaa ab", "[red]bad[/red]": "zz zzy", "so-so": "mm nm"}


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    choice = random.Random(seed)
    rows = []
    for n in range(count):
        label = list(WORDS)[n % 3]
        letters = WORDS[label].split()
        rows.append((" ".join(choice.choice(letters) for _ in range(choice.randrange(3, 8))), label))
    return rows


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("what they said", "Label")) -> Path:
    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=";").writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with said.csv, new.csv and the finished run `run` on the first."""
    folder = tmp_path_factory.mktemp("own")
    write_csv(folder / "said.csv", sentences(120, 0))
    write_csv(folder / "new.csv", sentences(30, 1))
    assert entry(["train", "classify", str(folder / "said.csv"), "--out", str(folder / "run"), *SMALL]) == 0
    return folder


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the images, which take longer than the training."""
    monkeypatch.setattr("hgrn2.tasks.classify.task.write_report", lambda *_, **__: None)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command and returns what it printed as JSON."""

    def run(*arguments: object) -> Any:
        capsys.readouterr()
        assert entry([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with 2 and returns its message."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert entry([*map(str, arguments)]) == 2
        return capsys.readouterr().err

    return run


def test_it_learns_and_says_so(place: Path) -> None:
    summary = read_json(place / "run" / "summary.json")
    assert summary["classes"] == ["[red]bad[/red]", "so-so", "very good"]
    assert summary["held_out"]["valid"]["examples"] == 12
    assert summary["held_out"]["valid"]["accuracy"] == 1
    assert summary["baseline"]["accuracy"] == pytest.approx(1 / 3)
    assert "said.csv" in summary["origin"]
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    for words in ("On held-out examples", "100.0%", "taken most often for", "[red]bad[/red]"):
        assert words in page
    for wrong in ("perplexity", "IMDb", "held-out text", "images are named"):
        assert wrong not in page
    pytest.importorskip("matplotlib")
    assert {"accuracy.png", "confusion.png", "loss.png"} <= {file.name for file in (place / "run/figures").iterdir()}


@pytest.mark.usefixtures("no_report")
def test_what_was_understood_is_told(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*sentences(60, 0), ("aaa " * 9, "very good"), ("q", "rare")]
    path = write_csv(tmp_path / "a.csv", [*rows, rows[0]])
    one = ["--set", "train.steps=1", *SMALL[5:], "train.batch_size=8"]
    short = [
        "--tokenizer",
        "bytes",
        "--minutes",
        "0",
        "--max-length",
        "20",
        "--valid-fraction",
        "0.3",
        "--device",
        "cpu",
    ]
    assert entry(["train", "classify", str(path), "--out", str(tmp_path / "run"), *short, *one]) == 0
    said = capsys.readouterr().err
    for words in (
        "4 classes", "text from column 'what they said', labels from 'Label'", "classes are uneven",
        "fewer than 10 training examples: 'rare'", "cut to their first 20 tokens", "also stand in the training data",
    ):  # fmt: skip
        assert words in said


def test_eval_on_its_own_examples_and_on_a_table(place: Path, printed: Callable[..., Any]) -> None:
    found = printed("eval", place / "run")
    assert (found["split"], found["examples"], found["accuracy"]) == ("valid", 12, 1.0)
    table = printed("eval", place / "run", "--data", place / "new.csv")
    assert (table["examples"], table["accuracy"]) == (30, 1.0)
    assert [one["name"] for one in table["classes"]] == ["[red]bad[/red]", "so-so", "very good"]
    assert np.trace(table["confusion"]) == 30


def test_classify_texts_and_tables(
    place: Path, tmp_path: Path, printed: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (answer,) = printed("classify", place / "run", "--text", "zzy zz zz")["answers"]
    assert answer["classes"][0]["name"] == "[red]bad[/red]"
    assert sum(one["chance"] for one in answer["classes"]) == pytest.approx(1)
    unlabelled = write_csv(tmp_path / "new.csv", [(text,) for text, _ in sentences(30, 1)], ("what they said",))
    found = printed("classify", place / "run", unlabelled)["answers"]
    assert [one["classes"][0]["name"] for one in found] == [label for _, label in sentences(30, 1)]
    assert found[0]["input"].endswith("new.csv, row 2")
    out = tmp_path / "named.csv"
    assert entry(["classify", str(place / "run"), str(unlabelled), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "[red]bad[/red]" in said
    assert "the first 20 of 30 rows" in said
    with open(out, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["class"] for row in rows] == [label for _, label in sentences(30, 1)]
    assert [row["input"] for row in rows] == [text for text, _ in sentences(30, 1)]


@pytest.mark.usefixtures("no_report")
def test_the_same_command_goes_on_and_another_is_refused(
    place: Path, tmp_path: Path, refused: Callable[..., str], printed: Callable[..., Any]
) -> None:
    path = write_csv(tmp_path / "said.csv", sentences(120, 0))
    command = ["train", "classify", path, "--out", tmp_path / "run", *SMALL]
    shutil.copytree(place / "run", tmp_path / "run")
    assert printed(*command, "train.steps=32")["steps"] == 32
    assert entry(["data", "verify", str(tmp_path / "run" / "examples")]) == 0
    write_csv(path, sentences(120, 5))
    assert "was made from other files or options; use another --out or --restart" in refused(*command)
    assert printed(*command, "train.steps=1", "--restart")["steps"] == 1


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("tokenizer", ["chars", "bpe:300"])
def test_other_tokenizers(tokenizer: str, place: Path, tmp_path: Path, printed: Callable[..., Any]) -> None:
    pytest.importorskip("tokenizers")
    out = tmp_path / "run"
    printed("train", "classify", place / "said.csv", "--tokenizer", tokenizer, "--out", out, *SMALL)
    assert printed("eval", out, "--data", place / "new.csv")["accuracy"] > 0.9
    (answer,) = printed("classify", out, "--text", "aaa ab aaa")["answers"]
    assert answer["classes"][0]["name"] == "very good"


@pytest.mark.usefixtures("no_report")
def test_sequences_of_numbers(
    tmp_path: Path, printed: Callable[..., Any], refused: Callable[..., str]
) -> None:  # fmt: skip
    random_numbers = np.random.default_rng(0)
    rows = []
    for n in range(90):
        slope = (n % 3 - 1) * 100
        values = 5000 + slope * np.arange(4 + n % 5) + random_numbers.normal(0, 20, 4 + n % 5)
        rows.append({"series": values.round(2).tolist(), "label": n % 3})
    path = tmp_path / "series.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    assert printed("train", "classify", path, "--out", out, *SMALL)["held_out"]["valid"]["accuracy"] == 1
    assert printed("eval", out)["accuracy"] == 1
    assert printed("data", "verify", out / "examples")["examples"] == 90
    found = printed("classify", out, path)["answers"]
    assert [one["classes"][0]["name"] for one in found] == [str(n % 3) for n in range(90)]
    path.write_text('{"series": [[1, 2], [3, 4]]}\n')
    assert "a step has 2 numbers, the model reads 1" in refused("classify", out, path)
    assert "does not read texts" in refused("classify", out, "--text", "1 2 3")


def test_what_does_not_fit_is_said_in_a_line(place: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    said, run = place / "said.csv", place / "run"
    train = ["train", "classify", said, "--out", tmp_path / "no"]
    assert "no column 'labels'; did you mean Label?" in refused(*train, "--label-column", "labels")
    assert "is named twice" in refused(*train, "--valid", said)
    assert "does not exist" in refused("train", "classify", tmp_path / "none.csv")
    assert "is no table" in refused("train", "classify", run / "report.html")
    assert "not both" in refused(*train, "--text-column", "a", "--number-columns", "b")
    assert "--out is for the rows of tables" in refused("classify", run, "--text", "a", "--out", tmp_path / "x")
    assert "the text is empty" in refused("classify", run, "--text", " ")
    other = write_csv(tmp_path / "other.csv", [("a", "b")], ("comment", "Label"))
    assert "has no field 'what they said' (fields: comment, Label)" in refused("classify", run, other)
    strange = write_csv(tmp_path / "strange.csv", [("aaa", "fine")])
    message = refused("eval", run, "--data", strange)
    assert "strange.csv, row 2: the label 'fine' does not occur in the training data" in message
    assert not (tmp_path / "no").exists()


def test_a_folder_of_ones_own_images(tmp_path: Path, printed: Callable[..., Any], no_report: None) -> None:
    """Sides that no recipe foresaw, few images, no test split; and what is said of such a folder."""
    random_numbers = np.random.default_rng(0)
    splits = {
        name: Examples(
            a=random_numbers.integers(0, 256, (count, 50, 70, 3), dtype=np.uint8), labels=np.arange(count) % 2
        )
        for name, count in (("train", 12), ("valid", 4))
    }
    described = Described(task="pets", classes=("cat", "dog"), vocab_size=256, origin="images of pets")
    write_examples(tmp_path / "pets", described, splits)
    found = printed(
        "train", "image", tmp_path / "pets", "--out", tmp_path / "run", "--device", "cpu",
        "--set", "train.steps=1", "model.width=16", "model.glu_width=16", "model.layers=1",
    )  # fmt: skip
    assert list(found["held_out"]) == ["valid"]
    config = read_json(tmp_path / "run" / "config.json")
    assert (config["model"]["image_size"], config["model"]["patch"], config["train"]["batch_size"]) == (70, 5, 3)


@pytest.mark.parametrize(
    ("sides", "patch"), [((32, 32), 2), ((28, 28), 2), ((224, 224), 14), ((50, 70), 5), ((53, 53), 1), ((8, 8), 1)]
)
def test_patches_divide_any_image(sides: tuple[int, int], patch: int) -> None:
    assert patch_of(*sides) == patch


def test_info_says_what_images_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for channels, kind in ((1, "grey"), (3, "colour")):
        images = Examples(a=np.zeros((2, 4, 6, channels), dtype=np.uint8), labels=np.arange(2))
        described = Described(task="t", classes=("a", "b"), vocab_size=256, origin="nowhere")
        write_examples(tmp_path / kind, described, {"train": images})
        assert entry(["data", "info", str(tmp_path / kind)]) == 0
        said = capsys.readouterr().out
        assert f"images of 6 x 4 in {kind}" in said
        assert "token ids" not in said
