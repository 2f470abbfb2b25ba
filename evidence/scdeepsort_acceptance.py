"""scDeepSort: accuracy within three points of logistic regression on five folds.

The original needs DGL 0.4, whose interface for sampled graphs is gone from every DGL that installs today; its code was
read, and its graph is walked edge by edge in our tests.
"""

from __future__ import annotations

import warnings

from annotator_folds import beside_baselines
from recording import write

POINTS = 0.03


def main() -> None:
    warnings.simplefilter("ignore")
    write(beside_baselines("scdeepsort", {"calibration": 0.0}, below=POINTS))


if __name__ == "__main__":
    main()
