from ._report import report as report
from ._results import results as results
from ._run import run as run
