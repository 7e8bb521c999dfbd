"""What `hgrn2 eval` shows beside perplexity: zero-shot tasks beside the paper's table, WikiText, loss by position."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrn2 import console
from hgrn2.cli.progress import progress_shown
from hgrn2.progress import Progress, named
from hgrn2.settings import refuse

if TYPE_CHECKING:
    from hgrn2.cli.eval_options import EvalOptions
    from hgrn2.eval.harness import HGRN2LM
    from hgrn2.eval.positions import Bucket
    from hgrn2.eval.words import WordPerplexity
    from hgrn2.eval.zero_shot import TaskResult
    from hgrn2.generate.loading import Loaded

Show = Callable[["EvalOptions", "Loaded"], None]
OUT_OF_DOMAIN = (
    "A model that was not trained on WikiText is measured out of its domain here: its numbers are not comparable with "
    "published ones of models trained on WikiText-103."
)


def choose(verb: "EvalOptions") -> Show | None:
    """What is asked for beside perplexity, or None; options that do not go together are a `UserError`."""
    asked = {"--tasks": verb.tasks is not None, "--wikitext": verb.wikitext is not None, "--positions": verb.positions}
    named = [name for name, given in asked.items() if given]
    refuse(len(named) > 1, f"{' and '.join(named)} measure different things; give one of them")
    (kind,) = named or [""]
    for name, given, wanted in (
        ("--task-data", verb.task_data is not None, ("--tasks",)),
        ("--compare-rescoring", verb.compare_rescoring, ("--tasks",)),
        ("--plot", verb.plot is not None, ("--positions",)),
        ("--limit", verb.limit is not None, tuple(asked)),
        ("--out", verb.out is not None, tuple(asked)),
    ):
        refuse(given and kind not in wanted, f"{name} goes with {' or '.join(wanted)} only")
    refuse(verb.limit is not None and verb.limit < 1, f"--limit is {verb.limit}; it must be at least 1")
    if kind and verb.out is not None:
        from hgrn2.rows import prepare_folder

        prepare_folder(verb.out)
    if kind in ("--tasks", "--wikitext"):
        from hgrn2.eval.tasks import chosen
        from hgrn2.eval.zero_shot import need_harness

        chosen(verb.tasks or "all")
        need_harness()
    return {"": None, "--tasks": show_tasks, "--wikitext": show_wikitext, "--positions": show_positions}[kind]


def show_tasks(verb: "EvalOptions", loaded: "Loaded") -> None:
    """Run zero-shot tasks; print what came out beside the published table."""
    from hgrn2.eval.tasks import chosen, find_file
    from hgrn2.eval.zero_shot import need_harness, published, run_task

    tasks = chosen(verb.tasks or "")
    if verb.task_data is not None:
        for task in tasks:
            find_file(verb.task_data, task)  # all of them before minutes are spent on the first
    stage = [""]
    with progress_shown() as progress:
        lm = need_harness().HGRN2LM(
            loaded, batch_size=verb.batch_size, progress=lambda _, done, total: progress(stage[0], done, total)
        )
        results = []
        for task in tasks:
            stage[0] = task.title
            results.append(run_task(lm, task, verb.task_data, verb.limit))
        rescoring = _compare(lm, progress) if verb.compare_rescoring else None
    for result in results:
        for metric, value in result.metrics.items():
            case = {"task": result.task, "metric": metric, "items": result.items, "of": result.of}
            _record(verb, loaded, case, value, "perplexity" if metric == "perplexity" else "fraction", result.stderr)
    if rescoring:
        case = {"task": ",".join(task.name for task in tasks), "metric": "speed-up of shared contexts"}
        case |= {"requests": rescoring["requests"], "limit": verb.limit}
        _record(verb, loaded, case, rescoring["speed_up"], "times", rescoring)
    if verb.json:
        values = {"model": loaded.name, "results": [asdict(one) for one in results], "published": published()}
        return console.print_json(values | {"rescoring": rescoring})
    _print_tasks(loaded, results)
    if rescoring:
        print(
            f"Reading {rescoring['requests']:,} answers from the beginning took {rescoring['whole_s']:.1f} s, with "
            f"shared contexts {rescoring['shared_s']:.1f} s: {rescoring['speed_up']:.2f} times as fast "
            f"({rescoring['whole_tokens']:,} and {rescoring['shared_tokens']:,} tokens; scores agree to "
            f"{rescoring['difference']:.1e} nats)."
        )


def _compare(lm: "HGRN2LM", progress: Progress) -> dict[str, Any]:
    """All requests that were made, scored in both ways by turns: seconds, tokens, and the largest difference."""
    from hgrn2.eval.scoring import score, tokens_read

    requests = lm.scored
    seconds: dict[bool, list[float]] = {True: [], False: []}
    scores: dict[bool, list[float]] = {}
    for turn in range(2):
        for share in (True, False) if turn == 0 else (False, True):
            name = f"timing {'shared contexts' if share else 'whole sequences'}"
            begin = time.perf_counter()
            found = score(
                lm.model,
                requests,
                share=share,
                batch_size=lm.batch_size,
                progress=named(progress, name),
            )
            seconds[share].append(time.perf_counter() - begin)
            scores[share] = [one.log_probability for one in found]
    difference = max(abs(a - b) for a, b in zip(scores[True], scores[False], strict=True))
    tolerance = 1e-3 + 1e-5 * max(abs(value) for value in scores[False])  # float32 rounding stays far below
    refuse(difference > tolerance, f"shared contexts change scores by {difference:.2e} nats: please report")
    shared, whole = min(seconds[True]), min(seconds[False])
    return {
        "requests": len(requests),
        "shared_s": shared,
        "whole_s": whole,
        "speed_up": whole / shared,
        "shared_tokens": tokens_read(requests, share=True),
        "whole_tokens": tokens_read(requests, share=False),
        "difference": difference,
    }


def _print_tasks(loaded: "Loaded", results: "Sequence[TaskResult]") -> None:
    from hgrn2.eval.zero_shot import published

    table = console.Columns(("task", "items", "accuracy", "acc_norm", "perplexity", "seconds"))
    for one in results:
        part = f"{one.items:,}" if one.items == one.of else f"{one.items:,} of {one.of:,}"
        marks = [_per_cent(one.metrics.get(name), one.stderr.get(name)) for name in ("acc", "acc_norm")]
        perplexity = _power(one.metrics.get("perplexity"))
        table.add(one.title, part, *marks, perplexity, f"{one.seconds:.1f}")
    print(f"{loaded.name}, zero-shot, prompts and metrics of lm-eval's tasks; accuracies in per cent, ± standard error")
    console.show(table)
    if any(column["task"] == one.task for one in results for column in published()["columns"]):
        _print_published(loaded, results)


def _print_published(loaded: "Loaded", results: "Sequence[TaskResult]") -> None:
    """The paper's table with our row below it."""
    from hgrn2.eval.zero_shot import average, published, table_scores
    from hgrn2.models.count import parameters

    source = published()
    head = ("model", "P", "T", *(column["short"] for column in source["columns"]), "mean")
    table = console.Columns(head, frame=False)
    for row in source["rows"]:
        tokens = "-" if row["tokens_b"] is None else str(row["tokens_b"])
        marks = (f"{score:.2f}" for score in row["scores"])
        table.add(row["model"], f"{row['parameters_b']:.2f}", tokens, *marks, f"{row['average']:.2f}")
    scores = table_scores(results)
    size = parameters(loaded.model.config).total / 1e9
    table.add("this model", f"{size:.3f}", "", *(_number(one, 2) for one in scores), _number(average(scores), 2))
    print(f"Published, in per cent: {source['setting']}.")
    console.show(table)
    print(f"Source: {source['source']}. {source['metrics']}")
    if any(one.items != one.of for one in results):
        print("Tasks with fewer items than the whole set (see above) are not comparable to the digit.")


