"""A prompt of any length costs the same memory: the state has one size, and reading goes by segments."""

import subprocess
import sys
from pathlib import Path

import pytest

from hgrn2.generate.config import GenerationConfig
from hgrn2.generate.generator import Generator

# Peak resident memory never falls, so each step of the script tells what it added to those before it. It is read from
# /proc: what getrusage says of a new process may still be the peak of the one that started it.
SCRIPT = """
import sys
from pathlib import Path
import torch
from hgrn2.cli.generate import Generate
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.generate.config import GenerationConfig
from hgrn2.generate.generator import Generator
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model

torch.set_num_threads(1)
mixer = MixerConfig(head_size=16)
model = LanguageModel(ModelConfig(vocab_size=257, width=64, layers=2, glu_width=128, mixer=mixer))
generator = Generator(model, ByteTokenizer())

def peak(length, segment):
    ids = torch.arange(length).numpy() % 256
    made = generator.generate(ids, GenerationConfig(max_tokens=8, segment=segment, stop_at_eot=False))[0]
    assert made.snapshot.tokens == length + 8
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kilobytes * 1024, made.snapshot.state.nbytes

peak(8_192, 512)  # once beforehand: what the allocator and the libraries keep is then there
for length, segment in ((2_048, 512), (32_768, 512), (32_768, 32_768)):
    print(*peak(length, segment))

save_model(sys.argv[1], model, ByteTokenizer())
Generate(model=Path(sys.argv[1]), prompt="a", max_tokens=2, json=True, seed=0).run()
slow = {"torch._dynamo", "torch._inductor", "sympy", "transformers", "triton"}  # 1.3 s of torch._dynamo alone
assert not slow & set(sys.modules), slow & set(sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_does_not_grow_with_the_prompt_and_no_compiler_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (short, size), (long, same), (whole, _) = (map(int, line.split()) for line in done.stdout.splitlines()[:3])
    assert size == same == 2 * 4 * 16 * 16 * 4
    # 30,720 more tokens: their ids alone are 0.25 MB, and one activation of the residual width would be 8 MB.
    assert long - short < 4 * 2**20
    assert whole - long > 16 * 2**20  # the measurement sees what reading at once would cost


def test_state_size_is_that_of_the_model(chars: Generator) -> None:
    sizes = set()
    for length in (1, 10, 2_000):
        made = chars.generate([0] * length, GenerationConfig(max_tokens=2))[0]
        sizes.add(made.snapshot.state.nbytes)
    assert sizes == {chars.model.zeros(1).nbytes}
