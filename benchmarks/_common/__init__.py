"""What the benchmarks share: options, ratios with intervals, reports (table, JSON, plot), chains, peers."""

from .options import Options, bench_options
from .report import Column, Report, Section
from .statistics import Ratio, ratio

__all__ = ["Column", "Options", "Ratio", "Report", "Section", "bench_options", "ratio"]
