"""Results that come from results: files, choice and joining of examples, other devices and dtypes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from conductance import _files
from conductance.results import FORMAT, STATUSES, LayerInfo, TotalConductance, concatenate, load
from tests.conductance.made_results import SHAPES, assert_identical, leaves, make


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [True, False])
def test_files_keep_every_bit(tmp_path: Path, dtype: torch.dtype, spread: bool) -> None:
    """Saving and loading changes nothing: not nan, -0 or subnormals."""
    total = make(dtype=dtype, spread=spread)
    total["conv"][0, 0, 0] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40, 1, 2, 3], dtype=dtype)
    total.save(tmp_path / "total.safetensors")
    assert_identical(load(tmp_path / "total.safetensors"), total)
    assert_identical(TotalConductance.load(str(tmp_path / "total.safetensors")), total)
    assert torch.signbit(load(tmp_path / "total.safetensors")["conv"][0, 0, 0, 2])


@pytest.mark.parametrize("status", STATUSES)
def test_files_keep_every_status(tmp_path: Path, status: str) -> None:
    """Whatever a run can end with can be written and read again."""
    total = replace(make(), status=(status, "ok", status))
    total.save(tmp_path / "total")
    assert load(tmp_path / "total").status == (status, "ok", status)


def test_files_of_views_and_of_nothing(tmp_path: Path) -> None:
    """Shared and transposed tensors, no examples, no units and an empty name can be saved."""
    total = make()
    shared = total.output
    view = total["conv"].transpose(1, 3).contiguous().transpose(1, 3)
    total = replace(total, baseline_output=shared, unattributed=shared, conductance={**total.conductance, "conv": view})
    total.save(tmp_path / "views")
    assert_identical(load(tmp_path / "views"), total)
    total.select([]).save(tmp_path / "views")
    assert_identical(load(tmp_path / "views"), total.select([]))
    info = LayerInfo("", "Linear", (2, 0), 2, None, is_cut=False, moves=True, used=False)
    empty: dict[str, Any] = {"conductance": {"": torch.zeros(3, 2, 0)}, "unit_error": {"": torch.zeros(3, 0)}}
    replace(total, **empty, info={"": info}, error={"": shared}, spread=None).save(tmp_path / "empty")
    assert load(tmp_path / "empty")[""].shape == (3, 2, 0)


def test_saving_replaces_the_file_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed save leaves the old file; a new one has ordinary permissions."""
    path = tmp_path / "total"
    make(seed=1).save(path)
    make(seed=2).save(path)
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode

    def fail(_tensors: object, file: Path, **_rest: object) -> None:
        file.write_bytes(b"half")
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(_files, "save_file", fail)
    with pytest.raises(OSError, match=r"disk full"):
        make(seed=3).save(path)
    assert_identical(load(path), make(seed=2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ordinary", "total"]
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere. Create it"):
        make().save(tmp_path / "nowhere" / "total")


def test_wrong_files(tmp_path: Path) -> None:
    """Files of other kinds and versions are refused with the reason."""
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match=r"no file .*file"):
        load(path)
    make().save(path)
    content = path.read_bytes()
    for wrong in (b"", b"PK\x03\x04" * 99, content[:-1]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"not a complete safetensors file"):
            load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"format None, expected 'conductance.total_conductance'"):
        load(path)
    save_file({}, path, metadata={"format": FORMAT, "version": "2"})
    with pytest.raises(ValueError, match=r"version 2 of conductance.total_conductance, expected 1"):
        load(path)


