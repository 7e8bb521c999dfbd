"""ListOps, Pathfinder, texts: what they are, that a seed decides them, and what is refused."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from hgrn2.cli.main import entry
from hgrn2.data.class_batches import ClassBatches, ClassPlan
from hgrn2.data.classes import open_examples
from hgrn2.data.lra.listops import IDS, ListOps, make_listops, read_listops, value_of
from hgrn2.data.lra.texts import make_stand_in, read_pairs, read_reviews
from hgrn2.errors import UserError

SMALL = ListOps(max_depth=4, max_args=4, min_length=8, max_length=40)


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("[MIN 4 2 9 ]", 2), ("[SM 8 9 [MAX 1 5 ] ]", 2), ("[MED 1 2 4 9 ]", 3), ("[MED 9 1 5 ]", 5)],
)
def test_value(text: str, value: int) -> None:
    assert value_of(np.array([IDS[word] for word in text.split()])) == value


@pytest.mark.parametrize("text", ["[MIN 1 2", "1 2", "]", "[MAX ]"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(UserError, match="ListOps"):
        value_of(np.array([IDS[word] for word in text.split()]))


def test_listops_are_trees_of_the_wanted_length_and_depth() -> None:
    _, splits = make_listops(SMALL, count=(200, 10, 10), seed=3)
    examples = splits["train"]
    lengths = examples.lengths(np.arange(200))
    assert lengths.min() > 8
    assert lengths.max() < 40
    for n in range(200):
        tokens = examples.first(n)
        assert value_of(tokens) == examples.labels[n]
        opened = np.cumsum((tokens >= IDS["[MIN"]) * 1 - 2 * (tokens == IDS["]"]))
        assert opened.max() <= 3


def test_workers_and_counts_change_nothing() -> None:
    _, one = make_listops(SMALL, count=(150, 10, 10), seed=5)
    _, two = make_listops(SMALL, count=(150, 10, 10), seed=5, workers=2)
    _, few = make_listops(SMALL, count=(70, 10, 10), seed=5)
    _, other = make_listops(SMALL, count=(150, 10, 10), seed=6)
    assert np.array_equal(one["train"].a, two["train"].a)
    assert np.array_equal(one["train"].first(69), few["train"].first(69))
    assert not np.array_equal(one["train"].labels, other["train"].labels)


def test_listops_file_and_its_header(tmp_path: Path) -> None:
    path = tmp_path / "basic_train.tsv"
    path.write_text("Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n")
    assert value_of(read_listops(path).first(0)) == 9
    path.write_text("text\tlabel\n[MAX 2 9 ]\t9\n")
    with pytest.raises(UserError, match="header"):
        read_listops(path)
    for line, said in (
        ("[MAX 2 9 ]\t12", "line 2: the target '12' is not a digit"),
        ("[MAX 2 9 ]\t2", "line 2: the target is 2, the value is 9"),
        ("[AVG 2 9 ]\t5", r"line 2: '\[AVG' is not a word"),
        ("[MAX 2 9\t9", "incomplete"),
    ):
        path.write_text(f"Source\tTarget\n{line}\n")
        with pytest.raises(UserError, match=said):
            read_listops(path)


def test_published_listops_as_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "listops-1000", tmp_path / "data"
    source.mkdir()
    command = ["data", "lra", "listops", "--source", str(source), "--out", str(out)]
    assert entry(command) == 2
    assert "holds no basic_train.tsv, basic_val.tsv, basic_test.tsv" in capsys.readouterr().err
    for name, target in (("train", 9), ("val", 2), ("test", 1)):
        word = {9: "MAX", 2: "MIN", 1: "SM"}[target]
        (source / f"basic_{name}.tsv").write_text(f"Source\tTarget\n( ( ( [{word} 2 ) 9 ) ] )\t{target}\n")
    assert entry([*command, "--set", "max_depth=3"]) == 2
    assert not out.exists()
    assert entry(command) == 0
    assert "files in the published form" in capsys.readouterr().out
    data = open_examples(out)
    assert [int(data.split(name).labels[0]) for name in ("train", "valid", "test")] == [9, 2, 1]


def test_all_at_once_is_what_one_at_a_time_would_be() -> None:
    """The law of the trees, against the recursion that the published generator describes: lengths and values."""
    settings = ListOps(max_depth=5, max_args=5, min_length=15, max_length=60)
    _, splits = make_listops(settings, count=(1000, 2, 2), seed=1)
    examples = splits["train"]
    random = np.random.default_rng(0)

    def grow(depth: int) -> list[int]:
        if depth == settings.max_depth or random.random() >= settings.operator_chance:
            return [int(random.integers(1, 11))]
        arguments = [token for _ in range(random.integers(2, settings.max_args + 1)) for token in grow(depth + 1)]
        return [int(random.integers(IDS["[MIN"], IDS["]"])), *arguments, IDS["]"]]

    trees = []
    while len(trees) < 1000:
        tree = grow(1)
        if settings.min_length < len(tree) < settings.max_length:
            trees.append(tree)
    lengths, values = np.array([len(tree) for tree in trees]), np.array([value_of(np.array(tree)) for tree in trees])
    ours = examples.lengths(np.arange(1000))
    bins = np.quantile(lengths, np.linspace(0, 1, 11)[1:-1])
    for one, other, count in (
        (np.digitize(ours, bins), np.digitize(lengths, bins), 10), (examples.labels, values, 10),
    ):  # fmt: skip
        a, b = np.bincount(one, minlength=count), np.bincount(other, minlength=count)
        assert ((a - b) ** 2 / (a + b)).sum() < 27.9  # chi-square with 9 degrees of freedom: once in a thousand


def test_pairs_and_reviews(tmp_path: Path) -> None:
    articles = tmp_path / "articles.jsonl"
    articles.write_text("".join(json.dumps({"text": chr(65 + n) * 200}) + "\n" for n in range(40)))
    _, splits = make_stand_in(articles, count=(40, 8, 8), passage=50)
    for n in range(40):
        same = splits["train"].first(n)[0] == splits["train"].second(n)[0]
        assert same == bool(splits["train"].labels[n])
    tsv = tmp_path / "x.train.tsv"
    tsv.write_text("1.0\ta\tb\tone\ttwo\n")
    assert bytes((read_pairs(tsv).second(0) - 1).tolist()) == b"two"
    tsv.write_text("label\tid1\tid2\ttext1\ttext2\n")
    with pytest.raises(UserError, match="header"):
        read_pairs(tsv)
    articles.write_text('{"text": "good", "label": 2}\n')
    with pytest.raises(UserError, match="label of 0 or 1"):
        read_reviews(articles)


def test_folder_and_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p"
    assert entry(["data", "lra", "pathfinder", "--out", str(out), "--count", "8", "4", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["count"] == 8
    data = open_examples(out)
    assert entry(["data", "verify", str(out), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["files"], checked["examples"]) == (6, 16)
    assert entry(["data", "info", str(out), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["task"], info["splits"]["train"]["lengths"]["median"]) == ("pathfinder", 1024)
    assert sum(info["splits"]["train"]["labels"]) == 8
    assert entry(["data", "info", str(out)]) == 0
    assert "connected" in capsys.readouterr().out
    assert entry(["data", "lra", "pathfinder", "--out", str(out)]) == 2
    batch = ClassBatches(data.split("train"), ClassPlan(batch_size=4)).batch(1)
    assert batch.images is not None
    assert batch.images.shape == (4, 32, 32, 1)
    (out / "test.a.npy").write_bytes((out / "test.a.npy").read_bytes()[:-1] + b"\1")
    assert entry(["data", "verify", str(out)]) == 2
    assert "checksum differs" in capsys.readouterr().err
    (out / "train.labels.npy").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        data.split("train")


def test_bucketed_batches_visit_everything_once_an_epoch() -> None:
    _, splits = make_listops(SMALL, count=(64, 8, 8))
    batches = ClassBatches(splits["train"], ClassPlan(batch_size=8, pool=4, multiple=4))
    for epoch in range(2):
        seen = np.concatenate([batches.indices(8 * epoch + step) for step in range(8)])
        assert sorted(seen) == list(range(64))
    batch = batches.batch(3)
    assert batch.tokens is not None
    assert batch.padding_mask is not None
    assert np.array_equal(batch.padding_mask.sum(1), splits["train"].lengths(batch.indices))
    assert not batch.tokens[~batch.padding_mask].any()
    with pytest.raises(UserError, match="positions"):
        ClassBatches(splits["train"], ClassPlan(batch_size=8, max_length=8, too_long="stop")).batch(0)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "lra.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("reviews").mkdir()
    for name in ("train", "test"):
        rows = [
            {"text": f"{word} film {n}", "label": label}
            for n in range(20)
            for label, word in enumerate(("bad", "good"))
        ]
        Path(f"reviews/imdb-{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    articles = [{"title": f"{n}", "text": f"Article {n} is about {n}. " * 900} for n in range(60)]
    Path("articles.jsonl").write_text("\n".join(json.dumps(row) for row in articles))
    Path("listops-1000").mkdir()
    for name in ("train", "val", "test"):
        Path(f"listops-1000/basic_{name}.tsv").write_text("Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n")
    Path("cifar").mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        Path(f"cifar/{name}.bin").write_bytes(b"".join(bytes([n % 10]) + bytes(3072) for n in range(40)))
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    lines = [line for line in lines if "--device cuda" not in line]  # tests/cli holds what they say to type to --help
    assert len(lines) == 12
    for line in lines:
        command = shlex.split(line, comments=True)[1:]
        short = ["--set", "train.steps=1", "train.batch_size=2", "model.layers=1"] if command[0] == "train" else []
        assert entry([*command, *short]) == 0, (line, capsys.readouterr().err)