def show_wikitext(verb: "EvalOptions", loaded: "Loaded") -> None:
    """Perplexity of a WikiText file by words and by tokens."""
    from hgrn2.eval.words import detokenised, read_pages, verbatim
    from hgrn2.eval.zero_shot import need_harness

    assert verb.wikitext is not None
    pages = read_pages(verb.wikitext, verb.limit)
    lm = need_harness().HGRN2LM(loaded, batch_size=verb.batch_size)
    with progress_shown() as progress:
        found: list[WordPerplexity] = []
        for name, measure in (("detokenised", detokenised), ("verbatim", verbatim)):
            found.append(measure(lm, pages, progress=named(progress, name)))
    for one in found:
        case = {"wikitext": verb.wikitext.name, "text": one.text, "pages": one.pages, "words": one.words}
        _record(verb, loaded, case, one.word_perplexity, "word perplexity", asdict(one))
    if verb.json:
        results = [asdict(one) for one in found]
        return console.print_json(
            {"model": loaded.name, "data": str(verb.wikitext), "results": results, "note": OUT_OF_DOMAIN}
        )
    table = console.Columns(("text", "pages", "words", "tokens", "word perplexity", "token perplexity", "bits/byte"))
    for one in found:
        counts = (f"{one.pages:,}", f"{one.words:,}", f"{one.tokens:,}")
        marks = (_power(one.word_perplexity), _power(one.token_perplexity), f"{one.bits_per_byte:.4f}")
        table.add(one.text, *counts, *marks)
    print(f"{loaded.name} on {verb.wikitext}; the state is carried from the beginning of each page to its end")
    console.show(table)
    print("detokenised: text and counts of lm-eval's task wikitext. verbatim: the file as it stands; line ends count.")
    print(OUT_OF_DOMAIN)


