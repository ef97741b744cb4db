"""All that statistics of a data set keep of the examples seen, and when two parts add up."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace

from conductance._dataset_sums import LayerSums
from conductance._result_layers import LayerInfo, counted


@dataclass(frozen=True, eq=False)
class State:
    """Sums and counts; never changed, only replaced.

    Attributes
    ----------
    info
        Per hook point, in forward order; empty before the first result.
    sums
        Per group and hook point; the only group is None if examples are not grouped.
    count, left_out, evaluations
        Examples in the sums, examples that are not, and rows run for all of them.
    unconverged
        Examples in the sums that missed the tolerance, by status.
    """

    info: dict[str, LayerInfo] = field(default_factory=dict)
    sums: dict[Hashable, dict[str, LayerSums]] = field(default_factory=dict)
    count: int = 0
    left_out: int = 0
    evaluations: int = 0
    unconverged: dict[str, int] = field(default_factory=dict)

    def merged(self, other: State) -> State:
        """Both together, if there are no `differences`."""
        sums = {**other.sums, **self.sums}
        for group in self.sums.keys() & other.sums.keys():
            mine, theirs = self.sums[group], other.sums[group]
            sums[group] = {layer: mine[layer].merged(theirs[layer]) for layer in mine}
        missed = {**self.unconverged, **other.unconverged}
        return State(
            info={name: _joined(one, other.info.get(name, one)) for name, one in (self.info or other.info).items()},
            sums=sums,
            count=self.count + other.count,
            left_out=self.left_out + other.left_out,
            evaluations=self.evaluations + other.evaluations,
            unconverged={kind: self.unconverged.get(kind, 0) + other.unconverged.get(kind, 0) for kind in missed},
        )

    def differences(self, other: State) -> Iterator[str]:
        """Say what keeps two states from adding up."""
        if self.sums and other.sums and (None in self.sums) != (None in other.sums):
            yield (
                "its examples have " + ("groups, unlike" if None in self.sums else "no groups, unlike") + " those here"
            )
        if not (self.info and other.info):
            return
        for name, info in self.info.items():
            if name not in other.info:
                yield f"layer {name!r} is missing"
            elif _kind(other.info[name]) != _kind(info):
                hint = (
                    " (if its units are positions, which change with the length of a batch, leave it out by layers=)"
                    if other.info[name].module_type == info.module_type
                    else ""
                )
                yield f"layer {name!r} is {_kind(other.info[name])}, not {_kind(info)}{hint}"
        yield from (f"layer {name!r} is new" for name in other.info if name not in self.info)


def _kind(info: LayerInfo) -> str:
    return f"a {info.module_type} of {counted(info.units, 'unit')}"


def _joined(one: LayerInfo, other: LayerInfo) -> LayerInfo:
    """Join what may differ between batches of one model: its graph may depend on the data."""
    return replace(
        one,
        is_cut=one.is_cut and other.is_cut,
        moves=one.moves or other.moves,
        used=one.used or other.used,
    )
