"""Training: phases, minibatches, one loop, exact resume.

``fit`` trains a network phase by phase; ``predict`` runs a function over all cells; both leave the caller's random
state alone. What a method composes::

    fit(net, data, phases, *, batch_size=128, train_fraction=0.9, weights=None, seed=0, device="auto",
        precision="32-true", run=RunOptions(), name="training", fingerprint=None) -> History
    predict(net, data, function, *, batch_size=1024, index=None, device=None, seed=0) -> array, or dict of arrays
    seeded(seed, purpose="init")            # context: build a network with reproducible weights
    Minibatches(data, batch_size=128, *, index=None, shuffle=True, seed=0, weights=None, device="cpu")
    Phase(name, epochs, loss | steps, optimizer, parameters, scheduler, validation, monitor, early_stopping, until,
          before_epoch, clip, clip_value, validate_every)
    Step(name, parameters, loss, optimizer, every, repeat)
    EarlyStopping(patience, min_delta, restore_best, start_epoch)
    Progress(phase, epochs, epoch, step).ramp(start, end, over_epochs, over_steps)

``data`` is a dict of arrays or CSR matrices with one row a cell. A batch has the same keys (tensors, or
``SparseRows`` for CSR) plus ``"index"``, the cells' rows in `data`. Names are loaded when first asked for, so that
importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.data.minibatches import Batch, Minibatches, split
    from tenfold.engine.devices import seeded
    from tenfold.engine.history import History
    from tenfold.engine.loop import fit
    from tenfold.engine.phases import EarlyStopping, Phase, Progress, Step
    from tenfold.engine.prediction import predict

__all__ = ["Batch", "EarlyStopping", "History", "Minibatches", "Phase", "Progress", "Step"]  # classes, then functions
__all__ += ["fit", "predict", "seeded", "split"]
_HOMES = {"History": "engine.history", "fit": "engine.loop", "predict": "engine.prediction", "seeded": "engine.devices"}
_HOMES |= dict.fromkeys(("Batch", "Minibatches", "split"), "data.minibatches")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"tenfold.{_HOMES.get(name, 'engine.phases')}"), name)
