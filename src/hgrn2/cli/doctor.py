"""`hgrn2 doctor`: does every kernel compute what it should on this machine?"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hgrn2 import console
from hgrn2.cli.progress import progress_shown

if TYPE_CHECKING:
    import torch

    from hgrn2.doctor.examination import Examination

Flag = tyro.conf.FlagCreatePairsOff[bool]
Op = Literal["hgru2", "gated_outer_scan", "gated_scan", "causal_conv", "selective_scan", "linear_cross_entropy"]
_MACHINE = ("hgrn2", "python", "torch", "triton", "cuda", "driver", "compiler")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Name this machine's devices and versions, and hold every operator's kernels to the float64 reference on it.

    Output, state, every gradient and the one-token step are checked on each backend that can serve here. Where one is
    wrong the exit code is 1, a sentence says what will run instead, and backend auto avoids it from then on, until
    hgrn2, torch, triton or the device is another one, doctor finds it right, or --forget.

    Example: hgrn2 doctor --device cpu --json
    """

    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto"
    """cpu, cuda or cuda:N; auto is the CPU and one GPU of each kind."""
    ops: Annotated[tuple[Op, ...], tyro.conf.arg(metavar="OP [OP ...]", help_behavior_hint="(default: all)")] = ()
    """Only these operators."""
    forget: Flag = False
    """Trust every kernel again that doctor has found wrong here, and check nothing."""
    json: Flag = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 where a kernel is wrong or could not be checked."""
        if self.forget:
            return self._forget()
        from hgrn2.doctor import machine
        from hgrn2.doctor.checks import OPS
        from hgrn2.doctor.examination import as_json, examine

        devices = machine.devices(self.device)
        if not self.json:
            _print_machine(devices)
        with progress_shown() as progress:
            found = examine(devices, self.ops or OPS, progress)
        if self.json:
            console.print_json(as_json(found, devices))
        else:
            _print_choices(devices)
            _print_slow(devices)
            _print_checks(found)
        for sentence in found.sentences:
            print(f"hgrn2: {sentence}", file=sys.stderr)
        return 0 if found.healthy else 1

    def _forget(self) -> int:
        from hgrn2.ops import known_bad

        known = known_bad.forget()
        if self.json:
            console.print_json({"forgotten": known}, indent=None)
        else:
            print(f"{known} records of known-bad kernels forgotten" if known else "no kernel is known to be bad")
        return 0


def _print_machine(devices: "list[torch.device]") -> None:
    from hgrn2.doctor import machine

    for device in devices:
        print(f"{device!s:<9}{machine.name_of(device)}")
    found = machine.machine()
    print("with     " + ", ".join(f"{name} {found[name]}" for name in _MACHINE if found[name]))


def _print_choices(devices: "list[torch.device]") -> None:
    """Operators and dtypes that have the same backend for the same reason share a line."""
    from hgrn2.doctor import machine

    for device in devices:
        print(f"\nbackend auto on {device}, for heads of {machine.HEAD}:")
        lines: dict[tuple[str, str, str], list[str]] = {}
        for row in machine.choices(device):
            lines.setdefault((row["op"], row["backend"], row["why"]), []).append(row["dtype"])
        together: dict[tuple[str, str, str], list[str]] = {}
        for (op, backend, why), kinds in lines.items():
            together.setdefault((backend, ", ".join(kinds), why), []).append(op)
        for (backend, kinds, why), ops in together.items():
            print(f"  {', '.join(ops)} in {kinds}: {backend} ({why})")


def _print_slow(devices: "list[torch.device]") -> None:
    from hgrn2.doctor.speed import slow_parts

    slow = slow_parts(devices)
    if slow:
        print("\nslow on this processor:")
    for sentence in slow:
        print(f"  {sentence}")


def _print_checks(found: "Examination") -> None:
    rows = []
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for outcome in found.outcomes:
        check = outcome.check
        groups.setdefault((check.op, str(check.device), check.backend), []).append(outcome)
    for key, outcomes in groups.items():
        bad = [outcome for outcome in outcomes if not outcome.ok]
        shown = bad[0].what if bad else _nearest(outcomes)
        mark = f"{len(bad)} of {len(outcomes)} failed" if bad else f"{len(outcomes)} right"
        rows.append((*key, mark, shown, f"{sum(outcome.seconds for outcome in outcomes):.1f}"))
    print()
    head = ("operator", "device", "backend", "checks", "nearest to its limit", "s")
    console.show(console.Columns(head, rows, text=range(5), frame=False))
    count, passed = len(found.outcomes), sum(outcome.ok for outcome in found.outcomes)
    what = f"all {count} checks passed" if found.healthy else f"{passed} of {count} checks passed"
    print(f"{what} in {found.seconds:.0f} s")


def _nearest(outcomes: list[Any]) -> str:
    """The right result that came nearest to its limit."""
    worst = max(
        (outcome.worst for outcome in outcomes if outcome.worst is not None),
        key=lambda finding: finding.error / finding.allowed,
        default=None,
    )
    return f"{worst.what} {worst.error:.0e} of {worst.allowed:.0e}" if worst else ""
