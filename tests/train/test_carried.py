"""States that go from step to step: losses and gradients of plain loops over documents, exact on resume."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hgrn2.data.corpus import Corpus
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.settings import with_overrides
from hgrn2.tasks.lm.task import LanguageTask
from hgrn2.train.carried import PREFIX, CarriedStates
from hgrn2.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from hgrn2.train.run import train_on
from hgrn2.train.trainer import Trainer

T, B, STEPS = 16, 4, 3
MIXERS = {
    "hgru2": MixerConfig(head_size=8, conv_width=4),
    "hgru1": MixerConfig(kind="hgru1"),
    "mamba2": MixerConfig(kind="mamba2", head_size=8, state_size=8, conv_width=4),
    "window": MixerConfig(kind="attention", head_size=8, window=11),
}


def run_of(kind: str, *, vocab: int = 259, **train: Any) -> RunConfig:
    model = ModelConfig(
        vocab_size=vocab, width=16, layers=2, glu_width=24, mixer=MIXERS[kind], tie_embeddings=True,
        lower_bound="inclusive" if kind.startswith("hgru") else "none",
    )  # fmt: skip
    loop: dict[str, Any] = {"sequence_length": T, "batch_size": B, "steps": STEPS, "eval_every": 0, "log_every": 1}
    return RunConfig(
        model=model, data=DataConfig(carry=True), train=TrainConfig(**loop | train), optim=OptimConfig(lr=1e-2)
    )


def corpus(*lengths: int) -> Corpus:
    letters = np.random.default_rng(0).integers(97, 123, 4000).astype(np.uint8).tobytes().decode()
    return Corpus.from_documents([letters[n : n + size] for n, size in enumerate(lengths)], ByteTokenizer())


def task_of(run: RunConfig, *lengths: int) -> LanguageTask:
    return LanguageTask(run, corpus(*lengths), corpus(50), torch.device("cpu"))


def trained(run: RunConfig, folder: Path, *lengths: int) -> Trainer:
    """To the end, from the newest checkpoint of the folder where it has one."""
    task = task_of(run, *lengths or (30, 9, 70, 15, 40, 16, 60, 5))
    torch.manual_seed(0)
    model = task.model()
    model.set_recompute(run.train.recompute)
    trainer = Trainer(run, task, model, folder)
    train_on(trainer, quiet=True)
    return trainer


def steps_by_loops(task: LanguageTask, model: Any) -> list[torch.Tensor]:
    """Mean loss of each step: document by document of each row, the state detached between steps."""
    carried: list[Any] = [None] * B
    losses = []
    for step in range(STEPS):
        found: Any = task.batches.batch(step)
        (inputs, targets, borders), goes_on = found
        borders = np.arange(B + 1) * T if borders is None else borders
        total = torch.zeros((), dtype=torch.float64)
        for row in range(B):
            state: Any = carried[row] if goes_on[row] else None
            cuts = [row * T, *[int(at) for at in borders if row * T < at < row * T + T], row * T + T]
            for first, last in pairwise(cuts):
                tokens, wanted = (torch.from_numpy(x.reshape(-1)[first:last])[None] for x in (inputs, targets))
                logits, state = model(tokens, None if first > row * T else state)
                total = total + cross_entropy(logits[0], wanted[0], reduction="sum")
            carried[row] = state.detach()
        losses.append(total / (B * T))
    return losses


@pytest.mark.parametrize("kind", MIXERS)
def test_losses_and_gradients_are_those_of_loops_with_detached_states(kind: str) -> None:
    task = task_of(run_of(kind), 30, 9, 70, 15, 40, 16, 60, 5)
    torch.manual_seed(0)
    model = task.model().double()
    wanted = steps_by_loops(task, model)
    states, borders = CarriedStates(1), 0
    for step in range(STEPS):
        batch = task.batch(step, 0, 1)
        borders += batch[3].documents - B
        loss, state = task.loss_from(model, batch, states.next)
        states.took(state)
        assert not any(x.requires_grad for x in state.tensors().values())
        assert torch.allclose(loss, wanted[step], rtol=1e-12)
        mine, theirs = (torch.autograd.grad(x, [*model.parameters()], allow_unused=True) for x in (loss, wanted[step]))
        for one, other in zip(mine, theirs, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert borders >= 3


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch looks at it when it compiles
@pytest.mark.parametrize("how", ["plain", "compile_blocks", "recompute"])
def test_steps_in_parts_have_the_loss_of_the_long_text(how: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Without an update between them, with a vocabulary that is no multiple of anything, by the trainer itself."""
    if how == "compile_blocks":  # what a graph is captured from; compiling it to machine code takes a minute
        from hgrn2.layers.block import Block

        whole = Block.compile
        monkeypatch.setattr(Block, "compile", lambda self, **o: whole(self, **o, backend="eager"))
    more = {"recompute": "block"} if how == "recompute" else {how: True} if how != "plain" else {}
    run = run_of("hgru2", vocab=263, accumulate=2, **more)
    run = replace(run, optim=OptimConfig(lr=1e-30, weight_decay=0.0))
    trainer = trained(run, tmp_path, 400)
    task, model = cast(LanguageTask, trainer.task), trainer.model
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [one["loss"] for one in records if one["kind"] == "step"]
    steps = [task.batch(step, 0, 1) for step in range(STEPS)]
    rows, targets = (torch.cat(x, 1) for x in zip(*[one[:2] for one in steps], strict=True))
    with torch.no_grad():
        long = cross_entropy(model.double()(rows)[0].transpose(1, 2), targets, reduction="none")
    assert found == pytest.approx(long.unflatten(1, (STEPS, T)).mean((0, 2)).tolist(), rel=2e-6)


