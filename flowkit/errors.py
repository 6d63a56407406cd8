"""flowkit's own error classes. Each message is one sentence: what was expected, what came, and which node."""


class FlowkitError(Exception):
    """The ancestor of every error that flowkit raises on purpose: `except fk.FlowkitError` catches them all."""


class GraphError(FlowkitError, ValueError):
    """A graph that cannot be built: a wire used twice or never, a name taken, an inverse that cannot run."""


class ShapeError(GraphError):
    """A shape that does not fit, found while a bijection or a graph is constructed."""


class ConfigError(FlowkitError, ValueError):
    """A configuration value outside its range: a negative bound, an unknown activation, a mask of the wrong length."""


class InputError(FlowkitError, ValueError):
    """Data passed to a call with wrong names, shapes, dtypes, devices or batch sizes."""


class ConditionError(InputError):
    """Conditions passed to a call with wrong names, shapes, dtypes, devices or batch sizes."""


class NonFiniteError(InputError):
    """NaN or infinity where numbers are needed; the message names the tensor and the first bad index."""


class ConvergenceError(FlowkitError, ArithmeticError):
    """An inverse that is found by iteration and did not reach its tolerance; the message holds the row and figures."""


class RegistryError(FlowkitError, LookupError):
    """A name that is not registered, is registered twice, or belongs to a plugin that is missing."""


class StorageError(FlowkitError, ValueError):
    """A file that cannot be written or read as a flow."""


class MissingDependencyError(FlowkitError, ImportError):
    """An optional package is not installed; the message holds the `pip install` line."""


class BackpropError(FlowkitError, RuntimeError):
    """Something that memory-frugal gradients cannot do; the message says what to use instead."""


class ExportError(FlowkitError, RuntimeError):
    """A flow that a format cannot hold; the message names the part or the operation."""


class OutOfMemoryError(FlowkitError, MemoryError):
    """A training step that does not fit into memory; the message says what would take less."""


class ConformanceError(FlowkitError, AssertionError):
    """A bijection broke at least one law of the conformance kit; the message lists every failure."""


class PluginWarning(UserWarning):
    """A plugin was found but could not be loaded."""


class BudgetWarning(UserWarning):
    """A byte budget that even reverse mode cannot keep."""


class DriftWarning(UserWarning):
    """Inverted values have drifted from their snapshots: gradients are less accurate than plain ones."""
