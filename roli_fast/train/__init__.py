"""Training: stages, methods made of stages, and the command line."""

from roli_fast.train.experiment import Experiment as Experiment
from roli_fast.train.optim import Optimizer as Optimizer
from roli_fast.train.pipeline import run as run
from roli_fast.train.stage import Stage as Stage
from roli_fast.train.summary import table as table
