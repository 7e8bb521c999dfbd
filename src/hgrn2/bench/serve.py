"""Serving over real HTTP: the server in a process of its own, clients in this one, both on the same machine.

The baselines of the same run are a plain generate loop over the same model in this process, one text at a time, and
transformers' over a batch (`serve_baselines`), while the server has nothing to do.
"""

import asyncio
import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.bench.http_load import Answered, Client
from hgrn2.bench.serve_baselines import loop, threaded, transformers_generate
from hgrn2.bench.serve_int8 import measure as measure_int8
from hgrn2.bench.serve_int8 import text_of
from hgrn2.bench.serve_settings import ServeBench
from hgrn2.errors import UserError
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import Loaded
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement

BENCH = "serve"
Record = Callable[[Row], None]
START_SECONDS = 120


@dataclass(frozen=True)
class _Setting:
    """What all measurements share."""

    bench: ServeBench
    loaded: Loaded
    record: Record
    progress: Progress
    host: str
    port: int
    process: int

    def case(self, scenario: str, **more: Any) -> dict[str, Any]:
        """Of a row."""
        config = self.loaded.model.config
        sizes = {"width": config.width, "layers": config.layers, "head_size": config.mixer.head_size}
        return {"scenario": scenario, **sizes, "vocab_size": config.vocab_size, "slots": self.bench.slots, **more}

    def prompt(self, tokens: int, seed: int) -> list[int]:
        """Random ids."""
        size = self.loaded.need_tokenizer().vocab_size - 1  # the last may be an end of document
        return np.random.default_rng((self.bench.seed, seed)).integers(size, size=tokens).tolist()

    def body(self, tokens: int, seed: int, new: int, **more: Any) -> dict[str, Any]:
        """Of a request that makes `new` tokens."""
        return {"prompt": self.prompt(tokens, seed), "max_tokens": new, "seed": seed, "ignore_eos": True, **more}

    def row(self, case: dict[str, Any], samples: Sequence[float], unit: str, details: dict[str, Any]) -> None:
        """Record a measurement of the server, with the load of the whole machine: clients count, and others too."""
        details = {**details, "load_average": round(os.getloadavg()[0], 1)}
        self.record(measurement(BENCH, case, "hgrn2", "serve", samples, unit, details))

    def client(self) -> Client:
        """A new connection."""
        return Client(self.host, self.port)


def measure(loaded: Loaded, bench: ServeBench, record: Record, progress: Progress = silent) -> None:
    """Start a server with the model of a folder and measure what the settings ask for."""
    source = loaded.found.run or loaded.found.folder
    if loaded.found.run is None or loaded.found.step is not None:
        source = loaded.found.folder
    with _server(source, bench) as (process, port):
        setting = _Setting(bench, loaded, record, progress, "127.0.0.1", port, process)
        for number, scenario in enumerate(bench.scenarios):
            progress(scenario, number, len(bench.scenarios))
            asyncio.run(_SCENARIOS[scenario](setting))


