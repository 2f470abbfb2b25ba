"""Counts that stay on disk: the same batches from every kind of store, exact resume, errors before training."""

from __future__ import annotations

import itertools
import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from scipy import sparse

import tenfold as tf
from tenfold import engine
from tenfold.data import blocks, chunks, streamed
from tenfold.data.inputs import Inputs
from tenfold.data.streamed import StreamedCounts, open_counts
from tenfold.engine import Minibatches, Phase
from tenfold.errors import DataError, FileFormatError, NotCountsError, ResourceError
from tenfold.types import RunOptions

N_CELLS, N_GENES = 400, 60


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Thresholds, buffers and reads so small that little files go through all of the machinery."""
    monkeypatch.setattr(streamed, "LARGEST_LOADED", 1000)
    monkeypatch.setattr(streamed, "AT_ONCE", 700)
    monkeypatch.setattr(streamed, "GAP", 20)
    monkeypatch.setattr(blocks, "BUFFER_BYTES", 20_000)
    monkeypatch.setattr(blocks, "BLOCKS", 8)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Counts sorted by batch and type."""
    adata = tf.data.simulate(N_CELLS, N_GENES, n_types=3, n_batches=2, depth=80.0, seed=1)
    codes = adata.obs["batch"].cat.codes.to_numpy() * 10 + adata.obs["cell_type"].cat.codes.to_numpy()
    adata = adata[np.argsort(codes, kind="stable")].copy()
    adata.layers["counts"] = adata.X.copy()
    return adata


def h5ad(adata: ad.AnnData, path, matrix=None, **options):
    """Write X with the options of h5py, in small chunks, and open it backed."""
    adata.write_h5ad(path)
    x = adata.X if matrix is None else matrix
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices"):
            del file[f"X/{name}"]
            file["X"].create_dataset(name, data=getattr(x, name), **options)
    return ad.read_h5ad(path, backed="r")


STORES = {
    "chunked": {"chunks": (97,)},
    "gzip": {"chunks": (97,), "compression": "gzip"},
    "gzip, shuffled": {"chunks": (301,), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (97,), "compression": "lzf"},
    "contiguous": {},
}


def counts_in(store: str, cells: ad.AnnData, folder) -> StreamedCounts:
    if store == "memory":
        return StreamedCounts.of(cells.X, progress=False)
    if store == "zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cells.write_zarr(folder / "x.zarr", chunks=(100, 60))
        adata = tf.data.read(folder / "x.zarr", backed=True)
    else:
        adata = h5ad(cells, folder / "x.h5ad", **STORES[store])
    return open_counts(adata, None, progress=False)


@pytest.mark.parametrize("store", [*STORES, "zarr"])
def test_batches_are_the_same_from_every_store(store, cells, tmp_path):
    columns = np.array([40, 3, 17, 59, 8])
    index = np.flatnonzero(np.arange(N_CELLS) % 7)
    expected, found = (
        Minibatches({"x": counts_in(name, cells, tmp_path).select(columns)}, 32, index=index, seed=5)
        for name in ("memory", store)
    )
    wanted = cells.X[:, columns].toarray()
    visited = []
    for one, other in zip(expected.epoch(3), found.epoch(3), strict=True):
        rows = other["index"].numpy()
        np.testing.assert_array_equal(one["index"], rows)
        np.testing.assert_array_equal(other["x"].dense(), wanted[rows])
        visited += rows.tolist()
    assert sorted(visited) == index.tolist()
    assert visited != sorted(visited)


def test_fast_readers_are_used_where_they_can_be(cells, tmp_path):
    kinds = {}
    for number, store in enumerate(STORES):
        adata = h5ad(cells, tmp_path / f"{number}.h5ad", **STORES[store])
        kinds[store] = type(chunks.chunked(adata.X.group["data"]))
    assert kinds.pop("lzf") is chunks.ChunkedArray
    assert set(kinds.values()) == {chunks.HDF5Array}


