"""The command line: verbs parse, call and print. A verb's module is loaded when it is asked for, torch later still."""

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from hgrn2 import __version__, console
from hgrn2.errors import UserError, unknown
from hgrn2.memory import out_of_memory
from hgrn2.settings import check, refuse

# verb -> (one line, task -> module:class); verbs without tasks have the one task "".
VERBS: dict[str, tuple[str, dict[str, str]]] = {
    "train": (
        "train a model, or go on with an interrupted run",
        {
            "lm": "train:TrainLM",
            "mqar": "train_mqar:TrainMQAR",
            "lra": "train_classify:TrainLRA",
            "image": "train_classify:TrainImage",
            "classify": "train_own:TrainClassify",
        },
    ),
    "tune": ("learn the state from which a frozen model begins", {"state": "tune:TuneState"}),
    "eval": ("measure perplexity, zero-shot tasks, loss by position; classifiers", {"": "eval:Eval"}),
    "classify": ("name the likeliest classes of images or of a text", {"": "classify:Classify"}),
    "generate": ("continue a text; save and restore the model's state", {"": "generate:Generate"}),
    "inspect": ("gates, memory lengths and states on a text, and what outputs are made of", {"": "inspect:Inspect"}),
    "chat": ("talk with a model in the terminal; keep, fork and undo", {"": "chat:Chat"}),
    "serve": ("answer over HTTP as OpenAI's API does, many at once", {"": "serve:Serve"}),
    "data": (
        "turn text into token shards, look at them, check them",
        {
            "prepare": "data:Prepare",
            "info": "data:Info",
            "verify": "data:Verify",
            "lra": "data_lra:Lra",
            "image": "data_image:Image",
        },
    ),
    "convert": (
        "published checkpoints into models of ours, and back",
        {
            "fla": "convert:FromFla",
            "hgru2": "convert:FromHgru2",
            "to-fla": "convert:ToFla",
            "to-hf": "convert:ToHf",
        },
    ),
    "export": (
        "models for other engines, which need no PyTorch",
        {"onnx": "export:ExportOnnx", "web": "export_web:ExportWeb"},
    ),
    "bench": (
        "measure speed on this machine, side by side with others",
        {
            "ops": "bench:BenchOps",
            "train": "bench:BenchTrain",
            "decode": "bench:BenchDecode",
            "onnx": "bench:BenchOnnx",
            "quantize": "bench_quantize:BenchQuantize",
            "profile": "bench_profile:BenchProfile",
            "parity": "bench_parity:BenchParity",
            "serve": "bench_serve:BenchServe",
            "data": "bench_data:BenchData",
            "distributed": "bench_distributed:BenchDistributed",
            "table": "bench:BenchTable",
        },
    ),
    "reproduce": (
        "a published table: every run, the rows, the page",
        {
            "lra": "reproduce:ReproduceLRA",
            "image": "reproduce:ReproduceImage",
            "mqar": "reproduce:ReproduceMQAR",
            "collect": "reproduce:ReproduceCollect",
            "table": "reproduce:ReproduceTable",
        },
    ),
    "study": (
        "a controlled comparison: rows, a table and a plot",
        {
            "compare": "study_language:StudyCompare",
            "expansion": "study_language:StudyExpansion",
            "ablation": "study_language:StudyAblation",
            "length": "study_language:StudyLength",
            "stream": "study_language:StudyStream",
            "monitor": "study_language:StudyMonitor",
            "others": "study_language:StudyOthers",
            "structured": "study_language:StudyStructured",
            "mqar": "study:StudyMQAR",
            "collect": "study_language:StudyCollect",
            "table": "study_language:StudyTable",
        },
    ),
    "settings": ("every name that --set takes, with type, default and meaning", {"": "settings:Settings"}),
    "doctor": ("hold every kernel to the float64 reference on this machine", {"": "doctor:Doctor"}),
}
LONG = ("train", "tune", "serve", "study", "reproduce")
"""Verbs that print while they work: their work is not done when nobody reads on."""
EXAMPLES = """\
examples:
  hgrn2 train lm demo --out runs/demo
  hgrn2 generate runs/demo --prompt 'ROMEO:'
  hgrn2 data prepare my-texts/ --out corpora/mine --tokenizer bytes
  hgrn2 train lm small --data corpora/mine --out runs/mine
  hgrn2 train classify reviews.csv --out runs/reviews"""