@contextlib.contextmanager
def _server(source: Path, bench: ServeBench) -> Iterator[tuple[int, int]]:
    """A server of its own: its process and its port."""
    command = [sys.executable, "-c", "import sys; from hgrn2.cli.main import entry; sys.exit(entry())", "serve"]
    command += [str(source), "--port", "0", "--device", "cpu", "--slots", str(bench.slots), "--streams-per-key", "8192"]
    command += [
        "--cache-mb",
        str(bench.cache_mb),
        "--queue",
        "8192",
        "--queue-seconds",
        "3600",
        "--max-connections",
        "8192",
    ]
    command += [] if bench.threads is None else ["--threads", str(bench.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if "http://" not in line:
                raise UserError("the server to be measured did not start; its error stands above")
            yield server.pid, int(line.rsplit(":", 1)[1])
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def resident_bytes(process: int) -> int:
    """Resident memory of a process (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise UserError("this system does not tell a process's resident memory")


async def _closed(setting: _Setting) -> None:
    _baseline(setting, "generate loop", 1)
    bench = setting.bench
    for streams in bench.streams:
        setting.progress(f"{streams} streams", 0, 0)
        end = time.perf_counter() + bench.seconds
        seeds = iter(range(1_000_000))

        async def ask(end: float = end, seeds: Iterator[int] = seeds) -> list[Answered]:
            client, answers = setting.client(), []
            while time.perf_counter() < end or not answers:
                answers.append(await client.stream(setting.body(bench.prompt, next(seeds), bench.tokens)))
            await client.close()
            return answers

        began = time.perf_counter()
        answers = [one for some in await asyncio.gather(*(ask() for _ in range(streams))) for one in some]
        case = setting.case("closed", streams=streams, prompt=bench.prompt, new_tokens=bench.tokens)
        _load_row(setting, case, answers, time.perf_counter() - began)


async def _open(setting: _Setting) -> None:
    bench = setting.bench
    for rate in bench.rates:
        setting.progress(f"{rate:g} requests/s", 0, 0)
        chance = random.Random(bench.seed)
        tasks: list[asyncio.Task[Answered]] = []
        began = time.perf_counter()
        while time.perf_counter() - began < bench.seconds:
            body = setting.body(bench.prompt, len(tasks), bench.tokens)
            tasks.append(asyncio.create_task(_alone(setting, body)))
            await asyncio.sleep(chance.expovariate(rate))
        answers = await asyncio.gather(*tasks)
        case = setting.case("open", rate=rate, prompt=bench.prompt, new_tokens=bench.tokens)
        _load_row(setting, case, answers, time.perf_counter() - began)


async def _alone(setting: _Setting, body: dict[str, Any]) -> Answered:
    client = setting.client()
    try:
        return await client.stream(body)
    finally:
        await client.close()


async def _long_prompt(setting: _Setting) -> None:
    """Gaps between tokens of all streams while one more reads a long prompt; before that, without it."""
    bench, streams = setting.bench, min(max(setting.bench.streams), setting.bench.slots - 1)
    done = False

    async def keep_asking(number: int) -> list[Answered]:
        client, answers = setting.client(), []
        while not done:
            seed = 1000 * number + len(answers)
            answers.append(await client.stream(setting.body(bench.prompt, seed, bench.tokens, cache_prompt=False)))
        await client.close()
        return answers

    tasks = [asyncio.create_task(keep_asking(n)) for n in range(streams)]
    await asyncio.sleep(bench.seconds)
    began = time.perf_counter()
    long = await _alone(setting, setting.body(bench.long_prompt, 999_999, 1))
    ended = time.perf_counter()
    done = True
    answers = [one for some in await asyncio.gather(*tasks) for one in some]
    _refuse_faults([*answers, long])
    for name, after, before in (("without", began - bench.seconds, began), ("while", began, ended)):
        gaps = [
            late - early
            for one in answers
            for early, late in zip(one.times, one.times[1:], strict=False)
            if after <= early and late <= before
        ]
        case = setting.case("long-prompt", streams=streams, long_prompt=bench.long_prompt, reading=name == "while")
        details = _spread("gap", gaps) | {"p99_of_median": _ratio(gaps), "first_token_s": round(long.first, 4)}
        setting.row(case, [1000 * gap for gap in gaps], "ms", details)


async def _context(setting: _Setting) -> None:
    """Decoding after contexts of several lengths, which take turns."""
    bench, client = setting.bench, setting.client()
    states = {}
    for number, context in enumerate(bench.contexts):
        setting.progress(f"reading {context} tokens", number, len(bench.contexts))
        body = {"prompt": setting.prompt(context, context)}
        states[context] = (await client.json("POST", "/v1/states", body))["id"]
    speeds: dict[int, list[float]] = {context: [] for context in bench.contexts}
    for turn in range(6):
        for context, state in states.items():
            answered = await client.stream(
                {"prompt": "", "state": state, "max_tokens": bench.tokens, "ignore_eos": True}
            )
            _refuse_faults([answered])
            if turn:  # the first pays for what is made once
                speeds[context].append((answered.tokens - 1) / (answered.times[-1] - answered.times[0]))
    base = statistics.median(speeds[min(speeds)])
    for context, samples in speeds.items():
        details = {"of_shortest_context": round(statistics.median(samples) / base, 4)}
        case = setting.case("context", streams=1, context=context, new_tokens=bench.tokens)
        setting.row(case, samples, "tokens/s", details)
    await client.close()


async def _state(setting: _Setting) -> None:
    """The first token of a request that goes on from a saved state, beside one that reads the text."""
    bench, client = setting.bench, setting.client()
    prompt = setting.prompt(bench.state_tokens, 7)
    began = time.perf_counter()
    state = (await client.json("POST", "/v1/states", {"prompt": prompt}))["id"]
    reading = time.perf_counter() - began
    firsts = []
    for turn in range(6):
        answered = await client.stream({"prompt": [5, 6, 7], "state": state, "max_tokens": 4, "seed": turn})
        _refuse_faults([answered])
        firsts += [1000 * answered.first] if turn else []
    case = setting.case("state", streams=1, context=bench.state_tokens, new_tokens=4)
    details = {"reading_s": round(reading, 3), "state_bytes": setting.loaded.model.zeros(1).nbytes}
    setting.row(case, firsts, "ms", details)
    await client.close()


async def _memory(setting: _Setting) -> None:
    """Resident memory after the first hundredth of many requests, and after all of them."""
    bench = setting.bench
    early, left, faults = 0, bench.requests, 0
    reads: list[int] = []

    async def ask() -> None:
        nonlocal left, faults, early
        client = setting.client()
        while left > 0:
            left -= 1
            number = bench.requests - left
            answered = await client.stream(setting.body(bench.prompt, number, 4))
            faults += answered.fault is not None
            if number == max(100, bench.requests // 100):
                early = resident_bytes(setting.process)
            if number % max(1, bench.requests // 20) == 0:
                reads.append(resident_bytes(setting.process))
                setting.progress("requests", number, bench.requests)
        await client.close()

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(min(64, bench.slots))))
    seconds = time.perf_counter() - began
    late = resident_bytes(setting.process)
    sizes = {"requests": bench.requests, "prompt": bench.prompt, "new_tokens": 4, "cache_mb": bench.cache_mb}
    case = setting.case("memory", **sizes)
    details = {
        "bytes_after_100": early, "bytes_after_all": late, "grown": round(late / early - 1, 4), "failed": faults,
        "requests_per_s": round(bench.requests / seconds, 1),
    }  # fmt: skip
    setting.row(case, [x / 1e6 for x in reads], "MB", details)


def _baseline(setting: _Setting, subject: str, streams: int) -> None:
    """The same model in this process."""
    bench = setting.bench
    generator = Generator(setting.loaded.model, setting.loaded.need_tokenizer())
    measure, backend = {
        "generate loop": (loop, "torch"), "transformers": (transformers_generate, "generate")
    }[subject]  # fmt: skip
    setting.progress(f"{subject}, {streams} at a time", 0, 0)

    def prompts(turn: int) -> list[list[int]]:
        return [setting.prompt(bench.prompt, streams * turn + n) for n in range(streams)]

    samples = threaded(bench.threads, lambda: measure(generator, prompts, bench.tokens))
    case = setting.case("closed", streams=streams, prompt=bench.prompt, new_tokens=bench.tokens)
    setting.record(measurement(BENCH, case, subject, backend, samples, "tokens/s", {}))


async def _transformers(setting: _Setting) -> None:
    for streams in setting.bench.streams:
        _baseline(setting, "transformers", streams)


async def _int8(setting: _Setting) -> None:
    bench, model = setting.bench, setting.loaded.model
    tokenizer = setting.loaded.need_tokenizer()
    size = bench.int8_context + bench.int8_tokens + 1
    ids = text_of(model, tokenizer, bench.text, 2 * size, bench.seed)
    costs = measure_int8(model, ids, bench.int8_context, bench.int8_tokens, setting.progress)
    own = "its own" if bench.text is None else bench.text.name
    case = setting.case("int8", context=bench.int8_context, new_tokens=bench.int8_tokens, text=own)
    for cost in costs:
        nats = [mine - exact for mine, exact in zip(cost.nats, costs[0].nats, strict=True)]
        details = {
            "state_bytes": cost.bytes, "nats_more": round(statistics.mean(nats), 6),
            "nats_more_at_most": round(max(nats), 6), "same_greedy_tokens": statistics.median(cost.greedy),
        }  # fmt: skip
        held = {"exact": "float32"}.get(cost.held, cost.held)
        setting.record(measurement(BENCH, case, "hgrn2", f"states in {held}", cost.nats, "nats/token", details))


def _load_row(setting: _Setting, case: dict[str, Any], answers: Sequence[Answered], seconds: float) -> None:
    failed = [one for one in answers if one.fault is not None]
    good = [one for one in answers if one.fault is None]
    if not good:
        raise UserError(f"every request failed: {failed[0].fault}")
    gaps = [gap for one in good for gap in one.gaps]
    details = {"completed": len(good), "failed": len(failed), **_spread("first", [one.first for one in good])}
    details |= {**_spread("gap", gaps), "p99_of_median": _ratio(gaps)}
    details["resident_mb"] = round(resident_bytes(setting.process) / 1e6, 1)
    speed = sum(one.tokens for one in good) / seconds
    setting.row(case, [speed], "tokens/s", details)


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    values = np.array(seconds) * 1000
    return {
        f"{name}_p50_ms": round(float(np.median(values)), 2),
        f"{name}_p99_ms": round(float(np.quantile(values, 0.99)), 2),
    }


def _ratio(gaps: Sequence[float]) -> float:
    """The 99 % quantile over the median."""
    return round(float(np.quantile(gaps, 0.99) / max(np.median(gaps), 1e-9)), 3)


def _refuse_faults(answers: Sequence[Answered]) -> None:
    fault = next((one.fault for one in answers if one.fault is not None), None)
    if fault is not None:
        raise UserError(f"a request failed: {fault}")


_SCENARIOS = {
    "closed": _closed, "open": _open, "long-prompt": _long_prompt, "context": _context, "state": _state,
    "memory": _memory, "transformers": _transformers, "int8": _int8,
}  # fmt: skip
