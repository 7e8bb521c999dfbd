"""`hgrn2 train lm --plan`: what a run would take, before anything of it starts."""

from typing import TYPE_CHECKING

from hgrn2 import console

if TYPE_CHECKING:
    from hgrn2.train.config import RunConfig


def show_plan(run: "RunConfig", as_json: bool) -> None:
    """Print memory, traffic and time of a run as its settings are."""
    from dataclasses import asdict

    from hgrn2.train.plan import lines, plan

    found = plan(run)
    if as_json:
        values = {
            "gpu": found.machine.name, "gpus": run.parallel.ranks, "parameters": found.parameters,
            "memory_bytes": found.memory, "peak_bytes": found.peak, "fits": found.fits,
            "sent_bytes": [asdict(one) for one in found.traffic], "seconds": found.seconds, "step_s": found.step_s,
            "tokens_per_s": found.tokens_per_s, "mfu": found.mfu,
        }  # fmt: skip
        return console.print_json(values, indent=None)
    groups: dict[str, list[tuple[str, str]]] = {}
    for heading, what, value in lines(found):
        groups.setdefault(heading, []).append((what, value))
    tokens, processes = f"{run.train.tokens_per_step:,} tokens per step", f"{run.parallel.ranks} x {found.machine.name}"
    print(
        f"Plan: {found.parameters / 1e6:,.0f} M parameters, vocabulary {run.model.vocab_size:,}, {tokens}, {processes}"
    )
    console.show(*(console.Columns((heading, ""), rows) for heading, rows in groups.items()))
    print(
        "nothing was started; docs/distributed.md says which of these numbers are exact"
        + ("" if found.fits else ", and this run does not fit: train.recompute=block, train.accumulate or more shards")
    )


def show_table() -> None:
    """Print the table of docs/distributed.md."""
    from hgrn2.train.plan_table import markdown

    print(markdown(), end="")