@pytest.mark.parametrize("kind", ["hgru1", "window"])
def test_a_run_cut_off_after_a_checkpoint_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    run = run_of(kind, steps=6, save_every=3, accumulate=2, keep=9)
    trained(run, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    trained(run, tmp_path / "cut")
    folders = [tmp_path / name / "checkpoints" / "step-00000006" for name in ("whole", "cut")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    lines = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
         if '"step"' in line and '"lr"' in line]
        for name in ("whole", "cut")
    ]  # fmt: skip
    assert len(lines[0]) == 6
    assert lines[0] == lines[1]


def test_states_of_a_checkpoint_that_do_not_fit_are_refused() -> None:
    model = task_of(run_of("hgru2"), 300).model()
    states = CarriedStates(2)
    for _ in range(2):
        states.took(model.zeros(2))
    good = states.tensors(model)
    assert all(x.shape[0] == 4 for x in good.values())
    wrong = {
        "none are there": {},
        "do not match this model": {k: v for k, v in good.items() if k != f"{PREFIX}0.conv"},
        "this model needs": good | {f"{PREFIX}0.conv": torch.zeros(4, 3, 5)},
        "of 3 rows": {k: v[:3] for k, v in good.items()},
    }
    for said, tensors in wrong.items():
        with pytest.raises(UserError, match=f"step-1 is damaged: its carried states do not fit.*{said}"):
            states.load(model, tensors, "step-1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.mixer.window=0", "attention keeps every token: set a window"),
        ("train.compile_blocks=true", "without train.compile_blocks"),
        ("parallel.data=2", "with attention is offered on one process"),
        ("train.compile=true", "train.compile is not offered"),
        ("train.graphs=true", "train.graphs"),
        ("parallel.context=2", "parallel.context, which cuts states"),
        ("parallel.tensor=2", "parallel.tensor, which cuts states"),
    ],
)
def test_what_cannot_carry_is_refused(change: str, said: str) -> None:
    kind = "window" if "attention" in said or "compile_blocks" in said else "hgru2"
    with pytest.raises(UserError, match=said):
        with_overrides(run_of(kind), (change,))
