"""Optimisers that do not import the compiler."""

import subprocess
import sys

import torch

from hgrn2.train.light import AdamW

SCRIPT = """
import sys, torch, hgrn2
from hgrn2.train.config import OptimConfig
from hgrn2.train.optim import Optimizers
config = hgrn2.ModelConfig(vocab_size=7, width=16, layers=1, glu_width=16, mixer=hgrn2.MixerConfig(head_size=8))
model = hgrn2.LanguageModel(config)
optimizers = Optimizers(model, OptimConfig(optimizer="muon"))
tokens = torch.zeros(1, 4, dtype=torch.long)
model.loss(tokens, tokens).backward()
optimizers.step()
assert len(optimizers.parts) == 2 and optimizers.tensors()
assert "torch._dynamo" not in sys.modules
"""


def test_a_training_step_does_not_import_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_the_numbers_are_those_of_pytorch() -> None:
    found = []
    for kind in (AdamW, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        optimizer = kind([{"params": [weight], "weight_decay": 0.1}], lr=0.05, betas=(0.9, 0.95))
        for step in range(4):
            weight.grad = torch.sin(torch.arange(12.0) + step).view(3, 4)
            optimizer.step()
            optimizer.zero_grad()
            assert weight.grad is None
        found.append((weight.detach(), optimizer.state_dict()["state"][0]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in ("step", "exp_avg", "exp_avg_sq"))
