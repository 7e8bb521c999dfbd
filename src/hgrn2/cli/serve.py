"""`hgrn2 serve`: answer over HTTP as OpenAI's API does, many at once, with memory that does not grow with context."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from hgrn2.models.quantize.config import Quantization, QuantizeConfig
from hgrn2.serve.settings import EngineConfig, HttpConfig
from hgrn2.settings import refuse


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a trained model over HTTP, as OpenAI's API does, with a page to chat on.

    Every text in progress is one state of constant size. States can be saved, forked and gone on from; prompts that
    begin alike are read once. Only this machine is heard unless --host says otherwise, which needs --keys.

    Example: hgrn2 serve runs/demo --states my-states
    """

    model: tyro.conf.Positional[
        Annotated[Path | None, tyro.conf.arg(metavar="RUN_OR_MODEL", help_behavior_hint="")]
    ] = None
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    static: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: none)")] = None
    """Instead of a model: the files of a folder of hgrn2 export web, whose page computes in the browser."""
    name: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: the folder's)")] = None
    """The model's id in requests."""
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Keys that clients must send one of, one per line; the environment's HGRN2_API_KEY is one as well."""
    states: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: a temporary one)")] = None
    """The folder of saved states; without it they are gone when the server ends."""
    chat_template: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the tokenizer's)")
    ] = None
    """A Jinja template for conversations; where there is none, lines as `user: …` and `assistant: …`."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: PyTorch's)")] = None
    """Of the processor."""
    quantize: Annotated[
        Quantization | None, tyro.conf.arg(metavar="{int8,int4}", help_behavior_hint="(default: as saved)")
    ] = None
    """Hold the matrices in eight or four bits."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    http: HttpConfig = field(default_factory=HttpConfig)

    def run(self) -> None:
        refuse(self.threads is not None and not 1 <= self.threads <= 1024, "--threads must be in [1, 1024]")
        bad = self.name is not None and not (self.name.isprintable() and 1 <= len(self.name) <= 200)
        refuse(bad, "--name must be 1 to 200 printable characters")
        both = (self.model is None) == (self.static is None)
        refuse(both, "give a run or model folder, or --static with a folder of hgrn2 export web")
        if self.static is not None:
            from hgrn2.serve.folder import serve_folder

            serve_folder(self.static, self.http.host, self.http.port, _say)
            return
        assert self.model is not None
        from hgrn2.serve.run import Served, read_keys, serve

        served = Served(
            model=self.model, name=self.name, keys=read_keys(self.keys), states=self.states,
            template=self.chat_template, device=self.device, threads=self.threads,
            quantization=None if self.quantize is None else QuantizeConfig(kind=self.quantize), engine=self.engine,
            http=self.http,
        )  # fmt: skip
        serve(served, told=_say, warn=_warn)


def _say(line: str) -> None:
    print(line, flush=True)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
