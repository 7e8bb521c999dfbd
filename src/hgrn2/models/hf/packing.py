"""Several documents in one row, as collators without padding make them: where each begins, and reading them apart."""

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel


def starts_of(position_ids: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """Offsets [N+1] of documents in B rows laid side by side, from positions [B or 1,T] that begin again at 0.

    None where no row holds a second document: there, state and all, ordinary reading is the same thing.
    """
    if position_ids is None or tokens == 1 or position_ids.dim() != 2 or position_ids.shape[1] != tokens:
        return None
    begins = (position_ids == 0).expand(batch, tokens).clone()
    begins[:, 0] = False
    if not bool(begins.any()):
        return None
    begins[:, 0] = True
    return torch.cat((begins.flatten().nonzero().flatten(), begins.new_full((1,), batch * tokens, dtype=torch.int64)))


def checked(cu_seq_lens: Tensor, batch: int, tokens: int) -> Tensor:
    """Offsets that a collator made (`cu_seq_lens_q`): one row, from 0 to its length."""
    fits = cu_seq_lens.dim() == 1 and cu_seq_lens.numel() >= 2 and not cu_seq_lens.is_floating_point()
    if batch != 1 or not fits:
        raise UserError(f"cu_seq_lens_q needs one row of packed documents and a vector of offsets; got {batch} rows")
    if int(cu_seq_lens[0]) != 0 or int(cu_seq_lens[-1]) != tokens:
        raise UserError(f"cu_seq_lens_q runs from {int(cu_seq_lens[0])} to {int(cu_seq_lens[-1])}, the row to {tokens}")
    return cu_seq_lens.long()


def read_documents(
    language: LanguageModel, x: Tensor, state: ModelState | None, offsets: Tensor, trace: list[Tensor] | None
) -> tuple[Tensor, ModelState]:
    """`LanguageModel.hidden` with a state of its own for each document.

    Args:
        x: ids [B,T] or embeddings [B,T,D].
        state: of the B rows; the first document of each goes on from it.
        offsets: [N+1] over the B*T tokens; each row begins a document.

    Returns:
        Features [B,T,D] and the state after the last document of each row.
    """
    batch, tokens = x.shape[:2]
    rows = torch.arange(batch, device=offsets.device) * tokens
    first = torch.searchsorted(offsets, rows)
    last = torch.cat((first[1:], first.new_full((1,), offsets.numel() - 1))) - 1
    start = None
    if state is not None:
        documents = offsets.numel() - 1
        start = state.map(lambda x: x.new_zeros((documents, *x.shape[1:]))).insert(first, state)
    inner: list[Tensor] | None = None if trace is None else []
    y, final = language.hidden(x.flatten(0, 1).unsqueeze(0), start, cu_seqlens=offsets, trace=inner)
    assert final is not None
    if trace is not None and inner is not None:
        trace += [part.view(batch, tokens, -1) for part in inner]
    return y.view(batch, tokens, -1), final.select(last)
