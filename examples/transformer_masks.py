"""A transformer with masks: sentences of several lengths in one batch, whose padding is in no statistic.

Needs torch. `python transformer_masks.py` counts the inputs of an encoder's layers with and without its mask, and
prints how far padding would have moved the means. The mask is the `src_key_padding_mask` that the model is called
with; models of Hugging Face are called with an `attention_mask`, which is found in the same way.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import streamstats as ss
from streamstats.models.torch import measuring

LONGEST, WIDTH, WORDS = 24, 32, 100


class Encoder(nn.Module):
    """Embeds words, and encodes them by two layers of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)

    def forward(self, words: torch.Tensor, src_key_padding_mask: torch.Tensor) -> torch.Tensor:
        """float[N, T, WIDTH] for words int64[N, T]."""
        return self.encoder(self.embedding(words), src_key_padding_mask=src_key_padding_mask)


def batch(sentences: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words int64[N, T], and bool[N, T]: which of them are padding, word 0."""
    lengths = torch.randint(3, LONGEST + 1, (sentences, 1))
    padding = torch.arange(LONGEST) >= lengths
    return torch.randint(1, WORDS, (sentences, LONGEST)).masked_fill(padding, 0), padding


def main() -> None:
    """Count twice, once without the mask, and compare."""
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="streamstats-"))
    model = Encoder().eval()
    batches = [batch(16) for _ in range(10)]

    for name, mask in (
        ("masked", "src_key_padding_mask"),
        ("unmasked", None),
    ):  # the first is the default
        with torch.no_grad(), measuring(model, statistics=["histogram"], mask=mask) as meter:
            for words, padding in batches:
                model(words, src_key_padding_mask=padding)
        meter.save(folder / name)

    tokens = sum(int((~padding).sum()) for _, padding in batches)
    print(f"{tokens:,} of {10 * 16 * LONGEST:,} positions hold a word; the others are padding")
    masked, unmasked = ss.load(folder / "masked"), ss.load(folder / "unmasked")
    for layer, found in masked.items():
        moved = np.abs(found.mean - unmasked[layer].mean).max()
        print(f"{layer:<40} counted {int(found.sums.count[0]):,}; padding would move a mean by up to {moved:.3f}")
    print(f"next: streamstats ranges {folder}/masked --method mse")


if __name__ == "__main__":
    main()
