"""Float8 maps of torchao: which, what they do to a loss, and what is saved; emulated, as a processor has no float8."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hgrn2.cli.main import entry
from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import load_model
from hgrn2.train.float8 import Float8Maps, check_float8
from hgrn2.train.metrics import read_metrics

pytest.importorskip("torchao")
MODEL = ModelConfig(vocab_size=64, width=32, layers=2, glu_width=40, mixer=MixerConfig(head_size=16))
SMALL = [
    "train.budget_s=0", "train.epochs=0", "train.sequence_length=32", "train.batch_size=4", "train.log_every=1",
    "train.eval_every=0", "train.eval_tokens=200", "train.keep_best=false", "train.patience=0", "train.steps=8",
    "model.width=32", "model.layers=2", "model.glu_width=48", "model.mixer.head_size=16", "optim.warmup_steps=2",
]  # fmt: skip


def test_only_fitting_maps_of_the_blocks_are_converted_and_come_back() -> None:
    torch.manual_seed(0)
    model = LanguageModel(MODEL)
    before, tokens = dict(model.named_modules()), torch.randint(0, 64, (2, 16))
    names, plain = list(model.state_dict()), model.loss(tokens, tokens)
    maps = Float8Maps(model, "emulated")
    converted = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    maps_of_blocks = {n: m for n, m in before.items() if isinstance(m, nn.Linear) and n.startswith("backbone.")}
    fitting = {n for n, m in maps_of_blocks.items() if 40 not in (m.in_features, m.out_features)}
    assert converted == fitting != set()
    assert len(maps) == len(converted)
    assert list(model.state_dict()) == names
    rounded = model.loss(tokens, tokens)
    assert 0 < abs((rounded - plain).item()) < 0.05
    rounded.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with maps.undone():
        assert dict(model.named_modules()) == before
        assert torch.equal(model.loss(tokens, tokens), plain)
    assert type(model.get_submodule(min(converted))).__name__ == "Float8Linear"


def test_a_run_in_float8_learns_alike_and_its_model_is_a_usual_one(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgrn2.tasks.lm.task.write_report", lambda *_, **__: None)
    monkeypatch.setattr("hgrn2.tasks.lm.task._samples", lambda *_: ())
    losses = []
    for kind in ("none", "emulated"):
        folder = tmp_path / kind
        command = ["train", "lm", "demo", "--data", str(tiny_corpus), "--out", str(folder), "--set", *SMALL]
        assert entry([*command, f"train.float8={kind}"]) == 0
        losses.append([r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "step"])
    plain, rounded = losses
    assert plain != rounded
    assert rounded == pytest.approx(plain, rel=0.03)
    assert rounded[-1] < rounded[0]
    model = load_model(tmp_path / "emulated")
    assert "Float8" not in str(model)
    again = ["train", "lm", "demo", "--data", str(tiny_corpus), "--out", str(tmp_path / "emulated"), "--set", *SMALL]
    assert entry([*again, "train.float8=emulated", "train.steps=9"]) == 0, "it is resumed"
    assert entry([*again, "train.steps=10"]) == 2, "other numbers are another run"


def test_where_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_float8("none", torch.device("cpu"))
    with pytest.raises(UserError, match=r"capability 8\.9 or more, not a processor; train.float8=emulated"):
        check_float8("tensorwise", torch.device("cpu"))
    few = ModelConfig(vocab_size=64, width=24, layers=1, glu_width=24, mixer=MixerConfig(head_size=8))
    with pytest.raises(UserError, match="no linear map in the blocks of this model has sides divisible by 16"):
        Float8Maps(LanguageModel(few), "emulated")
    command = ["train", "lm", "demo", "--device", "cpu", "--out", str(tmp_path / "run"), "--set"]
    for more in ("train.float8=tensorwise", "train.float8=emulated train.graphs=true data.reset_at_documents=false",
                 "train.float8=emulated parallel.data=2"):  # fmt: skip
        assert entry([*command, *more.split()]) == 2
        assert "float8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"needs torchao: pip install 'hgrn2\[float8\]'"):
        check_float8("emulated", torch.device("cpu"))
