"""Nested state on disk: every kind of value comes back, damage is named, files are replaced whole or not at all."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
from scipy import sparse

from tenfold.data.store import read_file, read_folder, write_file, write_folder
from tenfold.errors import FileFormatError, ResourceError

STATE = {
    "scalars": [None, True, 3, 2**70, 0.1, "naïve", np.float32(0.5), np.int64(7), np.bool_(False)],
    "not finite": [math.nan, math.inf, -math.inf],
    "nested": {"a": {"b": [(1, (2.5, "x")), []]}, "empty": {}, "tuple": ()},
    "keys": {0: "zero", 1: {"__array__": "not an array"}},
    "names": np.array(["CD3D", "MS4A1"], dtype=object),
    "fixed names": np.array(["CD3D", "MS4A1"]),
    "arrays": {str(np.dtype(kind)): np.arange(6).reshape(2, 3).astype(kind) for kind in "?bhilBHILefd"},
    "odd shapes": [np.array(3.0), np.zeros((0, 4)), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(9)[::2]],
    "tensors": [torch.tensor(2.0), torch.arange(6, dtype=torch.uint8).reshape(3, 2), torch.zeros(3, dtype=torch.bool)],
    "sparse": sparse.random(5, 4, density=0.5, format="csc", dtype=np.float32, random_state=0),
}


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        return all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b or (a != a and b != b)


def test_every_kind_of_value_comes_back(tmp_path):
    write_file(tmp_path / "deep" / "x.safetensors", {"version": "1"}, STATE)
    head, state = read_file(tmp_path / "deep" / "x.safetensors", "")
    assert head == {"version": "1"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.safetensors"]
    expected = dict(STATE, scalars=[None, True, 3, 2**70, 0.1, "naïve", 0.5, 7, False])
    expected["fixed names"] = STATE["names"]
    expected["sparse"] = STATE["sparse"].tocsr()
    restored = state.pop("sparse")
    assert (restored != expected.pop("sparse")).nnz == 0 and restored.dtype == np.float32 and restored.format == "csr"
    for name in expected:
        assert same(state[name], expected[name]), name
    state["arrays"]["float64"][0, 0] = 1  # what was read may be changed
    state["tensors"][0] += 1


def test_networks_are_saved_as_their_weights(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    write_file(tmp_path / "x", {}, {"net": net})
    again = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    again.load_state_dict(read_file(tmp_path / "x", "")[1]["net"])
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(FileFormatError, match=r"'model/1' is a set, which cannot be saved"):
        write_file(tmp_path / "x", {}, {"model": [1, {2}]})
    assert list(tmp_path.iterdir()) == []


def test_folder_is_replaced_only_if_it_is_ours(tmp_path):
    folder = tmp_path / "a" / "model"
    write_folder(folder, {"method": "pca"}, {"x": np.ones(3)})
    assert json.loads((folder / "method.json").read_text()) == {"method": "pca"}
    (folder / "notes.txt").write_text("mine")
    write_folder(folder, {"method": "pca"}, {"x": np.zeros(3)})
    assert read_folder(folder)[1]["x"].tolist() == [0, 0, 0]
    assert (folder / "notes.txt").read_text() == "mine"
    other = tmp_path / "results"
    other.mkdir()
    write_folder(other, {}, {})  # an empty folder may be used
    (tmp_path / "file").write_text("mine")
    for name, files in (("file", None), ("data", ["method.json"]), ("thesis", ["chapter.tex"])):
        if files:
            (tmp_path / name).mkdir()
            (tmp_path / name / files[0]).write_text("mine")
        with pytest.raises(FileFormatError, match="choose another folder"):
            write_folder(tmp_path / name, {}, {})
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


@pytest.mark.parametrize("moment", ["open", "sync", "replace"])
def test_a_failed_write_leaves_the_former_state_whole(tmp_path, monkeypatch, moment):
    folder = tmp_path / "model"
    write_folder(folder, {"method": "pca"}, {"x": np.ones(3)})
    target = {"open": "builtins.open", "sync": "os.fsync", "replace": "os.replace"}[moment]
    monkeypatch.setattr(target, lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ResourceError, match=r"state\.safetensors' cannot be written \(disk full\)"):
        write_folder(folder, {"method": "pca"}, {"x": np.zeros(3)})
    monkeypatch.undo()
    assert read_folder(folder)[1]["x"].tolist() == [1, 1, 1]
    assert sorted(os.listdir(folder)) == ["method.json", "state.safetensors"]


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "state.tmp").write_bytes(b"half")
    with pytest.raises(FileFormatError, match="not a saved tenfold model"):
        read_folder(folder)
    write_folder(folder, {}, {"x": 1})
    assert read_folder(folder)[1] == {"x": 1}
    assert sorted(os.listdir(folder)) == ["method.json", "state.safetensors"]


def test_a_path_through_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_file(tmp_path / "file" / "x", {}, {})


@pytest.mark.parametrize("damage", ["gone", "truncated", "empty", "scrambled", "foreign"])
def test_damage_is_named(tmp_path, damage):
    from safetensors.numpy import save_file

    folder = write_folder(tmp_path / "model", {}, STATE)
    file = folder / "state.safetensors"
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "foreign":
        save_file({"x": np.ones(3)}, file)
    else:
        file.write_bytes({"truncated": whole[:-9], "empty": b"", "scrambled": whole[:8] + b"\xff" * len(whole)}[damage])
    message = "not a saved tenfold model" if damage == "gone" else r"is damaged .*again"
    with pytest.raises(FileFormatError, match=message):
        read_folder(folder)
    with pytest.raises(FileFormatError, match="not a saved tenfold model"):
        read_folder(tmp_path / "nowhere")
