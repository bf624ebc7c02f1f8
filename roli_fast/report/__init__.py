"""report.html of a run, and a page that compares runs; `python -m roli_fast.report` is the program.

Everything on a page is read from the files of the run directory, which its last lines list.
"""

from roli_fast.report.writing import write as write
