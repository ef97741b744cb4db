"""Hook points: which tensor of a model is meant, how it is written, and how a request finds its modules.

A point is a module, which call of it, which tensor of its output or input, and which axes of that tensor are
the batch and the units. Its name can be read and typed by a person::

    encoder.layer.3        the output of a module
    lstm[1][0]             a tensor in a nested output: the first of the second
    act#2                  the third call of a module that is used several times
    mlp.down_proj:in       the single input
    attn:in[hidden_states] an input given by keyword (or [0] by position)
    (model)                the model itself
"""

import json
import re
from dataclasses import dataclass
from typing import Literal

_SAFE_MODULE = re.compile(r"[\w.\-]+")
_SAFE_KEY = re.compile(r"[A-Za-z_][\w.\-]*")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_KEY = rf'\[({_QUOTED}|[^\[\]"]+)\]'
_NAME = re.compile(rf"(?P<module>{_QUOTED}|.+?)(?:#(?P<call>[0-9]+))?(?P<side>:in)?(?P<index>(?:{_KEY})*)")
_ROOT = "(model)"


@dataclass(frozen=True)
class HookPoint:
    """A tensor of a model: module, call, place in its output or input, and what its axes mean.

    Parameters
    ----------
    module
        Dotted name as in ``model.named_modules()``; ``""`` is the model itself.
    call
        Which call of a module that runs several times in one forward pass, counted from 0. In a request,
        `None` means all of them.
    index
        Path to the tensor within a nested output (or within the inputs: positions and keyword names).
    side
        ``"out"`` or ``"in"``.
    batch_axis
        Axis of the examples; 0 where it is to be found by the number of rows of two runs.
    unit_axis
        Axis of the units, counted with the batch axis; `None` takes it from the module or its producer.
    unit_groups
        Number of groups of units along the unit axis that count as one unit each, such as heads.

    Examples
    --------
    >>> HookPoint("lstm", index=(1, 0)).name
    'lstm[1][0]'
    >>> HookPoint.parse("mlp.act#2:in")
    HookPoint(module='mlp.act', call=2, index=(), side='in', batch_axis=0, unit_axis=None, unit_groups=None)
    """

    module: str
    call: int | None = None
    index: tuple[int | str, ...] = ()
    side: Literal["out", "in"] = "out"
    batch_axis: int = 0
    unit_axis: int | None = None
    unit_groups: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, str):
            msg = (
                f"HookPoint: module is a dotted name, got {type(self.module).__name__}; "
                "give modules themselves straight to `layers`"
            )
            raise TypeError(msg)
        if self.side not in ("out", "in"):
            msg = f"HookPoint: side is 'out' or 'in', got {self.side!r}"
            raise ValueError(msg)
        if self.call is not None and (not isinstance(self.call, int) or self.call < 0):
            msg = f"HookPoint: call counts from 0, or is None for all calls, got {self.call!r}"
            raise ValueError(msg)
        if not isinstance(self.index, tuple) or not all(isinstance(key, int | str) for key in self.index):
            msg = f"HookPoint: index is a tuple of integers and strings, got {self.index!r}"
            raise TypeError(msg)
        if self.unit_groups is not None and self.unit_groups < 1:
            msg = f"HookPoint: unit_groups is a positive number, got {self.unit_groups!r}"
            raise ValueError(msg)

    @property
    def name(self) -> str:
        """The point as a person writes it; `parse` reads it back."""
        call = "" if self.call is None else f"#{self.call}"
        side = ":in" if self.side == "in" else ""
        index = "".join(f"[{_key_written(key)}]" for key in self.index)
        return _module_written(self.module) + call + side + index

    @classmethod
    def parse(cls, name: str) -> "HookPoint":
        """Read a name such as ``"act#2"``, ``"lstm[1][0]"`` or ``"attn:in[hidden_states]"``.

        Parameters
        ----------
        name
            The name of a point, as its `name` property writes it.

        Raises
        ------
        TypeError
            The name is not a string.
        ValueError
            The name cannot be read.

        Examples
        --------
        >>> HookPoint.parse("attn:in[hidden_states]").index
        ('hidden_states',)
        """
        if not isinstance(name, str):
            msg = f"HookPoint.parse reads a string, got {type(name).__name__}"
            raise TypeError(msg)
        match = _NAME.fullmatch(name)
        if match is None:
            msg = (
                f"{name!r} is not the name of a hook point; expected a dotted module name, then optionally "
                "#call, :in and [index], such as 'encoder.layer.3', 'act#2', 'lstm[1][0]', 'mlp:in'; "
                "the model itself is '(model)'"
            )
            raise ValueError(msg)
        return cls(
            module=_module_read(match["module"]),
            call=None if match["call"] is None else int(match["call"]),
            index=tuple(_key_read(key) for key in re.findall(_KEY, match["index"])),
            side="in" if match["side"] else "out",
        )


def _module_written(module: str) -> str:
    if not module:
        return _ROOT
    return module if _SAFE_MODULE.fullmatch(module) else json.dumps(module)


def _module_read(text: str) -> str:
    if text == _ROOT:
        return ""
    return str(json.loads(text, strict=False)) if text.startswith('"') and text.endswith('"') else text


def _key_written(key: int | str) -> str:
    return key if isinstance(key, str) and _SAFE_KEY.fullmatch(key) else json.dumps(key)


def _key_read(text: str) -> int | str:
    if re.fullmatch("-?[0-9]+", text):
        return int(text)
    return str(json.loads(text, strict=False)) if text.startswith('"') else text
