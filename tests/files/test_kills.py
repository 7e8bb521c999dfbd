"""A command that is killed at any moment finishes when it is given again, and leaves nothing of the first one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize("kinds", [("prepare=3", "overwrite=3"), ("train=19", "restart=29")])
def test_the_same_command_finishes(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), *kinds], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FAULT" not in done.stdout, done.stdout
    killed = re.findall(r"(\w+): (\d+) killed of \d+", done.stdout)
    assert [name for name, _ in killed] == [kind.partition("=")[0] for kind in kinds]
    assert all(int(count) >= 5 for _, count in killed)
