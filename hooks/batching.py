"""The axis of a tensor along which the examples lie: the one whose size follows the number of rows of a call."""

from dataclasses import dataclass

from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Shape of a tensor in two runs of the model, on different numbers of rows.

    Attributes
    ----------
    shape, rows
        In the first run.
    other, other_rows
        In the second: None for the shape of a tensor that it did not give, None for the rows without such a run.
    """

    shape: Shape
    rows: int
    other: Shape | None = None
    other_rows: int | None = None


def examples_axis(sizes: Sizes, given: int, by_class: int) -> tuple[int, str]:
    """Find the axis of the examples.

    Parameters
    ----------
    sizes
        What two runs gave.
    given
        Axis that the user gave, negative ones counted from the end; 0 where none was given.
    by_class
        Axis by the class of the module, for where there is no second run.

    Returns
    -------
    tuple
        The axis, and why the values cannot be told apart by example; an empty string where they can.

    Examples
    --------
    >>> examples_axis(Sizes((5, 2, 4), 2, (5, 3, 4), 3), given=0, by_class=0)
    (1, '')
    >>> examples_axis(Sizes((10, 4), 2, (15, 4), 3), given=0, by_class=0)[1][:56]
    'gave shape (10, 4) for 2 rows and (15, 4) for 3: its axi'
    """
    shape, rows = sizes.shape, sizes.rows
    given = given + len(shape) if given < 0 else given
    if sizes.other_rows is None:
        axis = given or by_class
        fits = axis < len(shape) and shape[axis] == rows
        return axis, "" if fits else f"gave shape {shape} for {rows} rows: its axis {axis} is not the batch{_GIVE}"
    other, others = sizes.other, sizes.other_rows
    if other is None:
        return given, f"ran for {rows} rows otherwise than for {others}: what runs depends on the data"
    told = f"gave shape {shape} for {rows} rows and {other} for {others}"
    if len(other) != len(shape):
        return given, f"{told}: its number of axes depends on the data"
    changed = [axis for axis, size in enumerate(shape) if other[axis] != size]
    if not changed:
        return given, (
            f"gave shape {shape} for {rows} rows and for {others}: no axis of it is the batch; it is the same for all "
            "examples, or shared by them"
        )
    axis = changed[0]
    if len(changed) > 1 or shape[axis] * others != other[axis] * rows or shape[axis] % rows:
        return given, (
            f"{told}: its shape depends on what the rows hold (sequences padded to the longest of a call: "
            "pad_packed_sequence takes total_length; tokens sorted by expert: tap the whole block of experts)"
        )
    if shape[axis] != rows:
        return axis, (
            f"{told}: its axis {axis} holds {shape[axis] // rows} entries for each row, the tokens, steps or patches "
            "of all examples; tap where the examples have an axis of their own, such as by an nn.Identity"
        )
    if given not in (0, axis):
        return axis, f"{told}: the batch is its axis {axis}, not batch_axis={given}"
    return axis, ""


_GIVE = " (another one: HookPoint(…, batch_axis=…))"
PACKED = (
    "is the data of a PackedSequence, whose rows are the steps of all sequences; tap before the packing, after "
    "pad_packed_sequence(…, total_length=…) (an nn.Identity will do), or the last state of the layer"
)


def module_batch_axis(module: nn.Module, side: str, index: tuple[int | str, ...], ndim: int) -> int:
    """Give the axis of the examples by the class of a module: 0, except where recurrent layers and attention say else.

    Hidden states of recurrent layers have the layers first; without ``batch_first`` sequences come time
    first.

    Examples
    --------
    >>> lstm = nn.LSTM(3, 4, batch_first=True)
    >>> module_batch_axis(lstm, "out", (0,), 3), module_batch_axis(lstm, "out", (1, 0), 3)
    (0, 1)
    """
    if ndim != 3:
        return 0
    if isinstance(module, nn.RNNBase) and index[:1] in ((1,), ("hx",)):
        return 1
    attention_weights = isinstance(module, nn.MultiheadAttention) and side == "out" and index == (1,)
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not attention_weights:
        return 0 if module.batch_first else 1
    return 0
