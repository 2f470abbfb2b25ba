"""Picture features around spots against scikit-image and NumPy on crops, as Squidpy takes them; CPU time.

Needs scikit-image in the environment of ``TENFOLD_REFERENCE_PYTHON``. Run ``python evidence/image_features_parity.py``.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
from recording import record, run_apart, sha256, version, write

#: Spots of a Visium slice, side of their square in pixels, and side of the picture.
N_SPOTS, SIDE, SIZE = 3_500, 51, 2_000
TOLERANCE, BAR = 1e-6, 5.0

SETUP = """
from skimage.feature import graycomatrix, graycoprops
graycomatrix(np.zeros((4, 4), np.uint8), (1,), (0.0,))
"""
CODE = """
image, place, half = given["image"], given["place"], int(given["side"]) // 2
kinds = ("contrast", "dissimilarity", "homogeneity", "correlation", "ASM")
texture, summary = [], []
for x, y in place:
    crop = image[y - half:y + half + 1, x - half:x + half + 1]
    for channel in range(3):
        plane = crop[:, :, channel]
        matrix = graycomatrix(plane, (1,), (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4), levels=256)
        texture.append([graycoprops(matrix, kind)[0] for kind in kinds])
        summary.append([*np.quantile(plane, (0.9, 0.5, 0.1)), plane.mean(), plane.std()])
result = {"texture": np.array(texture), "summary": np.array(summary)}
"""
OURS_SETUP = """
from tenfold.data.image_features import summary, texture
from tenfold.data.images import Slide
def described(n):
    slide = Slide("one", np.arange(n), given["image"], given["place"][:n].astype(float), 1.0, float(given["side"]))
    return texture(slide, int(given["side"])), summary(slide, int(given["side"]))
described(2)
"""
OURS = """
texture, summary = described(len(given["place"]))
result = {"texture": texture.to_numpy().reshape(-1, 5, 4), "summary": summary.to_numpy().reshape(-1, 5)}
"""


def main() -> None:
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (SIZE // 8, SIZE // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    image = np.clip(coarse + rng.integers(-20, 21, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    given = {"image": image, "place": rng.integers(SIDE, SIZE - SIDE, (N_SPOTS, 2)), "side": SIDE}
    theirs, ours = run_apart(CODE, given, SETUP), run_apart(OURS, given, OURS_SETUP, python=sys.executable)
    shown = {"dataset": f"random picture, {N_SPOTS:,} spots of {SIDE} pixels", "digest": sha256(image),
             "reference": f"{version('scikit-image')}, one call a spot"}  # fmt: skip
    records = []
    for part in ("texture", "summary"):
        apart = float(np.max(np.abs(ours[part] - theirs[part]) / np.maximum(np.abs(theirs[part]), 1e-3)))
        records.append(record(
            "image_features", "parity", part, metric="largest relative difference", value=apart, reference_value=0.0,
            tolerance=TOLERANCE, passed=apart <= TOLERANCE, **shown,
        ))  # fmt: skip
    records.append(record(
        "image_features", "benchmark", f"texture and summary, one thread, at least {BAR:g} times less",
        metric="CPU seconds", value=ours["_seconds"], reference_value=theirs["_seconds"], tolerance=BAR,
        passed=BAR * ours["_seconds"] <= theirs["_seconds"], **shown,
    ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
