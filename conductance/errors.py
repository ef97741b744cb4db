"""Errors and warnings of the toolkit, and the one check of choices whose message names all of them."""

import difflib
from collections.abc import Iterable, Sequence


class ConductanceError(RuntimeError):
    """A conductance cannot be computed for this model and input.

    Raised for causes that lie in the model or in the path, not in the type or value of one argument: a layer
    that never runs, a gradient cut by a detach, a target that does not depend on the input. The message names
    the cause and the way out.
    """


class ConvergenceWarning(UserWarning):
    """Some results miss the tolerance asked for.

    The results are still returned, with their estimated errors, and flagged per example in ``converged`` and
    ``status``.
    """


class ZeroConductanceWarning(UserWarning):
    """Some example has no conductance in any of the layers asked; the message names the cause and the way out.

    Saturated probabilities, a target that does not change, a gradient cut by a detach, layers that do not move or that
    the target does not use. The result has it in ``diagnosis`` too, and also for single layers, where nothing warns.
    """


class UnknownLayerError(KeyError):
    """No layer of this name; says which names come nearest.

    A `KeyError`, so that ``get`` and ``except KeyError`` work, but printed as a sentence, without the quotes
    that `KeyError` puts around its message.

    Parameters
    ----------
    name
        What was asked for.
    known
        The names there are.

    Examples
    --------
    >>> print(UnknownLayerError("features.33", ["features.3", "classifier"]))
    No layer 'features.33' here. Did you mean 'features.3'? All names: 'features.3', 'classifier'.
    """

    def __init__(self, name: object, known: Iterable[str]) -> None:
        super().__init__(name, tuple(known))

    def __str__(self) -> str:
        """Message without quotes."""
        name, known = self.args
        if not isinstance(name, str):
            return f"Layers are looked up by name, a string, got {type(name).__name__}. {_all_names(known)}"
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {_enumerate(near)}?" if near else ""
        if inside := [each for each in known if each.startswith(f"{name}.")]:
            # None as layers, and most globs, bring in modules without children only.
            hint = f" Layers inside it are, the last {inside[-1]!r}: one that holds others has to be asked for by name."
        return f"No layer {name!r} here.{hint} {_all_names(known)}"


def check_choice(name: str, value: object, options: Sequence[object]) -> None:
    """Raise unless a value is one of the options.

    Parameters
    ----------
    name
        The argument as its user knows it.
    value
        What was given.
    options
        What is allowed; the message is built from it.

    Raises
    ------
    ValueError
        If ``value`` is not among ``options``.

    Examples
    --------
    >>> check_choice("mode", "auto", ("auto", "forward", "reverse"))
    >>> check_choice("mode", "fast", ("auto", "forward", "reverse"))
    Traceback (most recent call last):
    ...
    ValueError: mode must be 'auto', 'forward' or 'reverse', got 'fast'.
    """
    if value not in options:
        msg = f"{name} must be {_enumerate(options)}, got {value!r}."
        raise ValueError(msg)


def _enumerate(options: Sequence[object]) -> str:
    """Write ``'a', 'b' or 'c'``."""
    words = [repr(option) for option in options]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _all_names(known: Sequence[str], most: int = 12) -> str:
    """List the names, the first dozen of many."""
    rest = f" and {len(known) - most} more" if len(known) > most else ""
    return f"All names: {', '.join(map(repr, known[:most]))}{rest}."
