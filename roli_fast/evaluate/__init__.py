"""Clean and robust accuracy."""

from roli_fast.evaluate.accuracy import Evaluation as Evaluation
from roli_fast.evaluate.accuracy import evaluate as evaluate
from roli_fast.evaluate.accuracy import standard_error as standard_error
