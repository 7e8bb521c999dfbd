"""`hgrn2 eval --tasks` from the outside, on task files of a few lines."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'hgrn2[eval]'")

from small_tasks import ITEMS

from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.eval.tasks import TASKS, chosen, read_lines
from hgrn2.eval.zero_shot import average, published, table_scores
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import load_model
from hgrn2.rows import read_rows


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    code = entry(["eval", *map(str, arguments), "--device", "cpu", "--json"])
    found = capsys.readouterr()
    assert code == 0, found.err
    return json.loads(found.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that is said with exit code 2."""
    capsys.readouterr()
    assert entry(["eval", *map(str, arguments), "--device", "cpu"]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    lines = [line for line in found.err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "Traceback" not in found.err
    return lines[0]


def log_probability(model: LanguageModel, before: str, after: str) -> tuple[float, bool]:
    """Of `after` in bytes, from one plain call of the model."""
    ids = torch.tensor([list((before + after).encode())])
    size = len(after.encode())
    with torch.no_grad():
        rows = model(ids[:, :-1])[0][0, -size:].log_softmax(-1)
    wanted = ids[0, -size:]
    return rows.gather(1, wanted[:, None]).sum().item(), bool((rows.argmax(-1) == wanted).all())


def by_hand(model: LanguageModel) -> dict[str, dict[str, float]]:
    """acc, acc_norm and perplexity of the small tasks, from the definitions."""
    made: dict[str, dict[str, float]] = {}
    for name in ("piqa", "arc-easy"):
        hits = {"acc": 0, "acc_norm": 0}
        for item in ITEMS[name]:
            query = item["query"].rstrip("\n") + "\nAnswer:"
            values = [log_probability(model, query, f" {choice}")[0] for choice in item["choices"]]
            normed = [value / len(choice) for value, choice in zip(values, item["choices"], strict=True)]
            hits["acc"] += values.index(max(values)) == item["gold"]
            hits["acc_norm"] += normed.index(max(normed)) == item["gold"]
        made[name.replace("-", "_")] = {key: value / len(ITEMS[name]) for key, value in hits.items()}
    right = 0
    for item in ITEMS["winogrande"]:
        values = [log_probability(model, text, f" {item['continuation']}")[0] for text in item["context_options"]]
        right += values.index(max(values)) == item["gold"]
    made["winogrande"] = {"acc": right / len(ITEMS["winogrande"])}
    answers = [log_probability(model, item["context"], f" {item['continuation']}") for item in ITEMS["lambada"]]
    nats = -sum(value for value, _ in answers) / len(answers)
    made["lambada"] = {
        "perplexity": float(torch.tensor(nats, dtype=torch.float64).exp()),
        "acc": sum(greedy for _, greedy in answers) / len(answers),
    }
    return made


def test_results_equal_the_definitions(
    saved: Callable[..., Path], task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved()
    asked = ("--tasks", "piqa,arc_easy,winogrande,lambada", "--task-data", task_folder)
    found = evaluated(capsys, folder, *asked, "--out", tmp_path / "rows", "--compare-rescoring")
    wanted = by_hand(load_model(folder))
    assert [one["task"] for one in found["results"]] == list(wanted)
    for one in found["results"]:
        assert one["metrics"] == pytest.approx(wanted[one["task"]], rel=1e-4)
        assert one["items"] == len(ITEMS[one["task"].replace("_", "-")])
        assert one["of"] == TASKS[one["task"]].items
    assert found["rescoring"]["requests"] == 2 * 2 + (3 + 2 + 4) + 2 * 2 + 2
    assert found["rescoring"]["shared_tokens"] < found["rescoring"]["whole_tokens"]
    assert found["rescoring"]["difference"] < 1e-3
    rows = read_rows(tmp_path / "rows" / "eval.jsonl")
    values = {(row.case["task"], row.case["metric"]): row.value for row in rows}
    assert values["lambada", "perplexity"] == pytest.approx(wanted["lambada"]["perplexity"], rel=1e-4)
    assert len(rows) == 2 + 2 + 1 + 2 + 1
    assert rows[-1].unit == "times"


def test_the_table_of_the_paper_stands_beside(
    saved: Callable[..., Path], task_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--tasks", "winogrande,lambada", "--task-data", str(task_folder), "--limit", "1")
    assert entry(["eval", str(saved()), *asked, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "WinoGrande" in shown
    assert "1 of 1,267" in shown
    assert "50.84" in shown  # HGRN2 1.0 B
    assert "this model" in shown
    assert "github.com/OpenNLPLab/HGRN2" in shown
    assert "assumed" in shown
    assert "not comparable" in shown
    table = shown[: shown.index("Source:")].splitlines()[-12:]
    assert len(table) > 8
    assert max(map(len, table)) <= 80


def test_the_published_averages_are_those_of_their_rows() -> None:
    for row in published()["rows"]:
        assert len(row["scores"]) == len(published()["columns"]) == 6
        assert row["average"] == pytest.approx(sum(row["scores"]) / 6, abs=0.04)  # the figure rounds twice
    assert average([1.0, None]) is None
    assert average([1.0, 2.0]) == 1.5
    assert table_scores([]) == [None] * 6
    assert {column["task"] for column in published()["columns"]} < set(TASKS)


def test_what_is_asked_for(saved: Callable[..., Path], task_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = saved(), ("--task-data", task_folder)
    for arguments, message in (
        (("--tasks", "piqa,mmlu", *data), "there is no task 'mmlu' (choose from piqa, hellaswag"),
        (("--tasks", "piqa,piqa", *data), "task piqa is named twice"),
        (("--tasks", ",", *data), "--tasks names no task"),
        (("--tasks", "hellaswag", *data), "has no file for hellaswag"),
        (("--tasks", "piqa", "--task-data", folder / "nowhere"), "is not a folder"),
        (("--tasks", "piqa", *data, "--limit", 0), "--limit is 0"),
        (("--tasks", "piqa", *data, "--batch-size", 0), "batch_size is 0"),
        (("--tasks", "piqa", "--positions"), "give one of them"),
        (data, "--task-data goes with --tasks only"),
        (("--compare-rescoring",), "--compare-rescoring goes with --tasks only"),
        (("--plot", "x.png"), "--plot goes with --positions only"),
    ):
        assert message in refused(capsys, folder, *arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not JSON", "line 2 of arc_easy is not valid JSON"),
        ('{"query": "a", "gold": 0}', "needs the fields query, choices, gold"),
        ("[1]", "must hold an object, not a list"),
        ('{"query": " ", "choices": ["a", "b"], "gold": 0}', "query must be text"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "choices must be a list of two or more texts"),
        ('{"query": "a", "choices": ["b", 3], "gold": 0}', "choices must be a list of two or more texts"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "gold is 2; it must be a number from 0 to 1"),
        ('{"query": "a", "choices": ["b", "c"], "gold": "A"}', "gold is 'A'"),
    ],
)
def test_task_files_of_another_form(
    saved: Callable[..., Path], task_folder: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    path = task_folder / "eval-arc-easy.jsonl"
    path.write_text(f"{json.dumps(ITEMS['arc-easy'][0])}\n{line}\n")
    assert message in refused(capsys, saved(), "--tasks", "arc_easy", "--task-data", task_folder)
    path.write_text("\n")
    assert "is empty" in refused(capsys, saved("other"), "--tasks", "arc_easy", "--task-data", task_folder)
    (task_folder / "arc_easy-2.jsonl").write_text("{}")
    assert "several files for arc_easy" in refused(
        capsys, saved("third"), "--tasks", "arc_easy", "--task-data", task_folder
    )


def test_models_that_cannot_be_asked(
    saved: Callable[..., Path], task_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--tasks", "piqa", "--task-data", task_folder)
    few = saved("few", CharTokenizer("abc"))
    assert "is not among the 3 characters" in refused(capsys, few, *asked)
    bare = saved("bare")
    for file in (bare / "tokenizer").iterdir():
        file.unlink()
    (bare / "tokenizer").rmdir()
    assert "has no tokenizer/ folder" in refused(capsys, bare, *asked)


def test_without_lm_eval(
    saved: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'hgrn2[eval]'" in refused(capsys, folder, "--tasks", "piqa")


def test_without_a_network(
    saved: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    said = refused(capsys, saved(), "--tasks", "lambada")
    assert "needs a network; give --task-data" in said
    assert "no route to the hub" in said


def test_lambada_has_two_names() -> None:
    assert chosen("lambada_openai")[0].name == "lambada"
    assert [task.name for task in chosen("all")] == list(TASKS)


def test_the_real_files_have_the_sizes_of_the_published_sets(real_data: Path) -> None:
    from hgrn2.eval.tasks import find_file

    for task in TASKS.values():
        count = len(read_lines(find_file(real_data, task), task))
        assert count == (1_000 if task.name == "hellaswag" else task.items)


@pytest.mark.full
def test_all_real_tasks_in_both_ways(
    real_data: Path, saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--tasks", "all", "--task-data", real_data, "--limit", 20, "--compare-rescoring")
    found = evaluated(capsys, saved(tokenizer=ByteTokenizer()), *asked)
    assert [one["items"] for one in found["results"]] == [20] * len(TASKS)
    assert 2 * found["rescoring"]["shared_tokens"] < 1.5 * found["rescoring"]["whole_tokens"]
    assert found["rescoring"]["difference"] < 0.01
