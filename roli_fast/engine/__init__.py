"""The gradient engine: the only place where a model is run for an attack."""

from roli_fast.engine.engine import Engine as Engine
from roli_fast.engine.engine import SearchModel as SearchModel
from roli_fast.engine.engine import bound as bound
from roli_fast.engine.engine import forget as forget
from roli_fast.engine.engine import plain as plain
from roli_fast.engine.hold import Hold as Hold
from roli_fast.engine.hold import in_train_mode as in_train_mode
from roli_fast.engine.input_gradient import Cost as Cost
from roli_fast.engine.input_gradient import InputGradient as InputGradient
from roli_fast.engine.input_gradient import KeptForward as KeptForward
from roli_fast.engine.merging import Mergeable as Mergeable
from roli_fast.engine.merging import MergeRequest as MergeRequest
