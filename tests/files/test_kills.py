"""A command that is killed at any moment finishes when it is given again, and leaves nothing of the first one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize(("kind", "every"), [("prepare", 3), ("overwrite", 3), ("train", 17), ("restart", 23)])
def test_the_same_command_finishes(tmp_path: Path, kind: str, every: int) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), kind, str(tmp_path), str(every)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *_, last = done.stdout.splitlines()
    assert "FAULT" not in done.stdout, done.stdout
    assert int(last.split()[0]) >= 3
