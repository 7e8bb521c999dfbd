"""The cache of `generate`: the model's whole state, the number of tokens in it, and a way to take tokens back.

transformers' own cache for linear attention keeps a recurrent state only where a convolution was written before it, so
a model without one decodes as if it had no past, and says nothing. Nothing of that class is used here.

A recurrent state cannot forget its last tokens. Where `generate` needs that (assisted decoding), the cache records: it
keeps the state from before, and the tokens since. Taking some back puts the old state in place and leaves the others
waiting; the next call reads them first. The result is that of never having read the rest, at the price of reading
accepted tokens twice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import Cache

from hgrn2.errors import UserError
from hgrn2.files import atomic_path
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import model_hash, reported
from hgrn2.models.tensor_files import opened
from hgrn2.settings import refuse

FORMAT = "hgrn2-cache-1"


class HGRN2Cache(Cache):
    """States of B sequences, in float32 (float64 of a float64 model) whatever the model's precision.

    Made empty; a model's call fills it. `get_seq_length` counts columns read, padding included, as transformers does.

    A value: what goes in (`state`) and what comes out (`state`, `fork`, `copy.copy`) is copied, so that no step of one
    holder changes what another one has.

    Args:
        state: states to start from, in place of zeros: learned ones, or of `LanguageModel`; gradients reach them.
    """

    def __init__(self, state: ModelState | None = None) -> None:
        super().__init__(layers=[])
        self.held = None if state is None else state.copy()
        """The state itself, for the model's call: nobody else has it, so that the next step may write into it."""
        self.made = False
        """Whether a model's call made it, and with it its precision."""
        self.seen = 0
        self.owner: Identity | None = None
        """Which model object wrote the state; a state means nothing to another one."""
        self.recording = False
        self.before: ModelState | None = None
        """While recording: the state before the tokens of `since`."""
        self.since: Tokens | None = None
        self.waiting: Tokens | None = None
        """Tokens that count as seen but are not in the state: the next call reads them first."""

    def __repr__(self) -> str:
        return f"HGRN2Cache(tokens={self.seen}, batch={self.batch_size}, bytes={self.nbytes})"

    def __len__(self) -> int:
        return 1 if self.held is None else len(self.held.layers)

    def __copy__(self) -> "HGRN2Cache":
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> "HGRN2Cache":
        return self.fork()

    @property
    def state(self) -> ModelState | None:
        """A copy of the state after all that was read, or None."""
        return None if self.held is None else self.held.copy()

    @state.setter
    def state(self, state: ModelState | None) -> None:
        self.held, self.made = None if state is None else state.copy(), False

    @property
    def nbytes(self) -> int:
        """Bytes of the state; independent of the number of tokens."""
        return 0 if self.held is None else self.held.nbytes

    # --- what transformers asks

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no longest text."""
        return -1

    get_max_cache_shape = get_max_length  # its older name

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(columns of a mask over everything read, offset)."""
        return self.seen + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether anything was read."""
        return self.held is not None

    @property
    def batch_size(self) -> int:
        """B, or -1 while empty."""
        return -1 if self.held is None else self.held.batch

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        """False: tokens are taken back from a recording only, which costs a copy of the state."""
        return False

    @property
    def is_initialized(self) -> bool:
        return self.held is not None

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self)

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self)  # not in the library's sense, which is about its own layers

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: layers of ours hand over whole states; attention layers have no place here."""
        raise UserError("HGRN2Cache holds recurrent states of HGRN models; it takes no keys and values")

    update_conv_state = update_recurrent_state = update

    def reset(self) -> None:
        """Empty it."""
        self.held = self.owner = self.before = self.since = self.waiting = None
        self.made, self.seen = False, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes a copy of row beam_idx[b], as beam search needs."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order."""
        if self.held is None:
            return
        self.held = self.held.select(indices)
        self.before = None if self.before is None else self.before.select(indices)
        self.since = None if self.since is None else self.since.select(indices)
        self.waiting = None if self.waiting is None else self.waiting.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, side by side."""
        if self.held is not None:
            self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    # --- taking tokens back

    def activate_past_recording(self) -> None:
        """From here on keep what `crop` needs: one more state, and the ids of the tokens since the last `crop`."""
        self.recording, self.before, self.since = True, self.held, None

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last -tokens_to_remove columns; 0 accepts all that was read.

        Raises:
            UserError: nothing was recorded, more than was recorded, or a positive number, whose meaning differs
                between versions of transformers.
        """
        count = -int(tokens_to_remove)  # some versions give a tensor
        refuse(count < 0, f"crop takes the number of tokens to take back as a negative number, not {tokens_to_remove}")
        recorded = 0 if self.since is None else self.since.count
        if not self.recording or count > recorded:
            refuse(
                count > 0,
                f"a recurrent state cannot forget its last {count} tokens: {recorded} were recorded "
                "(activate_past_recording, or fork the cache before them)",
            )
            return
        if count == 0:
            if self.waiting is None:
                self.accept()
            return
        assert self.since is not None
        self.seen -= count
        self.held = self.before
        self.since = self.since.cut(recorded - count)
        self.waiting = self.since

    def record(self, tokens: Tensor, padding_mask: Tensor | None) -> None:
        """Note what was read, if this is being recorded."""
        if self.recording:
            refuse(tokens.is_floating_point(), "a recording cache needs ids, not embeddings")
            read = Tokens(tokens.clone(), padding_mask)  # the caller may write into its buffer
            self.since = read if self.since is None else self.since.join(read)

    def accept(self) -> None:
        """What was read so far can no longer be taken back."""
        self.before, self.since, self.waiting = self.held, None, None

    # --- values

    def fork(self) -> "HGRN2Cache":
        """A copy that goes its own way; both can go on from here."""
        other = HGRN2Cache()
        other.__dict__.update(self.__dict__)
        other.held = None if self.held is None else self.held.copy()
        same = self.before is self.held
        other.before = other.held if same else None if self.before is None else self.before.copy()
        return other

    def to(self, device: torch.device | str) -> "HGRN2Cache":
        """A copy on another device."""
        refuse(self.waiting is not None, "tokens wait in this cache; let the model read on before it moves")
        other = self.fork()
        other.held = None if other.held is None else other.held.to(device)
        other.before, other.since = other.held, None
        return other

    def save(self, path: str | Path, model: Any) -> None:
        """Write it to one safetensors file, whole or absent; `model` is the one that filled it.

        Raises:
            UserError: an empty cache; a model with adapters in place, or quantised or offloaded weights, whose settings
                and weights do not say what it computes.
        """
        if self.held is None or self.waiting is not None:
            raise UserError("only a cache that has read something, and has nothing waiting, can be saved")
        tensors = {
            name: torch.view_as_real(x).contiguous() if x.is_complex() else x.contiguous()
            for name, x in self.held.map(lambda x: x.detach().cpu()).tensors().items()
        }
        metadata = {"format": FORMAT, "tokens": str(self.seen), "model_hash": model_hash(_language(model))}
        with reported(Path(path)), atomic_path(Path(path)) as temporary:
            save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path, model: Any) -> "HGRN2Cache":
        """Read a saved cache for `model`; a state of other weights, or a damaged file, is a `UserError`."""
        language = _language(model)
        like = language.zeros(1)
        with opened(Path(path)) as file:
            metadata = file.metadata() or {}
            refuse(metadata.get("format") != FORMAT, f"{path} is not a saved cache")
            refuse(metadata.get("model_hash") != model_hash(language), f"{path} is a cache of another model")
            tokens = metadata.get("tokens", "")
            whole = tokens.isascii() and tokens.isdigit() and len(tokens) <= 18
            refuse(not whole, f"{path} is damaged: its number of tokens is {tokens[:30]!r}")
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        refuse(set(stored) != set(like.tensors()), f"{path} is damaged: its tensors are not those of a state")
        named = {
            name: (torch.view_as_complex(stored[name]) if x.is_complex() else stored[name]).to(x.device)
            for name, x in like.tensors().items()
        }
        cache = cls()
        cache.held, cache.seen = ModelState.from_tensors(named, like), int(tokens)
        cache.owner = next(
            one for part in model.modules() if isinstance(one := getattr(part, "identity", None), Identity)
        )
        return cache


