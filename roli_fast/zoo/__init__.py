"""Published weights by name: `python -m roli_fast.zoo list`, `... get NAME`, `weights: zoo:NAME`.

The only code that downloads is `fetch`, and only `get` calls it.
"""

from roli_fast.zoo.download import fetch as fetch
from roli_fast.zoo.table import NORMALIZATIONS as NORMALIZATIONS
from roli_fast.zoo.table import PREFIX as PREFIX
from roli_fast.zoo.table import ZOO as ZOO
from roli_fast.zoo.table import Entry as Entry
from roli_fast.zoo.table import find as find
from roli_fast.zoo.table import folder as folder
from roli_fast.zoo.table import local_file as local_file
from roli_fast.zoo.table import named as named
