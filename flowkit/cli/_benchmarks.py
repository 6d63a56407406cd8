"""The package of the benchmarks: its path is the folder where they lie, in a checkout or in an installed wheel."""

from flowkit.cli.catalog import BENCHMARKS

__path__ = [str(BENCHMARKS.path())]