def show_positions(verb: "EvalOptions", loaded: "Loaded") -> None:
    """Loss by position, as a table and a figure."""
    from hgrn2.eval.positions import by_position, draw, pieces

    corpus = verb.corpus(loaded)
    starts = pieces(corpus, verb.length, verb.limit)
    with progress_shown() as progress:
        batch_size = 8 if verb.batch_size is None else verb.batch_size
        options = {"batch_size": batch_size, "segment": verb.segment, "progress": progress}
        found = by_position(loaded.model, corpus, starts, verb.length, **options)
    name = Path(corpus.name).name  # rows and figures leave this machine, where nobody knows its folders
    told = f"{loaded.name} on {name}: {len(starts):,} pieces of {verb.length:,} tokens"
    trained_on = _training_length(loaded)
    if verb.plot is not None:
        draw(found, verb.plot, title=told, trained_on=trained_on)
    for one in found:
        case = {"data": name, "pieces": len(starts), "length": verb.length, "first": one.first, "stop": one.stop}
        _record(verb, loaded, case, one.nats_per_token, "nats/token", asdict(one))
    if verb.json:
        values = {"model": loaded.name, "data": corpus.name, "pieces": len(starts), "length": verb.length}
        return console.print_json(values | {"trained_on": trained_on, "buckets": [asdict(one) for one in found]})
    table = console.Columns(("tokens before", "nats/token", "±", "perplexity", "predicted tokens"))
    for one in found:
        span = str(one.first) if one.stop == one.first + 1 else f"{one.first:,} to {one.stop - 1:,}"
        table.add(span, f"{one.nats_per_token:.4f}", *_marks(one))
    print(told)
    console.show(table)
    print("Each piece begins with a zero state, which is carried to its end; ± is the standard error over pieces.")
    if trained_on is not None:
        print(f"The model was trained on sequences of {trained_on:,} tokens.")
    if verb.plot is not None:
        print(f"drawn: {verb.plot}")


def _marks(one: "Bucket") -> tuple[str, str, str]:
    return _number(one.stderr, 4), f"{one.perplexity:,.3f}", f"{one.tokens:,}"


def _training_length(loaded: "Loaded") -> int | None:
    train = (loaded.run_config() or {}).get("train")
    length = train.get("sequence_length") if isinstance(train, dict) else None
    return length if isinstance(length, int) else None


def _record(
    verb: "EvalOptions", loaded: "Loaded", case: dict[str, Any], value: float, unit: str, details: Mapping[str, Any]
) -> None:
    """A row in eval.jsonl, where a folder was given; numbers that JSON cannot hold become null."""
    if verb.out is None or not math.isfinite(value):
        return
    from hgrn2.models.count import parameters
    from hgrn2.rows import append, measurement

    known = {"model": loaded.name, "parameters": parameters(loaded.model.config).total} | console.finite(details)
    append(verb.out, measurement("eval", case, "hgrn2", "auto", [value], unit, known))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _power(perplexity: float | None) -> str:
    """Perplexities of untrained models have no end of digits."""
    return f"{perplexity:.3e}" if perplexity is not None and perplexity >= 1e6 else _number(perplexity, 2)


def _per_cent(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" + ("" if stderr is None or math.isnan(stderr) else f" ±{100 * stderr:.2f}")
