"""Run by test_kills.py in a process of its own: a command, killed at every moment at which it changes the disk.

    python kills.py FOLDER prepare|overwrite|train|restart=EVERY ...

EVERY 1 takes every moment, 7 every seventh.

A child is forked for every moment; it ends itself there as SIGKILL would. Then the same command is given again in
another child, and what it leaves is looked at. Prints a line for each fault and, in the end, how many were killed.
"""

import os
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from hgrn2.cli.main import entry

EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR
KILLED = 137
TINY = ["model.width=16", "model.layers=1", "model.glu_width=16", "model.mixer.head_size=8", "train.sequence_length=16",
        "train.batch_size=2", "train.eval_tokens=64", "train.eval_every=0", "train.budget_s=0", "train.steps=2",
        "train.save_every=1", "train.keep=1", "optim.warmup_steps=0"]  # fmt: skip


def in_child(work: Callable[[], int], place: Path, kill_at: int = -1) -> tuple[int, int]:
    """Exit code of `work` in a forked process, and how often it changed something below `place`."""
    counter = place.with_name("count")
    child = os.fork()
    if child == 0:
        output = os.open(place.with_name("output"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        seen, telling = 0, False

        def hook(event: str, values: tuple) -> None:
            nonlocal seen, telling
            writes = event in EVENTS or (event == "open" and isinstance(values[2], int) and values[2] & WRITING)
            if telling or not writes or str(place) not in str(values[0]):
                return
            if seen == kill_at:
                os._exit(KILLED)
            seen += 1

        sys.addaudithook(hook)
        code = work()
        telling = True
        counter.write_text(str(seen))
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    count = int(counter.read_text()) if counter.exists() else 0
    counter.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), count


def left_over(folder: Path) -> list[str]:
    """Temporary names and locks below a folder."""
    return [path.name for path in folder.rglob(".*") if "hgrn2" in path.name]


def prepared(place: Path, text: Path) -> Callable[[], int]:
    return lambda: entry(["data", "prepare", str(text), "--out", str(place / "out"), "--tokenizer", "bytes", "--json",
                          "--overwrite"])  # fmt: skip


def trained(place: Path, *more: str) -> Callable[[], int]:
    return lambda: entry(["train", "lm", "small", "--data", str(place.with_name("corpus")), "--out", str(place / "out"),
                          "--device", "cpu", "--json", *more, "--set", *TINY])  # fmt: skip


def ready_to_train() -> None:
    """Import once what every child needs, and leave out of a run what takes long and writes nothing of its own."""
    import torch
    import torch._dynamo

    from hgrn2.tasks.lm import task

    torch.set_num_threads(1)
    task._samples = lambda *_: ()
    sys.modules["matplotlib"] = None  # type: ignore[assignment]


def corpus_is_whole(place: Path) -> str:
    from hgrn2.data.manifest import verify

    try:
        verify(place / "out")
    except Exception as error:
        return str(error)
    return ""


def run_is_whole(place: Path) -> str:
    from hgrn2.data.tokenizer import load_tokenizer
    from hgrn2.models.saved import find_model
    from hgrn2.train.runs import read_finished

    try:
        found = find_model(place / "out")
        read_finished(place / "out")
        assert found.tokenizer is not None
        load_tokenizer(found.tokenizer)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def main(kind: str, root: Path, every: int) -> None:
    root.mkdir()
    text = root / "text.txt"
    text.write_text("alpha beta gamma delta " * 60)
    place, before = root / "place", root / "before"
    place.mkdir()
    corpus = kind in ("prepare", "overwrite")
    if corpus:
        command, whole = prepared(place, text), corpus_is_whole
        first = command
    else:
        ready_to_train()
        entry(["data", "prepare", str(text), "--out", str(root / "corpus"), "--tokenizer", "bytes", "--json"])
        command, whole = trained(place, *(["--restart"] if kind == "restart" else [])), run_is_whole
        first = trained(place)
    if kind in ("overwrite", "restart"):
        assert in_child(first, place)[0] == 0
    shutil.copytree(place, before)

    def again() -> None:
        shutil.rmtree(place)
        shutil.copytree(before, place)

    code, moments = in_child(command, place)
    assert code == 0, place.with_name("output").read_text()
    killed = 0
    for moment in range(0, moments, every):
        again()
        killed += in_child(command, place, moment)[0] == KILLED
        if kind == "overwrite" and (fault := in_child(lambda: bool(corpus_is_whole(place)), place)[0]):
            print(f"FAULT {moment}: neither the old corpus nor the new one ({fault})", flush=True)
        code, _ = in_child(command, place)
        fault = place.with_name("output").read_text()[-200:] if code else whole(place)
        if code or fault or left_over(place):
            print(f"FAULT {moment}: exit {code} {fault} {left_over(place)}", flush=True)
    print(f"{kind}: {killed} killed of {moments}")


if __name__ == "__main__":
    for word in (
        "hgrn2.cli.data",
        "hgrn2.data.prepare",
        "hgrn2.data.vocabulary",
        "tyro",
        "rich.progress",
        "rich.table",
    ):
        import_module(word)
    for argument in sys.argv[2:]:
        name, _, step = argument.partition("=")
        main(name, Path(sys.argv[1]) / name, int(step))
