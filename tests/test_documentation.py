"""README and docs/: their links lead somewhere, their commands parse, and every program in them
runs."""

import re
import shlex
import sys
from typing import Any

import pytest
import torch
from shared_data import REPOSITORY
from tiny_models import images, tiny
from torch.utils.data import TensorDataset

from roli_fast import analyze, peft
from roli_fast.data import Batch
from roli_fast.evaluate import __main__ as evaluate
from roli_fast.train import cli as train

PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
}
COMMANDS = [
    (page, line.partition(" # ")[0].removeprefix("python -m roli_fast."))
    for page, text in PAGES.items()
    for line in text.replace("\\\n", " ").splitlines()
    if re.match(r"python -m roli_fast\.(train|analyze|evaluate) ", line)
    and "..." not in line
    and "$" not in line
]
"""(page, "train --flags") of the commands that stand on a line of their own, whole."""

PROGRAMS = {page: re.findall(r"```python\n(.*?)```", text, re.S) for page, text in PAGES.items()}


def test_the_commands_and_programs_are_found() -> None:
    programs = {command.split()[0] for _page, command in COMMANDS}
    assert programs == {"train", "analyze", "evaluate"} and len(COMMANDS) >= 15
    assert sum(map(len, PROGRAMS.values())) >= 8


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda v: " ".join(v.split())[:50])
def test_a_command_parses(page: str, command: str) -> None:
    program, *flags = shlex.split(command)
    if program == "evaluate" and "--data" not in flags:
        flags += ["--data", "digits"]  # which a run would bring, if it were there
    parse = {"train": train.parse, "analyze": analyze.parse, "evaluate": evaluate.parse}[program]
    assert parse(flags) is not None, page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    here = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        file = (here / name).resolve() if name else REPOSITORY / page
        assert file.exists(), f"{page}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert heading in slugs, f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page, found in PROGRAMS.items() if found])
def test_the_programs_of_a_page_run(page: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "autoattack", None)  # afterwards it is as it was
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given = names(page)
        space: dict[str, Any] = dict(given)
        for program in PROGRAMS[page]:
            exec(compile(program, page, "exec"), space)
            space.update(given)  # the small model again, for what the page shows next
    if page == "docs/ops.md":
        printed = capsys.readouterr().out.strip().removeprefix("tensor(").rstrip(")")
        assert float(printed) < 0.01, "the sparse recovery finds the numbers"
    if page == "docs/lp-ft.md":
        assert 0 < space["step"].ft_ratio and space["step"].size > 0


def names(page: str) -> dict[str, Any]:
    """What the programs of a page take for given: small, and wrong to begin with, where a search of
    thousands of passes would follow."""
    x = images(4, 3, 8, 8)
    if page == "docs/lp-ft.md":
        batches = [Batch(images(6, 3, 8, 8), torch.arange(6) % 5, torch.arange(6))]
        found = {"start": tiny(seed=0), "tuned": tiny(seed=1), "batches": batches}
        return found | {"train": batches, "rate": 1e-3, "n": 6, "optimizer": None}
    if page == "docs/tuning.md":
        tuned = tiny(seed=0)
        peft.apply(tuned, peft.LoRA(rank=2))
        return {"model": tuned, "plain": tiny(seed=0)}
    if page == "README.md":
        dataset = TensorDataset(images(12, 3, 8, 8), torch.arange(12) % 2)
        return {"x": x, "y": torch.arange(4), "dataset": dataset}
    model = tiny(seed=0).eval()
    y = (model(x).argmax(1) + 1) % 5
    return {"model": model, "x": x, "y": y, "radii": torch.full((4,), 0.01)} | {
        "x_adv": x.clone(),
        "grad": torch.randn_like(x),
    }
