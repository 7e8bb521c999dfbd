"""How fast text is prepared by one process and by several: `hgrn2 data prepare` as a user calls it, from beginning to
end, in a process of its own each time."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hgrn2.bench.data_settings import DataBench
from hgrn2.errors import UserError
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement


class _Way(NamedTuple):
    name: str
    processes: int
    threads: bool
    """Whether the library of the tokenizer may use threads of its own, as it does in one process by itself."""


def measure(inputs: list[Path], bench: DataBench, record: Callable[[Row], None], progress: Progress = silent) -> None:
    """One row for each number of processes goes to `record`, with bytes of text a second as its value; one process is
    measured twice, with the library's threads and without.

    Raises:
        UserError: preparation failed.
    """
    ways = [_Way(f"{count} process{'es' * (count > 1)}", count, False) for count in bench.processes]
    ways += [_Way("1 process with the library's threads", 1, True)] * (1 in bench.processes)
    found: dict[_Way, list[dict[str, Any]]] = {way: [] for way in ways}
    for turn in range(bench.repeats):
        for number, way in enumerate(ways):
            progress(f"preparing with {way.name}", turn * len(ways) + number, bench.repeats * len(ways))
            found[way].append(_prepare(inputs, bench.tokenizer, way))
    alone = statistics.median(made["seconds"] for made in found[ways[0]])
    for way, results in found.items():
        size = sum(split["text_bytes"] for split in results[0]["splits"].values())
        seconds = [made["seconds"] for made in results]
        details = {
            "seconds": round(statistics.median(seconds), 3), "tokens": results[0]["tokens"],
            "of_the_first": round(alone / statistics.median(seconds), 3), "cores": len(os.sched_getaffinity(0)),
        }  # fmt: skip
        names = [path.name for path in inputs]
        case = {"inputs": names, "text_bytes": size, "tokenizer": Path(bench.tokenizer).name}
        record(measurement("data", case, "hgrn2", way.name, [size / one for one in seconds], "bytes/s", details))


def _prepare(inputs: list[Path], tokenizer: str, way: _Way) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "hgrn2", "data", "prepare", *map(str, inputs), "--out", f"{folder}/corpus",
            "--tokenizer", tokenizer, "--processes", str(way.processes), "--json",
        ]  # fmt: skip
        how = os.environ | {"TOKENIZERS_PARALLELISM": "true" if way.threads else "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=how)
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["preparation failed"])[-1])
    return json.loads(done.stdout)