def test_order_depends_on_seed_and_epoch_only_and_is_mixed(cells, tmp_path):
    counts = counts_in("memory", cells, tmp_path)
    batches = Minibatches({"x": counts}, 16, seed=2)
    orders = {epoch: [row for b in batches.epoch(epoch) for row in b["index"].tolist()] for epoch in (0, 1)}
    again = [row for b in Minibatches({"x": counts}, 16, seed=2).epoch(1) for row in b["index"].tolist()]
    assert again == orders[1] != orders[0]
    assert [len(b["index"]) for b in batches.epoch(0)] == [16] * 25


def test_blocks_are_dealt_evenly_over_buffers():
    order, cuts = blocks.dealt(np.arange(10_000), capacity=3100, seed=0, epoch=0)
    short, *sizes = np.diff(cuts)
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) <= 2 * 3100 // blocks.BLOCKS
    assert max(sizes) / 10 < short < max(sizes) / 6  # training waits for the first one
    assert sorted(order) == list(range(10_000))
    # Every buffer has cells from all over the file, but for the first, which has one block here.
    for first, last in itertools.pairwise(cuts[1:]):
        assert len(np.unique(order[first:last] // 2500)) >= 3
    assert len(blocks.dealt(np.arange(10_000), capacity=10_000, seed=0, epoch=0)[1]) == 2  # one buffer holds all


@pytest.mark.parametrize(("rows", "warned"), [(100, True), (100 * blocks.FEWEST_BLOCKS, False), (10**6, False)])
def test_few_blocks_in_a_buffer_are_warned_of(rows, warned, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCKS", 1024)
    counts = StreamedCounts.of(sparse.csr_matrix((200_000, 3), dtype=np.float32))
    monkeypatch.setattr("tenfold.data.minibatches.buffer_rows", lambda counts: rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Minibatches({"x": counts})
        assert len(caught) == warned
        Minibatches({"x": counts}, shuffle=False)  # in the order of the file, as for an embedding
    assert all("12 stretches of the file" in str(each.message) for each in caught)
    assert len(caught) == warned


@pytest.mark.parametrize("weights", [None, np.arange(N_CELLS, dtype=float)])
def test_start_in_the_middle_of_a_buffer(cells, tmp_path, weights):
    batches = Minibatches({"x": counts_in("gzip", cells, tmp_path)}, 16, seed=2, weights=weights)
    whole = list(batches.epoch(4))
    for start in (1, 7, len(whole) - 1):
        rest = list(batches.epoch(4, start=start))
        assert len(rest) == len(whole) - start
        for one, other in zip(whole[start:], rest, strict=True):
            assert torch.equal(one["index"], other["index"])
            assert torch.equal(one["x"].values, other["x"].values)


def test_processes_divide_the_cells(cells, tmp_path):
    counts = counts_in("memory", cells, tmp_path)
    shares = [list(Minibatches({"x": counts}, 50, seed=1, share=(process, 3)).epoch(0)) for process in range(3)]
    assert len({len(batches) for batches in shares}) == 1
    seen = [row for batches in shares for batch in batches for row in batch["index"].tolist()]
    assert sorted(seen) == list(range(N_CELLS))
    assert all(min(len(batch["index"]) for batch in batches) > 10 for batches in shares)


def train(counts, folder=None, fail_at=None, epochs=3):
    """Train a small network with dropout; stop at a minibatch as Ctrl-C does."""
    with engine.seeded(0):
        net = torch.nn.Sequential(torch.nn.Linear(N_GENES, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, N_GENES))
    steps = itertools.count()

    def loss(net, batch, progress):
        if torch.is_grad_enabled() and next(steps) == fail_at:
            raise KeyboardInterrupt
        x = batch["x"].dense().log1p()
        return (net(x) - x).square().mean()

    run = RunOptions(progress=False, checkpoint=folder and str(folder))
    history = engine.fit(net, {"x": counts}, [Phase("p", epochs, loss)], batch_size=16, run=run, device="cpu")
    return net, history


def test_loss_curve_is_that_of_memory_in_the_same_order(cells, tmp_path):
    on_disk = train(counts_in("gzip", cells, tmp_path))[1].terms
    in_memory = train(counts_in("memory", cells, tmp_path))[1].terms
    pd.testing.assert_frame_equal(on_disk, in_memory)


def test_resume_in_the_middle_of_a_buffer_is_exact(cells, tmp_path, monkeypatch):
    from tenfold.engine import checkpoint, loop

    counts = counts_in("gzip", cells, tmp_path)
    whole, _ = train(counts)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)  # save after every minibatch
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(counts, tmp_path / "state", fail_at=30)
    resumed, _ = train(counts, tmp_path / "state")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_another_file_is_not_taken_for_the_one_of_a_checkpoint(cells, tmp_path):
    from tenfold.errors import ParameterError

    train(counts_in("gzip", cells, tmp_path), tmp_path / "state", epochs=1)
    other = cells.copy()
    other.X.data[0] += 1
    with pytest.raises(ParameterError, match="entry 'x' of the data"):
        train(counts_in("gzip", other, tmp_path), tmp_path / "state", epochs=1)


# ---- checks ----------------------------------------------------------------------------------------------------------


def broken(cells, change) -> sparse.csr_matrix:
    x = cells.X.astype(np.float64)
    change(x)
    return x


BAD = {
    "not whole": lambda x, at: x.data.__setitem__(at, 1.5),
    "NaN": lambda x, at: x.data.__setitem__(at, np.nan),
    "negative": lambda x, at: x.data.__setitem__(at, -1),
    r"over 2\^31": lambda x, at: x.data.__setitem__(at, 2.0**31 + 1),
}


@pytest.mark.parametrize("what", BAD)
def test_impossible_counts_are_named_with_their_cell(what, cells, tmp_path):
    x = cells.X.astype(np.float64)
    BAD[what](x, x.indptr[333])
    adata = h5ad(cells, tmp_path / "x.h5ad", x, chunks=(97,))
    with pytest.raises(NotCountsError, match=what) as raised:
        tf.embed.SCVI(epochs=1).fit(adata, progress=False)
    assert f"'{cells.obs_names[333]}'" in str(raised.value)
    assert "Layer 'counts' looks like counts" in str(raised.value)


def test_integers_over_the_limit_are_not_rounded_away(cells, tmp_path):
    x = cells.X.astype(np.int64)
    x.data[-1] = 2**31 + 1
    with pytest.raises(NotCountsError, match=r"over 2\^31"):
        open_counts(h5ad(cells, tmp_path / "x.h5ad", x), None, progress=False)


def test_an_empty_cell_is_named(cells, tmp_path):
    x = cells.X.copy()
    x.data[x.indptr[123] : x.indptr[124]] = 0
    with pytest.raises(DataError, match=f"1 cell has no counts in X .e.g. cell '{cells.obs_names[123]}'"):
        tf.embed.SCVI(epochs=1).fit(h5ad(cells, tmp_path / "x.h5ad", x), progress=False)


def test_untidy_rows_give_the_counts_that_they_mean(cells, tmp_path):
    x = cells.X.tocsr(copy=True)
    first = slice(x.indptr[5], x.indptr[6])
    x.indices[first] = x.indices[first][::-1].copy()  # unsorted
    x.data[first] = x.data[first][::-1].copy()
    start = x.indptr[300]
    x.indices[start + 1] = x.indices[start]  # repeated
    x.data[start + 3] = 0  # stored zero
    counts = open_counts(h5ad(cells, tmp_path / "x.h5ad", x, chunks=(97,)), None, progress=False)
    found = counts.rows(np.arange(N_CELLS))
    np.testing.assert_array_equal(found.toarray(), x.toarray())
    np.testing.assert_array_equal(counts.sums, x.toarray().sum(axis=1))
    np.testing.assert_array_equal(counts.lengths, (x.toarray() > 0).sum(axis=1))


def truncate(path, share):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(size * share))


def test_a_truncated_file_is_named_before_training(cells, tmp_path):
    for store in ("gzip", "chunked"):
        path = tmp_path / f"{store}.h5ad"
        adata = h5ad(cells, path, **STORES[store])
        # The last chunks of the indices are at the end of the file.
        truncate(path, 0.99)
        with pytest.raises(FileFormatError, match="damaged or incomplete"):
            tf.embed.SCVI(epochs=1).fit(adata, progress=False)
        shutil.copy(path, tmp_path / "copy.h5ad")  # under another name, as HDF5 still has the first one open
        with pytest.raises(FileFormatError, match="damaged or incomplete"):
            tf.data.read(tmp_path / "copy.h5ad", backed=True)


def test_a_damaged_chunk_is_named(cells, tmp_path):
    path = tmp_path / "x.h5ad"
    adata = h5ad(cells, path, **STORES["gzip"])
    offset = chunks.chunked(adata.X.group["data"]).offsets[3]
    with path.open("r+b") as file:
        file.seek(int(offset))
        file.write(b"\0" * 20)
    with pytest.raises(FileFormatError, match="damaged or incomplete"):
        open_counts(adata, None, progress=False)


def test_a_missing_piece_of_a_zarr_store_is_named(cells, tmp_path):
    counts_in("zarr", cells, tmp_path)
    group = zarr.open_group(tmp_path / "x.zarr", mode="r+")
    matrix = {name: group[f"X/{name}"][:] for name in ("data", "indices")}
    for name, values in matrix.items():
        del group[f"X/{name}"]
        group["X"].create_array(name, data=values, chunks=(500,))
    pieces = sorted((tmp_path / "x.zarr" / "X" / "data").glob("[0-9]*"))
    pieces[2].unlink()
    adata = tf.data.read(tmp_path / "x.zarr", backed=True)
    with pytest.raises(FileFormatError, match="part of the matrix is missing"):
        tf.embed.SCVI(epochs=1).fit(adata, progress=False)


def test_impossible_columns_are_refused(cells, tmp_path):
    x = cells.X.copy()
    x.indices[1000] = N_GENES + 3
    with pytest.raises(FileFormatError, match="genes that it does not have"):
        open_counts(h5ad(cells, tmp_path / "x.h5ad", x), None, progress=False)


def test_a_matrix_stored_by_gene_is_refused_if_it_does_not_fit(cells, tmp_path, monkeypatch):
    other = cells.copy()
    other.X = sparse.csc_matrix(other.X)
    other.write_h5ad(tmp_path / "x.h5ad")
    adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert Inputs(adata, {}).counts_on_disk is None  # small enough to load
    monkeypatch.setattr(streamed, "free_memory", lambda: 1000)
    with pytest.raises(ResourceError, match=r"stored as CSC.*csr_matrix"):
        tf.embed.SCVI(epochs=1).fit(adata, progress=False)


def test_methods_that_need_memory_say_so(cells, tmp_path, monkeypatch):
    adata = h5ad(cells, tmp_path / "x.h5ad")
    tf.embed.PCA(n_components=2).fit(adata)
    monkeypatch.setattr(streamed, "free_memory", lambda: 1000)
    with pytest.raises(ResourceError, match="needs all counts in memory"):
        tf.embed.PCA(n_components=2).fit(adata)


def test_small_files_are_loaded(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "LARGEST_LOADED", 2**29)
    assert Inputs(h5ad(cells, tmp_path / "x.h5ad"), {}).counts_on_disk is None


# ---- genes and results -----------------------------------------------------------------------------------------------


def test_variable_genes_are_those_of_memory(cells, tmp_path):
    adata = h5ad(cells, tmp_path / "x.h5ad", chunks=(97,))
    for roles in ({}, {"batch": "batch"}):
        found, expected = (Inputs(data, roles).variable_genes(20) for data in (adata, cells))
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def fitted(cells):
    return tf.embed.SCVI(epochs=2, n_top_genes=30, n_hidden=16).fit(cells, batch="batch", progress=False)


def test_results_for_cells_on_disk_are_those_in_memory(fitted, cells, tmp_path):
    adata = h5ad(cells, tmp_path / "x.h5ad", chunks=(97,))
    np.testing.assert_array_equal(fitted.embed(adata), fitted.embed(cells))
    np.testing.assert_array_equal(fitted.denoise(adata), fitted.denoise(cells))
    assert fitted.reconstruction_error(adata) == pytest.approx(fitted.reconstruction_error(cells), rel=1e-6)
    one, other = (fitted.differential_expression(a, "cell_type", "type_1", n_samples=50) for a in (adata, cells))
    pd.testing.assert_frame_equal(one, other)
    np.testing.assert_array_equal(np.concatenate(list(fitted.denoised())), fitted.denoise())


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_results_are_written_beside_the_matrix_on_disk(cells, tmp_path, suffix, layer):
    source, out = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(cells, f"write_{suffix}")(source)
    model = tf.denoise.SCVI(epochs=1, n_top_genes=30, n_hidden=16)
    with tf.data.results(source, out) as adata:
        model.fit(adata, batch="batch", layer=layer, progress=False)
        model.write(adata, task="embed")
        model.write(adata, task="denoise")
        assert not isinstance(adata.layers["scvi"], np.ndarray)  # on disk
        assert not out.exists()
    written = tf.data.read(out)
    np.testing.assert_array_equal(written.obsm["X_scvi"], model.embed())
    np.testing.assert_array_equal(written.layers["scvi"], model.denoise())
    assert "scvi" in written.uns["tenfold"]
    assert (written.X != cells.X).nnz == 0
    pd.testing.assert_frame_equal(written.obs, cells.obs)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"in.{suffix}", f"out.{suffix}"]


def test_nothing_is_left_of_results_that_were_stopped(cells, tmp_path):
    cells.write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(KeyboardInterrupt), tf.data.results(tmp_path / "in.h5ad", tmp_path / "out.h5ad"):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["in.h5ad"]
    with pytest.raises(FileFormatError, match="same format"), tf.data.results(tmp_path / "in.h5ad", "out.zarr"):
        pass


def test_the_command_line_leaves_large_data_on_disk(cells, tmp_path):
    from typer.testing import CliRunner

    from tenfold.cli import app

    cells.write_h5ad(tmp_path / "in.h5ad")
    told = [str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "out.h5ad"), "--batch", "batch"]
    done = CliRunner().invoke(app, ["run", "denoise", "scvi", *told, "--set", "epochs=1", "--set", "n_hidden=8"])
    assert done.exit_code == 0, done.output
    assert 'layers["scvi"]' in done.output
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert file["layers/scvi"].chunks is not None
        assert np.isfinite(file["layers/scvi"][:]).all()


def test_a_layer_that_fits_nowhere_is_refused(fitted, cells, monkeypatch):
    from tenfold.data import backed

    monkeypatch.setattr(backed, "free_memory", lambda: 1000)
    with pytest.raises(ResourceError, match=r"tf\.data\.results"):
        fitted.write(cells.copy(), task="denoise")


def test_a_sorted_file_trains_as_well_as_a_shuffled_one(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BUFFER_BYTES", 60_000)
    monkeypatch.setattr(blocks, "BLOCKS", 32)
    shuffled = cells[np.random.default_rng(0).permutation(N_CELLS)].copy()
    errors = []
    for name, adata in (("sorted", cells), ("shuffled", shuffled)):
        stored = h5ad(adata, tmp_path / f"{name}.h5ad", chunks=(97,))
        model = tf.embed.SCVI(epochs=15, n_top_genes=None, n_hidden=32, batch_size=32, learning_rate=3e-3)
        model.fit(stored, batch="batch", progress=False)
        errors.append(model.reconstruction_error(cells))
    assert errors[0] == pytest.approx(errors[1], rel=0.01)
