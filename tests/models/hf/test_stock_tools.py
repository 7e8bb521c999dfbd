"""A converted folder in tools that know nothing of hgrn2: the file beside config.json brings the classes in."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import pytest
import torch
import transformers
from transformers import dynamic_module_utils
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import hgrn2
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.files import read_json
from hgrn2.models.hf import HGRN1Config, HGRN2ForCausalLM, HGRN2VisionConfig
from hgrn2.models.hf.saving import MODULE, REMOTE
from hgrn2.models.hf.writing import write_hf

PAGE = (Path(__file__).parents[3] / "docs" / "transformers.md").read_text(encoding="utf-8")
SOURCE = Path(hgrn2.__file__).parents[1]
IDS = "torch.arange(6)[None]"


@pytest.fixture
def folder(make: Callable, tmp_path: Path) -> Path:
    pytest.importorskip("tokenizers")
    write_hf(tmp_path / "hf", make("hgru2", vocab_size=257), ByteTokenizer())
    return tmp_path / "hf"


def fresh(code: str, place: Path, **more: str) -> CompletedProcess[str]:
    """A new process, without a network, with the files of remote code in `place`."""
    settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules"), "HF_HOME": str(place / "home")}
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    return run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=place,
        env=os.environ | {"PYTHONPATH": path} | settings | more,
    )  # fmt: skip


@pytest.mark.full
def test_the_auto_classes_find_it_without_an_import(folder: Path, tmp_path: Path) -> None:
    """And where hgrn2 is not installed they say what to install."""
    expected = HGRN2ForCausalLM.from_pretrained(folder)(torch.arange(6)[None]).logits[0, -1, :3].tolist()
    found = fresh(
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained('hf', trust_remote_code=True)\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained('hf', trust_remote_code=True)\n"
        f"print(model({IDS}).logits[0, -1, :3].tolist())\n"
        "made = model.generate(**tokenizer('Hi', return_tensors='pt'), max_new_tokens=3, min_new_tokens=3)\n"
        "print(made.shape, type(made).__name__, type(model).__module__)\n"
        "model.save_pretrained('again')\n"
        "for name in [name for name in sys.modules if name.split('.')[0] in ('hgrn2', 'transformers_modules')]:\n"
        "    del sys.modules[name]\n"
        "sys.modules['hgrn2'] = None\n"
        "from transformers.dynamic_module_utils import get_class_from_dynamic_module\n"
        "try:\n"
        "    get_class_from_dynamic_module('modeling_hgrn2.HGRN2Config', 'hf')\n"
        "except ImportError as error:\n"
        "    print(error)\n",
        tmp_path,
    )
    lines = found.stdout.splitlines()
    assert json.loads(lines[0]) == pytest.approx(expected), found.stderr
    assert lines[1] == "torch.Size([1, 5]) Tensor hgrn2.models.hf.causal"
    assert "pip install 'hgrn2[hf]'" in lines[2]
    assert sorted(path.name for path in (tmp_path / "again").glob("*.py")) == [f"{MODULE}.py"]


def test_every_class_that_a_folder_names_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    space: dict[str, Any] = {}
    exec(REMOTE, space)
    for config in (hgrn2.HGRN2Config, HGRN1Config, HGRN2VisionConfig):
        config(hidden_size=128).save_pretrained(tmp_path / config.__name__)
        for auto, place in read_json(tmp_path / config.__name__ / "config.json")["auto_map"].items():
            module, name = place.split(".")
            assert (tmp_path / config.__name__ / f"{module}.py").read_text(encoding="utf-8") == REMOTE
            registered = config if auto == "AutoConfig" else getattr(transformers, auto)._model_mapping[config]
            assert space[name] is registered
            assert get_class_from_dynamic_module(place, str(tmp_path / config.__name__)) is registered
            registered.register_for_auto_class(auto)  # as the Auto classes do; the library would then copy our sources
            assert registered._auto_class is None


def test_our_loaders_run_no_code_of_a_folder(folder: Path) -> None:
    (folder / f"{MODULE}.py").write_text("raise SystemExit('this ran')\n")
    for load in (
        HGRN2ForCausalLM.from_pretrained, hgrn2.HGRN2Config.from_pretrained,
        transformers.AutoModelForCausalLM.from_pretrained, transformers.AutoModel.from_pretrained,
    ):  # fmt: skip
        load(folder)


@pytest.mark.full
def test_lm_eval_with_its_own_class(folder: Path, tmp_path: Path) -> None:
    """The command of the page, on a task of a dozen questions; ours gives the same accuracy."""
    pytest.importorskip("lm_eval")
    rows = [{"query": f"{n} and {n + 1}", "choices": [" one", " two!", " 3"], "gold": n % 3} for n in range(12)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: mine.jsonl}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{query}}'\ndoc_to_target: gold\n"
        "doc_to_choice: choices\nmetric_list: [{metric: acc}]\n"
    )
    (command,) = re.findall(r"```console\n\$ lm-eval (.*?)```", PAGE, re.DOTALL)
    words = shlex.split(command.replace("demo-hf", "hf").replace("lambada_openai", "mine").replace("\\\n", " "))
    found = fresh(
        f"import sys; sys.argv = ['lm-eval', *{words}, '--include_path', 'tasks', '--output_path', 'out']\n"
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()",
        tmp_path, HF_DATASETS_CACHE=str(tmp_path / "datasets"),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    (report,) = (tmp_path / "out").rglob("results_*.json")
    accuracy = read_json(report)["results"]["mine"]["acc,none"]
    model = HGRN2ForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    right = 0
    for row in rows:
        scores = []
        for choice in row["choices"]:
            context, whole = tokenizer(row["query"]).input_ids, tokenizer(row["query"] + choice).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([whole[:-1]])).logits.log_softmax(-1)[0]
            scores.append(sum(float(logits[t - 1, whole[t]]) for t in range(len(context), len(whole))))
        right += scores.index(max(scores)) == row["gold"]
    assert accuracy == pytest.approx(right / len(rows))
