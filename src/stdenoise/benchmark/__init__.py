"""Benchmarks: methods x data sets x metrics x seeds, resumable, with a report."""

from stdenoise.benchmark._report import report
from stdenoise.benchmark._results import results
from stdenoise.benchmark._run import run

__all__ = ["report", "results", "run"]
