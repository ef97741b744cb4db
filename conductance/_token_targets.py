"""Targets of language models: what the output at a position gives a token."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from conductance._outputs import Key, rowless
from conductance._places import Examples, Places
from conductance._target_parts import Index, Quantity, named, place_of, score
from conductance._values import numbers
from conductance.errors import check_choice
from conductance.targeting import OutputTarget


def token(position: Index, token_id: Index, *, quantity: Quantity = "logit", key: Key = None) -> OutputTarget:
    """What a language model gives a token at a position of its output ``(batch, tokens, vocabulary)``.

    The output at a position tells of the token that follows: of a prompt, the next token is ``token(-1, token_id)``.

    Parameters
    ----------
    position
        Where: an int, or one for each example; negative ones count from the end of the padded length.
    token_id
        The token: an int, or one for each example.
    quantity
        "logit", "log_probability" or "probability" of the token.
    key
        Which tensor of the output; None is the output itself, or its ``logits``.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these; when it is run, if it does not fit the output or the examples.

    Examples
    --------
    >>> output = torch.arange(12.0).reshape(1, 3, 4)
    >>> token(-1, 2)(output)
    tensor([10.])
    >>> token(0, 2, quantity="log_probability")
    targets.token(0, 2, quantity='log_probability')
    """
    check_choice("quantity", quantity, ("logit", "log_probability", "probability"))
    where = place_of("token", "position", position, axes=1)
    which = place_of("token", "token_id", token_id, axes=1)
    function = partial(_token, position=where, token_id=which, quantity=quantity)
    return named("token", function, where, which, key=key, quantity=None if quantity == "logit" else quantity)


def _token(output: Tensor, examples: Examples, position: Places, token_id: Places, quantity: Quantity) -> Tensor:
    if output.dim() != 3:
        raise ValueError(
            f"targets.token takes an output of shape (batch, tokens, vocabulary), got {rowless(output)}; for "
            "(batch, classes) there are targets.logit and targets.log_probability"
        )
    where = position.of_rows(examples, output.shape[1:2], output)[:, 0]
    scores = output[torch.arange(len(output), device=output.device), where]
    if quantity == "logit":
        return token_id.pick(scores, examples)
    return score(scores, examples, token_id, quantity, "softmax")


def tokens(ids: Any, start: int = 1, *, quantity: Quantity = "logit", key: Key = None) -> list[OutputTarget]:
    """A target for each generated token, to loop over: every one is explained by a run of its own.

    Parameters
    ----------
    ids
        The tokens that the model reads and generated, ``(batch, length)``; of an encoder-decoder those of the decoder.
    start
        Where the generated ones begin, from 1 on: the length of the prompt. Negative: the last ``-start`` tokens.
    quantity, key
        As for :func:`token`.

    Returns
    -------
    list of OutputTarget
        ``token(t - 1, ids[:, t])`` for every ``t`` from ``start`` on: each token is read off the position before it.

    Raises
    ------
    TypeError, ValueError
        If ``ids`` is not integers ``(batch, length)``, or ``start`` is not within.

    Notes
    -----
    A causal model does not look ahead, so one input, the whole sequence, serves all of them. Of the sequence as a whole
    the logarithm of its probability is ``lambda out, n: sum(each(out, n) for each in found)``, for
    ``found = tokens(ids, start, quantity="log_probability")``.

    Examples
    --------
    >>> tokens(torch.tensor([[5, 3, 8, 9]]), start=2)
    [targets.token(1, [8]), targets.token(2, [9])]
    """
    ids = numbers("targets.tokens: ids", ids)
    if ids.is_floating_point():
        raise TypeError(f"targets.tokens: ids holds {ids.dtype} numbers; expected token ids, integers (batch, length)")
    if ids.dim() != 2:
        raise ValueError(
            f"targets.tokens: ids has shape {tuple(ids.shape)}; expected (batch, length), one row: ids[None]"
        )
    if isinstance(start, bool) or not isinstance(start, int):
        raise TypeError(f"targets.tokens: start is {start!r}; expected an int, the length of the prompt")
    length = ids.shape[1]
    first = start + length if start < 0 else start
    if not 0 < first < length:
        raise ValueError(
            f"targets.tokens: start is {start} for {length} tokens; expected 1 … {length - 1}: the first token is not "
            "predicted by anything"
        )
    return [token(t - 1, ids[:, t], quantity=quantity, key=key) for t in range(first, length)]