@pytest.mark.parametrize("damage", ["tensor", "content", "json", "shape", "settings"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    """A file with something missing is refused."""
    path = tmp_path / "file"
    make().save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert json.loads(metadata["content"])["status"] == ["ok", "jump", "budget"]
    if damage == "tensor":
        del tensors["unit_error/conv"]
    elif damage == "shape":
        tensors["unit_error/conv"] = tensors["unit_error/conv"][1:]
    else:
        settings = json.dumps({**json.loads(metadata["content"]), "settings": [1, 2]})
        metadata |= {"content": {"content": "{}", "json": "{", "settings": settings}[damage]}
    save_file(tensors, path, metadata=metadata)
    reason = "settings is a list, expected a dict" if damage == "settings" else ""
    with pytest.raises(ValueError, match=rf"file, but damaged.*{reason}"):
        load(path)


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ([2, 0, -1], [2, 0, 2]),
        (slice(None, None, -2), [2, 0]),
        ([True, False, True], [0, 2]),
        (torch.tensor([False, True, False]), [1]),
        (torch.tensor([1, 2]), [1, 2]),
        (-2, [1]),
        ([], []),
    ],
)
def test_select(examples: Any, expected: list[int]) -> None:
    """Every field keeps the chosen examples, in the order asked for."""
    total = make()
    chosen = total.select(examples)
    for key, value in leaves(total).items():
        other = leaves(chosen)[key]
        if isinstance(value, Tensor):
            assert torch.equal(other, value[expected]), key
        elif key in ("status", "jumps"):
            assert other == tuple(value[index] for index in expected), key
        else:
            assert other == value, key
    assert len(chosen.status) == len(expected)


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        ([0, 3], IndexError, "no example 3: the result has 3"),
        ([-4], IndexError, "no example -4"),
        ([True, False], IndexError, r"each of 3 examples, got the shape \(2,\)"),
        ([0.5], TypeError, r"integers, a slice or a mask of booleans, got torch.float32 of shape \(1,\)"),
        ([[0, 1]], TypeError, r"got torch.int64 of shape \(1, 2\)"),
    ],
)
def test_select_refuses(examples: Any, error: type[Exception], message: str) -> None:
    """A wrong choice says what was expected."""
    with pytest.raises(error, match=message):
        make().select(examples)


def test_concatenate_undoes_select() -> None:
    """Parts joined again are the whole; their seconds add up."""
    total = make()
    parts = [total.select([0, 1]), total.select([]), total.select([2])]
    assert_identical(concatenate(parts), replace(total, settings={**total.settings, "seconds": 4.5}))


def test_concatenate_joins_settings_and_structure() -> None:
    """Settings that differ become lists; flags of layers are joined."""
    first, second = make(spread=False), make(batch=5, seed=1, spread=False)
    other = replace(second.info["output"], is_cut=False, used=False)
    second = replace(
        second,
        info={**second.info, "output": other},
        settings={"target": 2, "seconds": 2, "rtol": 0.1, "new": "x"},
    )
    joined = concatenate([first, second])
    assert joined.spread is None
    assert torch.equal(joined["conv"], torch.cat([first["conv"], second["conv"]]))
    assert joined.status == first.status + second.status
    assert joined.settings == {
        "target": [[1, None], 2],
        "rtol": 0.1,
        "scheme": ["kinked", None],
        "seconds": 3.5,
        "new": [None, "x"],
    }
    assert (joined.info["output"].is_cut, joined.info["output"].used, joined.info["output"].moves) == (
        False,
        True,
        True,
    )


def test_concatenate_refuses() -> None:
    """The message lists what differs."""
    total = make()
    names = total.layers[1:]
    info = {name: total.info[name] for name in names}
    info["attn.o_proj:in"] = replace(info["attn.o_proj:in"], unit_groups=1)
    per_layer: dict[str, Any] = {
        field: {name: getattr(total, field)[name] for name in names} for field in ("conductance", "unit_error", "error")
    }
    per_layer["unit_error"]["attn.o_proj:in"] = torch.zeros(3, 1)
    other = replace(total, **per_layer, info=info, spread=None)
    with pytest.raises(
        ValueError,
        match=r"result 2 differs from result 0: 'conv' is missing; "
        r"'attn.o_proj:in' has unit_groups 1, not 2; only one has a spread",
    ):
        concatenate([total, total, other])
    with pytest.raises(ValueError, match=r"'conv' is new"):
        concatenate([other, total])
    with pytest.raises(ValueError, match=r"at least one result, got none"):
        concatenate([])
    with pytest.raises(TypeError, match=r"list of results, got a single"):
        concatenate(total)  # type: ignore[arg-type]


def test_to_moves_every_field() -> None:
    """Walk the fields: all change device, only the floating-point ones dtype."""
    total = make()
    moved, cast = leaves(total.to("meta")), leaves(total.to(dtype=torch.float32))
    tensors = {key: value for key, value in leaves(total).items() if isinstance(value, Tensor)}
    assert len(tensors) == 5 + 4 * len(SHAPES)
    for key, value in tensors.items():
        assert moved[key].device.type == "meta", key
        assert moved[key].dtype == value.dtype, key
        floating = key not in ("evaluations", "converged")
        assert torch.equal(cast[key], value.float() if floating else value), key
        assert cast[key].dtype == (torch.float32 if floating else value.dtype), key
    assert_identical(total.to(), total)
    with pytest.raises(TypeError, match=r"floating-point dtype such as torch.float32, got torch.int64"):
        total.to(dtype=torch.int64)
