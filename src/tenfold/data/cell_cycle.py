"""Genes of the cell cycle, and how active they are in each cell.

The lists are those of Tirosh et al. (2016), as published; mouse genes are the same symbols in mouse spelling.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

_S = """
    MCM5 PCNA TYMS FEN1 MCM2 MCM4 RRM1 UNG GINS2 MCM6 CDCA7 DTL PRIM1 UHRF1 MLF1IP HELLS RFC2 RPA2 NASP RAD51AP1 GMNN
    WDR76 SLBP CCNE2 UBR7 POLD3 MSH2 ATAD2 RAD51 RRM2 CDC45 CDC6 EXO1 TIPIN DSCC1 BLM CASP8AP2 USP1 CLSPN POLA1 CHAF1B
    BRIP1 E2F8
"""
_G2M = """
    HMGB2 CDK1 NUSAP1 UBE2C BIRC5 TPX2 TOP2A NDC80 CKS2 NUF2 CKS1B MKI67 TMPO CENPF TACC3 FAM64A SMC4 CCNB2 CKAP2L
    CKAP2 AURKB BUB1 KIF11 ANP32E TUBB4B GTSE1 KIF20B HJURP CDCA3 HN1 CDC20 TTK CDC25C KIF2C RANGAP1 NCAPD2 DLGAP5
    CDCA2 CDCA8 ECT2 KIF23 HMMR AURKA PSRC1 ANLN LBR CKAP5 CENPE CTCF NEK2 G2E3 GAS2L3 CBX5 CENPA
"""
S_GENES, G2M_GENES = tuple(_S.split()), tuple(_G2M.split())
FEWEST = 10  # genes of each list; a score of fewer is a score of those genes


def phase_scores(lognorm: sparse.csr_matrix, gene_names: np.ndarray, batch: np.ndarray) -> np.ndarray | None:
    """Score the S and the G2/M phase in every cell, batch by batch: mean of the genes minus that of similar ones.

    Parameters
    ----------
    lognorm
        Log-normalised expression, shape (n_cells, n_genes).
    gene_names
        Symbols of human or mouse genes, shape (n_genes,).
    batch
        Batch of every cell, shape (n_cells,), int.

    Returns
    -------
    Shape (n_cells, 2): S, G2/M. ``None`` where the data hold fewer than 10 genes of either list.

    References
    ----------
    Lists: Tirosh et al., Science 2016, doi:10.1126/science.aad0501. Score: that of Scanpy's ``score_genes_cell_cycle``,
    after Satija et al., Nature Biotechnology 2015, doi:10.1038/nbt.3192.
    """
    known = {str(name) for name in gene_names}
    human, mouse = ([[spelt(g) for g in genes] for genes in (S_GENES, G2M_GENES)] for spelt in (str, str.capitalize))
    lists = max((human, mouse), key=lambda spelling: sum(gene in known for genes in spelling for gene in genes))
    found = [[gene for gene in genes if gene in known] for genes in lists]
    if min(map(len, found)) < FEWEST:
        return None
    import scanpy as sc  # two seconds, which a comparison would pay in every run
    from anndata import AnnData

    scores = np.zeros((lognorm.shape[0], 2), dtype=np.float64)
    for code in np.unique(batch):
        inside = np.flatnonzero(batch == code)
        cells = AnnData(lognorm[inside].copy())
        cells.var_names = [str(name) for name in gene_names]
        sc.tl.score_genes_cell_cycle(cells, s_genes=found[0], g2m_genes=found[1])
        scores[inside] = cells.obs[["S_score", "G2M_score"]].to_numpy()
    return scores
