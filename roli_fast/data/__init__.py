"""Data sets: a frozen dataclass each, `.load() -> Splits(train, val, test, classes)`.

To add one, write a new file here with a subclass of `DataSource` under
`@DATASETS.register("name")`; its fields are its configuration, and the contract tests find it.
"""

from roli_fast.data.corruptions import CORRUPTIONS as CORRUPTIONS
from roli_fast.data.corruptions import corrupted as corrupted
from roli_fast.data.loader import batches as batches
from roli_fast.data.loader import num_batches as num_batches
from roli_fast.data.loader import share as share
from roli_fast.data.loader import shares as shares
from roli_fast.data.source import DATASETS as DATASETS
from roli_fast.data.source import DataSource as DataSource
from roli_fast.data.splits import Batch as Batch
from roli_fast.data.splits import ImageDataset as ImageDataset
from roli_fast.data.splits import Splits as Splits
from roli_fast.data.torch_datasets import from_datasets as from_datasets
from roli_fast.registry import load_components

load_components(__name__, list(__path__))
