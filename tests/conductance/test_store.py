"""The store of nodes: what is kept comes back, it grows as needed, and never beyond its capacity."""

import numpy as np
import pytest
import torch

from conductance.store import FIRST, Call, Nodes, NodeStore
from conductance.sums import Layout, Workspace

CPU = torch.device("cpu")
SIZE = 5


def made_call(rows: int, *, reached: bool = True) -> Call:
    """A call of one point, with numbers from a seed."""
    call = Call(1)
    if reached:
        generator = torch.Generator().manual_seed(rows)
        call(0, *torch.randn(2, rows, SIZE, generator=generator))
    return call


def made_store(capacity: int) -> NodeStore:
    """A store of one point."""
    return NodeStore([Layout((SIZE,), 0, None, torch.float32, CPU)], capacity)


def gathered(store: NodeStore, call: Call, where: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """All elements of nodes, copied out of the workspace."""
    y, v = store.gather(call, 0, Nodes(where, CPU), slice(0, SIZE), Workspace())
    return y.clone(), v.clone()


@pytest.mark.parametrize("seed", range(5))
def test_nodes_come_back_from_every_chunk_and_from_the_call(seed: int) -> None:
    store, old, call = made_store(5 * FIRST), made_call(4 * FIRST), made_call(7)
    places = np.array(store.keep(old, range(4 * FIRST)))
    random = np.random.default_rng(seed)
    chosen = random.integers(-len(places), 7, (6, 3))  # below zero: the place of an old row
    y, v = gathered(store, call, np.where(chosen < 0, places[chosen], chosen))
    for found, side in ((y, 0), (v, 1)):
        for n, k in np.ndindex(chosen.shape):
            row = int(chosen[n, k])
            source = call if row >= 0 else old
            assert source.pairs[0] is not None
            assert torch.equal(found[k, n], source.pairs[0][side][row])


def test_grows_as_needed_to_its_capacity() -> None:
    store = made_store(2 * FIRST + 3)
    assert store.nbytes == 0
    store.keep(made_call(FIRST), range(FIRST))
    first = store.nbytes
    assert first == 2 * FIRST * SIZE * 4
    places = store.keep(made_call(2 * FIRST), range(2 * FIRST))
    assert places.count(NodeStore.NOWHERE) == FIRST - 3
    assert store.nbytes == 2 * (2 * FIRST + 3) * SIZE * 4


def test_free_places_are_taken_again_from_the_lowest() -> None:
    store = made_store(FIRST)
    places = np.array(store.keep(made_call(4), range(4)))
    store.use(places)
    store.release(places[[2, 0]])
    assert store.keep(made_call(2), range(2)) == [int(places[0]), int(places[2])]


def test_a_point_without_gradient_is_zero() -> None:
    store = made_store(FIRST)
    places = np.array(store.keep(made_call(2, reached=False), range(2)))
    y, v = gathered(store, made_call(1, reached=False), np.array([[places[0], 0, places[1]]]))
    assert not y.any()
    assert not v.any()
