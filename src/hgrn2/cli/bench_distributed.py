"""`hgrn2 bench distributed`: training on several processes beside one."""

from dataclasses import dataclass
from pathlib import Path

from hgrn2.bench.distributed_settings import DistributedBench
from hgrn2.cli.bench import Folder, flat, run_bench, told


@flat
@dataclass(frozen=True, kw_only=True)
class BenchDistributed(DistributedBench):
    """Training tokens/s, losses, memory and checkpoints on several processes beside one, in one call.

    Every job is a training in processes of its own, with a time limit; its row is written the moment it ends, and the
    same command goes on with those that have none. It takes as many GPUs as there are; one suffices for all but weak.

    Example: hgrn2 bench distributed
    Example: hgrn2 bench distributed --measure fsdp save --sizes 1.36b --minutes 15
    Example: hgrn2 bench distributed --device cpu --sizes tiny --large tiny --length 64 --batch 4 --no-compile
    """

    out: Folder = Path("results")
    """The folder whose distributed.jsonl gets the rows."""
    again: bool = False
    """Measure what has a row of this kind of GPU too."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 where a job failed or was not begun."""
        from hgrn2.bench import distributed

        failed: list[str] = []
        run_bench(
            lambda record, progress: failed.extend(
                distributed.measure(self, self.out, record, progress, again=self.again)
            ),
            self.out, self.json,
        )  # fmt: skip
        return told(failed)
