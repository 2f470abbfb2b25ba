"""What generative models of counts share: their inputs, and all that can be asked of them once fitted."""

from tenfold.count_models.base import CountModelMethod

__all__ = ["CountModelMethod"]