def entry(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for the user's mistakes, 130 after Ctrl-C.

    Installed as `hgrn2`, whose exit code this is. With --json every error is an object with the field `error` on
    standard output, beside the line on standard error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    with console.prepared_streams():
        try:
            code = _run(arguments)
            sys.stdout.flush()
            return code
        except UserError as error:
            return _fail(str(error), as_json)
        except OSError as error:
            return _failed_file(error, arguments, as_json)
        except Exception as error:
            message = out_of_memory(error)
            if message is None:
                raise
            return _fail(message, as_json)
        except KeyboardInterrupt:
            if as_json:
                console.print_json({"error": "interrupted"}, indent=None)
            return 130
        except SystemExit as exit_:  # the argument parser: 0 after --help, 2 after a mistake
            if exit_.code == 1:  # rich, whose reader left
                return _failed_file(BrokenPipeError(), arguments, as_json)
            return exit_.code if isinstance(exit_.code, int) else 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in VERBS:
        raise unknown("verb", name, VERBS)
    _, tasks = VERBS[name]
    place, program = tasks.get(""), f"hgrn2 {name}"
    if place is None:
        if not rest or rest[0] in ("-h", "--help"):
            print(_tasks(name))
            return 0
        if rest[0] not in tasks:
            raise unknown(f"task of hgrn2 {name}", rest[0], tasks)
        place, program, rest = tasks[rest[0]], f"{program} {rest[0]}", rest[1:]
    return _call(place, program, rest)


def _call(place: str, program: str, arguments: list[str]) -> int:
    import tyro

    module, _, kind = place.partition(":")
    verb = getattr(import_module(f"hgrn2.cli.{module}"), kind)
    with _told_as_json() if "--json" in arguments else contextlib.nullcontext():
        made = tyro.cli(verb, prog=program, args=_together(arguments))
    check(made, lambda field: f"--{field.replace('_', '-')}")
    if not program.startswith("hgrn2 data"):
        _check_names(made)
    return made.run() or 0


def _check_names(verb: Any) -> None:
    """Weights are not read from folders whose names are not UTF-8: said at once rather than after training."""
    for name in ("model", "source", "out"):
        value = str(getattr(verb, name, ""))
        wrong = any("\ud800" <= character <= "\udfff" for character in value)
        refuse(wrong, f"the name {value} is not UTF-8, which files of weights need: rename it")


@contextlib.contextmanager
def _told_as_json() -> Iterator[None]:
    """What the argument parser says on standard error before it exits goes to standard output too, as an object."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as exit_:
        text = said.getvalue()
        sys.stderr.write(text)
        if exit_.code:
            lines = (line.strip("│╭╮╰╯─|+- ") for line in text.splitlines())
            console.print_json({"error": " ".join(filter(None, lines))}, indent=None)
        raise


def _overview() -> str:
    lines = [
        f"hgrn2 {__version__}: gated linear recurrent networks with state expansion",
        "",
        "usage: hgrn2 VERB ...",
        "",
    ]
    for name, (text, tasks) in VERBS.items():
        choice = " " + "|".join(tasks) if "" not in tasks else ""
        verb = f"  {name + choice}"
        lines += [f"{verb:<32}{text}"] if len(verb) < 32 else [verb, f"{'':<32}{text}"]
    return "\n".join([*lines, "", "hgrn2 VERB --help says more, with an example.", "", EXAMPLES])


def _tasks(name: str) -> str:
    text, tasks = VERBS[name]
    lines = [f"hgrn2 {name}: {text}", "", f"usage: hgrn2 {name} {'|'.join(tasks)} ...", ""]
    for task, place in tasks.items():
        module, _, kind = place.partition(":")
        about = getattr(import_module(f"hgrn2.cli.{module}"), kind).__doc__ or ""
        lines.append(f"  {task:<10}{about.strip().splitlines()[0]}")
    examples = [line.strip() for line in EXAMPLES.splitlines() if f"hgrn2 {name} " in line]
    return "\n".join(
        [*lines, "", *(f"example: {line}" for line in examples[:1]), f"hgrn2 {name} TASK --help says more."]
    )


def _together(arguments: list[str]) -> list[str]:
    """What stands behind every `--set` behind the first of them: the last one alone would count, in silence."""
    if arguments.count("--set") < 2:
        return arguments
    others: list[str] = []
    values: list[str] = []
    behind = False
    for argument in arguments:
        behind = argument == "--set" or (behind and not argument.startswith("-"))
        if argument != "--set":
            (values if behind else others).append(argument)
    return [*others, "--set", *values]


def _failed_file(error: OSError, arguments: list[str], as_json: bool) -> int:
    """What is said of a file that could not be read or written; standard output may be that file."""
    if isinstance(error, BrokenPipeError):  # the reader left: `| head -1`
        console.abandon_stdout()
        if arguments[0] not in LONG:
            return 0
        return _fail("standard output was closed before the work was done; the same command goes on")
    broken = console.stdout_error() if error.filename is None else None
    if broken is not None:
        console.abandon_stdout()
        return _fail(f"standard output: {broken.strerror or broken}")
    return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", as_json)


def _fail(message: str, as_json: bool = False) -> int:
    """One line on standard error, whatever characters a name in it has; with --json an object on standard output."""
    line = " ".join(message.split())
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    with contextlib.suppress(OSError):  # a full disk, a reader that left
        print(f"hgrn2: error: {safe}", file=sys.stderr)
    if as_json:
        with contextlib.suppress(OSError):
            console.print_json({"error": line}, indent=None)
            sys.stdout.flush()
    return 2
