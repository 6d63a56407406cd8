"""Lightning, imported in one place: its absence is one sentence, and its remarks stay off the user's terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from flowkit.errors import MissingDependencyError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages deprecate while Lightning imports them
    try:
        import lightning.pytorch as pl
        from lightning.pytorch.plugins.environments import TorchElasticEnvironment
        from lightning.pytorch.plugins.io import TorchCheckpointIO
    except ImportError as error:
        raise MissingDependencyError(
            'training needs Lightning: python -m pip install "flowkit[train]" brings it'
        ) from error

__all__ = ["TorchCheckpointIO", "TorchElasticEnvironment", "pl", "quiet"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning", "lightning_utilities")
# A warning is judged by the module that it is attributed to; flowkit's own, and the user's, pass.
_REMARKS = r"(lightning|lightning_utilities|torch|torchmetrics|pytorch_lightning)(\..*)?$"


@contextmanager
def quiet() -> Iterator[None]:
    """Within it Lightning's hints and torch's deprecations do not reach the terminal; warnings of others do."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_REMARKS)
        warnings.filterwarnings("ignore", category=_possible_user_warning())
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _possible_user_warning() -> type[Warning]:
    from lightning.pytorch.utilities.warnings import PossibleUserWarning

    return PossibleUserWarning
