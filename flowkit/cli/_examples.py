"""The package of the examples: its path is the folder where they lie, in a checkout or in an installed wheel."""

from flowkit.cli.catalog import EXAMPLES

__path__ = [str(EXAMPLES.path())]
