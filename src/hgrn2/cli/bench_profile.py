"""`hgrn2 bench profile`: where the time of training and of decoding goes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hgrn2.bench.profile_settings import ProfileBench
from hgrn2.bench.settings import Decoded
from hgrn2.cli.bench import Folder, flat, run_bench, told


@flat
@dataclass(frozen=True, kw_only=True)
class BenchProfile(ProfileBench):
    """Where the time goes: milliseconds of a training step, or of a decoded token, by group of operators or kernels.

    Groups are matrix products, scan, norms, activations, loss, optimiser, copies and what else is found; gaps are the
    time in which a GPU runs no kernel, or a CPU no operator. of_roofline is the least time that a group's operations
    and bytes take at the peaks measured in the same run, divided by the time it took. The whole step is timed without
    the profiler, which slows the host.

    Example: hgrn2 bench profile --tasks train --length 512 --models hgrn2 llama-hf
    Example: hgrn2 bench profile --device cuda --preset 374m --length 2048 --tokens 32768 --compile blocks
    Example: hgrn2 bench profile --tasks decode --device cuda --preset 1.36b --models hgrn2-graph --context 2048
    """

    models: Annotated[tuple[Decoded, ...], tyro.conf.arg(aliases=["--subjects"])] = ProfileBench.models
    """Which models. hgrn2-graph and llama-hf-static decode, and do not train."""
    out: Folder = Path("results")
    """The folder whose profile.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 where a model failed."""
        from hgrn2.bench import profile

        failed: list[str] = []
        run_bench(lambda record, progress: failed.extend(profile.measure(self, record, progress)), self.out, self.json)
        return told(failed)
