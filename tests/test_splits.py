"""Splits: what is left out stays out, whole and once."""

import numpy as np
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.errors import DataError, ParameterError

splits, stress = tf.data.splits, tf.data.stress


@pytest.fixture(scope="module")
def cells():
    adata = tf.data.simulate(
        600, 30, n_types=4, n_batches=3, proportions=[[1, 1, 1, 0], [1, 1, 1, 0], [1, 0.2, 1, 1]], seed=0
    )
    adata.obs["donor"] = [f"donor {i % 12}" for i in range(600)]
    return adata


def whole(split, n):
    """Every cell is tested exactly once, and never trained on meanwhile."""
    tested = np.concatenate([fold.test for fold in split])
    assert sorted(tested) == list(range(n))
    for fold in split:
        assert not set(fold.train) & set(fold.test) and len(fold.train) + len(fold.test) == n


def test_random_folds_are_even_and_optimistic(cells):
    split = splits.random_cv(cells, "cell_type", 5)
    whole(split, 600)
    assert "optimistic" in split.banner
    types = cells.obs["cell_type"].cat.codes.to_numpy()
    tables = np.array([np.bincount(types[fold.test], minlength=4) for fold in split])
    assert (np.ptp(tables, axis=0) <= 1).all() and np.ptp(tables.sum(axis=1)) <= 1
    other = splits.random_cv(cells, "cell_type", 5, seed=1)
    assert not np.array_equal(other.folds[0].test, split.folds[0].test)


def test_a_batch_left_out_is_left_out_whole(cells):
    split = splits.leave_batch_out(cells, "batch", "cell_type")
    whole(split, 600)
    batch = cells.obs["batch"].astype(str).to_numpy()
    for fold in split:
        assert set(batch[fold.test]) == {fold.name} and fold.name not in batch[fold.train]
    last = split.folds[2]
    assert last.unseen == ["type_4"] and split.folds[0].untested == ["type_4"]
    report = split.report()
    assert report.loc[2, "only in test"] == "type_4" and report["test"].sum() == 600
    assert split.banner == "" and split.describe()["test"].keys() == set(batch)


def test_many_groups_are_gathered_whole_and_balanced(cells):
    split = splits.leave_donor_out(cells, "donor", "cell_type")
    whole(split, 600)
    assert len(split) == 5
    donors = cells.obs["donor"].to_numpy()
    for fold in split:
        assert not set(donors[fold.train]) & set(donors[fold.test])
        assert 2 <= len(set(donors[fold.test])) <= 3 and not fold.unseen


def test_donors_must_be_nested_in_data_sets(cells):
    with pytest.raises(DataError, match="'donor 0' is in batch_1, batch_2, batch_3"):
        splits.leave_dataset_out(cells, "batch", "cell_type", donor="donor")
    nested = cells.copy()
    nested.obs["donor"] = nested.obs["batch"].astype(str) + nested.obs["donor"].astype(str)
    assert len(splits.leave_dataset_out(nested, "batch", "cell_type", donor="donor")) == 3


def test_one_batch_says_nothing_of_a_new_one(cells):
    with pytest.raises(DataError, match="a single level"):
        splits.leave_batch_out(cells[:200].copy(), "batch", "cell_type")


def test_a_type_left_out_is_in_no_training_cell(cells):
    types = cells.obs["cell_type"].astype(str).to_numpy()
    batch = cells.obs["batch"].astype(str).to_numpy()
    for key in (None, "batch"):
        split = splits.leave_cell_type_out(cells, "cell_type", batch=key)
        assert [fold.name for fold in split] == ["type_1", "type_2", "type_3", "type_4"]
        for fold in split:
            assert fold.name not in types[fold.train] and fold.name in fold.unseen
            known = fold.test[types[fold.test] != fold.name]
            assert 0.15 < len(known) / 600 < 0.45
            assert (types[fold.test] == fold.name).sum() == (types == fold.name).sum()
            if key:
                assert not set(batch[known]) & set(batch[fold.train])
    family = splits.leave_cell_type_out(cells, "cell_type", families={"both": ["type_1", "type_2"]})
    assert family.folds[0].unseen == ["type_1", "type_2"]
    with pytest.raises(DataError, match="no label"):
        splits.leave_cell_type_out(cells, "cell_type", families={"x": ["nothing"]})


def test_few_cells_of_each_label(cells):
    fold = splits.few_shot(cells, "cell_type", 5).folds[0]
    assert (cells.obs["cell_type"].iloc[fold.train].value_counts() == 5).all()
    assert len(fold.train) + len(fold.test) == 600


def test_calibration_cells_are_of_other_batches_where_there_are_three(cells):
    batch = cells.obs["batch"].astype(str).to_numpy()
    train, held, warning = splits.inner_split(cells, "cell_type", "batch")
    assert not set(batch[train]) & set(batch[held]) and warning == "" and len(train) + len(held) == 600
    train, held, warning = splits.inner_split(cells, "cell_type")
    assert "optimistic" in warning and abs(len(held) - 150) < 3


def test_thinning_keeps_the_share_and_every_cell(cells):
    thin = stress.downsample_depth(cells.X, 0.3)
    assert thin.sum() / cells.X.sum() == pytest.approx(0.3, abs=0.02)
    assert (thin.toarray() <= cells.X.toarray()).all()
    hardly = stress.downsample_depth(cells.X, 1e-6)
    assert (np.asarray(hardly.sum(axis=1)) == 1).all()
    assert (stress.downsample_depth(cells.X, 1.0) != sparse.csr_matrix(cells.X)).nnz == 0
    with pytest.raises(ParameterError, match="share=0"):
        stress.downsample_depth(cells.X, 0)


def test_panels_and_noise(cells):
    kept = stress.gene_dropout(100, 0.4)
    assert len(kept) == 60 and (np.diff(kept) > 0).all()
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    noisy = stress.label_noise(labels, 0.25)
    assert (noisy != labels).mean() == 0.25 and set(noisy) == set(labels)
    assert (stress.label_noise(labels, 0.0) == labels).all()


def test_libraries_are_read_from_barcodes(cells):
    assert splits.barcode_groups(cells) is None
    named = cells[:6].copy()
    named.obs_names = [f"ACGTACGTAC{'ACGTNA'[i]}-{i % 2 + 1}" for i in range(6)]
    assert list(splits.barcode_groups(named)) == ["1", "2"] * 3
    assert splits.barcode_groups(named[::2].copy()) is None, "one library"
