"""The last part of a page: how to run it again, and every file that it was made from."""

import datetime
import shlex

from roli_fast.report.blocks import Block, Fold, Section, Table, Text
from roli_fast.report.examples import example_files
from roli_fast.report.subjects import Page


def files_read(page: Page) -> Section:
    """Commands, and the table of files."""
    blocks: list[Block] = []
    for run in page.runs:
        config = shlex.quote(str(run.folder / "config.yaml"))
        name = f"{run.name}: " if page.several else ""
        blocks.append(
            Fold(f"{name}repeat the run", code=f"python -m roli_fast.train --config {config}")
        )
        blocks += [
            Text(f"Left out, as it could not be read: {line}.", strong=True) for line in run.damaged
        ]
        files = dict.fromkeys(run.files)
        if not page.several:  # that page shows no examples
            files |= dict.fromkeys(f for m in run.methods for _, f in example_files(m))
        rows = []
        for file in files:
            facts = file.stat()
            when = datetime.datetime.fromtimestamp(facts.st_mtime, datetime.timezone.utc)
            rows.append(
                [
                    page.source(run, file.relative_to(run.folder)).text,
                    f"{facts.st_size:,}",
                    when.strftime("%Y-%m-%d %H:%M"),
                ]
            )
        sources = [page.source(run, file.relative_to(run.folder)) for file in files]
        caption = f"Files that this page was made from, in {run.folder}."
        blocks.append(
            Fold(
                f"{name}{len(rows)} files read",
                [Table(caption, ("file", "bytes", "last written, UTC"), rows, sources)],
            )
        )
    return Section("files", "Files", blocks)
