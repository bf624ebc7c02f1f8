"""Clean and robust accuracy; `python -m roli_fast.evaluate` is the program."""

from roli_fast.evaluate.accuracy import UNION as UNION
from roli_fast.evaluate.accuracy import Evaluation as Evaluation
from roli_fast.evaluate.accuracy import columns as columns
from roli_fast.evaluate.accuracy import evaluate as evaluate
from roli_fast.evaluate.curve import Curve as Curve
from roli_fast.evaluate.curve import plot_curves as plot_curves
from roli_fast.evaluate.curve import robustness_curve as robustness_curve
from roli_fast.evaluate.passes import attack_passes as attack_passes
from roli_fast.evaluate.report import Report as Report
from roli_fast.evaluate.report import read_report as read_report
from roli_fast.evaluate.shares import standard_error as standard_error
from roli_fast.evaluate.shares import wilson_interval as wilson_interval