class Identity:
    """Marks a model object: a deep copy of the model, or one that was unpickled, has another."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Identity":
        return Identity()

    def __reduce__(self) -> tuple[Any, ...]:
        return Identity, ()


@dataclass(frozen=True)
class Tokens:
    """Ids [B,m] with their mask, as they were read."""

    ids: Tensor
    padding_mask: Tensor | None

    @property
    def count(self) -> int:
        return self.ids.shape[1]

    def mask(self) -> Tensor:
        return torch.ones_like(self.ids, dtype=torch.bool) if self.padding_mask is None else self.padding_mask

    def join(self, other: "Tokens") -> "Tokens":
        both = self.padding_mask is None and other.padding_mask is None
        return Tokens(torch.cat((self.ids, other.ids), 1), None if both else torch.cat((self.mask(), other.mask()), 1))

    def cut(self, count: int) -> "Tokens | None":
        if count == 0:
            return None
        return Tokens(self.ids[:, :count], None if self.padding_mask is None else self.padding_mask[:, :count])

    def select(self, rows: Tensor) -> "Tokens":
        return Tokens(self.ids[rows], None if self.padding_mask is None else self.padding_mask[rows])


def _language(model: Any) -> LanguageModel:
    to = getattr(model, "to_language_model", None)
    refuse(to is None, "give the model with its head, as in HGRN2ForCausalLM")
    return to()  # pyright: ignore[reportOptionalCall]
