"""Sweeps: which cells there are, what is chosen, what is tested, and that nothing is done twice."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small import FLAGS, assert_same_weights, before_stages, run_small, small

from roli_fast.errors import ConfigError, NonFiniteLossError, RoliFastError, RunDirectoryError
from roli_fast.train import Experiment, pipeline, sweep
from roli_fast.train.__main__ import main
from roli_fast.train.cli import parse
from roli_fast.train.sweep import Axis, cells, run_sweep, sweep_table

QUICK = ["--probe.epochs=1", "--finetune.epochs=1", "--data.max_per_class=12"]
RATES = "finetune.optimizer.lr=1e-3,2e-3"


def axes(*texts: str) -> list[Axis]:
    return [Axis.parse(text) for text in texts]


def labels(base: Experiment, *texts: str) -> list[str]:
    return [f"{cell.method} {cell.label}" for cell in cells(base, axes(*texts))]


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("finetune.optimizer.lr=[1e-3,1e-4]", "finetune.optimizer.lr", ("1e-3", "1e-4")),
        ("threat.eps=4/255, 8/255", "threat.eps", ("4/255", "8/255")),
        ("model.mean=[[0.1,0.2,0.3],[0,0,0]]", "model.mean", ("[0.1,0.2,0.3]", "[0,0,0]")),
    ],
)
def test_values_as_written(text: str, field: str, values: Sequence[str]) -> None:
    assert Axis.parse(text) == Axis(field, tuple(values))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["finetune.optim.lr=1"], ["unknown field `finetune.optim`", "optimizer"]),
        (["finetune.optimizer.lr"], ["`--sweep`", "FIELD=VALUE", "1e-3,1e-4"]),
        ([RATES, RATES], ["each field once"]),
        (
            ["finetune.optimizer.lr=1,-1"],
            ["finetune.optimizer.lr=-1", "`finetune.optimizer.lr`", "> 0"],
        ),
        (["threat.eps=0.1,0.2"], ["threat", "a sweep for each value"]),
        (["data.seed=1,2"], ["data.augment"]),
        (["finetune.attack=null,pgd"], ["clean and robust"]),
    ],
)
def test_a_wrong_sweep_is_named_with_its_fix(texts: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        cells(small(), axes(*texts))
    assert all(word.lower() in str(caught.value).lower() for word in words), str(caught.value)


def test_what_does_not_concern_a_method_is_not_run_twice() -> None:
    """RanLI follows finetune only where it has no stage of its own, lp never."""
    both = [f"{m} finetune.optimizer.lr={r}" for m in ("roli", "ranli") for r in ("1e-3", "2e-3")]
    assert labels(small(), RATES) == both
    product = labels(small("--methods=roli"), RATES, "finetune.tuning=full,bias")
    assert product == [f"{one} finetune.tuning={t}" for one in both[:2] for t in ("full", "bias")]
    own = small("--ranli.epochs=1", "--methods=roli,ranli,lp")
    assert labels(own, RATES) == [*both[:2], "ranli as configured", "lp as configured"]
    ranli = [f"ranli ranli.optimizer.lr={rate}" for rate in (0.1, 0.2)]
    assert labels(own, RATES, "ranli.optimizer.lr=0.1,0.2") == [
        *both[:2],
        *ranli,
        "lp as configured",
    ]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two rates, two seeds, both methods."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    base = small(*QUICK, "--seeds=0,1")
    return folder, run_sweep(base, axes(RATES), folder, quiet=True)


def test_a_sweep_tests_what_validates_best_and_nothing_else(
    swept: tuple[Path, dict[str, Any]],
) -> None:
    folder, summary = swept
    rows = summary["sweep"]["cells"]
    assert len(rows) == 4
    for method in ("roli", "ranli"):
        own = [row for row in rows if row["method"] == method]
        chosen = [row for row in own if row["chosen"]]
        assert len(chosen) == 1
        best = max(row["validation_accuracy"] for row in own)
        assert chosen[0]["validation_accuracy"] == best
        for row in own:
            tests = list((folder / row["folder"]).glob("seed-*/*/test.json"))
            assert len(tests) == (2 if row["chosen"] else 0)
            assert (folder / row["folder"] / "summary.json").exists() == row["chosen"]
        tested = json.loads((folder / chosen[0]["folder"] / "summary.json").read_text())
        assert tested["methods"][method]["test"] == summary["methods"][method]["test"]
    assert summary["comparisons"][0]["test"].startswith("paired t")
    assert set(summary["methods"]["roli"]["test"]["sd"]) == {"clean", "pgd-3"}
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_a_cell_is_the_run_that_it_says(tmp_path: Path, swept: tuple[Path, dict[str, Any]]) -> None:
    """Also where its probe came from another cell."""
    folder, _ = swept
    flags = [*QUICK, "--seeds=1", "--methods=roli", "--finetune.optimizer.lr=2e-3"]
    run_small(tmp_path / "alone", *flags)
    cell = folder / "roli/finetune.optimizer.lr=2e-3"
    assert_same_weights(tmp_path / "alone/seed-1", cell / "seed-1")


def test_the_probe_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    before_stages(monkeypatch, lambda s: trained.append("{seed} {stage}".format(**s.job.stage_id)))
    flags = [*QUICK, "--methods=roli,ranli", "--ranli.epochs=1", "--head_init=robust-linear"]
    run_sweep(small(*flags), axes(RATES), tmp_path / "a", quiet=True)
    assert trained == ["0 probe", "0 finetune", "0 finetune", "0 ranli"]
    trained.clear()
    flags = [*QUICK, "--methods=roli"]
    run_sweep(small(*flags), axes("probe.optimizer.lr=0.1,0.2"), tmp_path / "b", quiet=True)
    assert trained == ["0 probe", "0 finetune"] * 2
    heads = [
        load_file(path)["weight"] for path in (tmp_path / "b").glob("roli/*/*/roli/*probe/head*")
    ]
    assert len(heads) == 2 and not (heads[0] == heads[1]).all()


def test_a_killed_sweep_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swept: tuple[Path, dict[str, Any]]
) -> None:
    """Killed in the second of two cells: the first is left alone, the numbers are the same."""
    folder = tmp_path / "sweep"
    base = small(*QUICK, "--seeds=0,1", "--methods=roli")
    original, count = pipeline.Pipeline.run, 0

    def crash(self: pipeline.Pipeline, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise RuntimeError("power cut")
        return original(self, *arguments)

    monkeypatch.setattr(pipeline.Pipeline, "run", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run_sweep(base, axes(RATES), folder, quiet=True)
    before = {p: p.stat().st_mtime_ns for p in folder.glob("roli/**/*.safetensors")}
    assert before
    command = parse(["--run_dir", str(folder), "--resume"])
    assert (command.experiment, command.axes) == (base, tuple(axes(RATES)))
    monkeypatch.setattr(pipeline.Pipeline, "run", original)
    summary = run_sweep(command.experiment, command.axes, folder, resume=True, quiet=True)
    other = small(*QUICK, "--seeds=0,1", "--methods=roli", "--finetune.warmup_epochs=0")
    with pytest.raises(RunDirectoryError, match="another configuration"):
        run_sweep(other, axes(RATES), folder, resume=True, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    expected = swept[1]["methods"]["roli"]
    assert without_times(summary["methods"]) == {"roli": without_times(expected)}
    rows = [cell for cell in swept[1]["sweep"]["cells"] if cell["method"] == "roli"]
    assert without_times(summary["sweep"]["cells"]) == without_times(rows)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        timed = {k for k in value if "second" in k or k == "data_wait_share"}
        return {k: without_times(v) for k, v in value.items() if k not in timed}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_a_cell_that_diverges_is_told_and_not_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*QUICK, "--methods=ranli", "--ranli.epochs=1", "--ranli.attack=null"]
    flags += ["--ranli.optimizer.name=sgd", "--ranli.warmup_epochs=0"]
    base = small(*flags, "--ranli.batch_size=4")
    rates = axes("ranli.optimizer.lr=1e18,1e-3")
    with caplog.at_level("INFO"):
        summary = run_sweep(base, rates, tmp_path / "sweep", quiet=True)
    first, second = summary["sweep"]["cells"]
    assert first["validation_accuracy"] is None and "stage 'ranli'" in first["diverged"]
    assert second["chosen"] and not first["chosen"]
    assert "ranli ranli.optimizer.lr=1e18: validation diverged" in caplog.messages
    assert "diverged" in sweep_table(summary) and "chosen" in sweep_table(summary)
    with pytest.raises(NonFiniteLossError, match="every cell of ranli"):
        run_sweep(base, axes("ranli.optimizer.lr=1e18"), tmp_path / "all", quiet=True)


def test_a_mistake_in_the_last_cell_is_told_before_the_first_trains(tmp_path: Path) -> None:
    base = small(*QUICK, "--methods=ranli", "--finetune.tuning=lora")
    with pytest.raises(RoliFastError, match="rank"):
        run_sweep(base, axes("finetune.tuning.rank=2,999"), tmp_path / "sweep", quiet=True)
    assert not (tmp_path / "sweep").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "sweep")
    flags = [*FLAGS, *QUICK, "--methods=ranli", "--ranli.epochs=1", "--run_dir", folder]
    assert main([*flags, "--sweep", "ranli.optimizer.lr=1e-3,2e-3"]) == 0
    printed = capsys.readouterr().out
    for words in ("ranli.optimizer.lr=1e-3", "chosen", "pgd-3", "Everything is in"):
        assert words in printed
    assert main(["--run_dir", folder, "--resume", "--sweep", "ranli.optimizer.lr=1e-3"]) == 2
    assert main(["--run_dir", folder, "--resume"]) == 0
    assert capsys.readouterr().out == printed


def test_what_a_sweep_keeps_is_read_back_or_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("threat.eps: 8/255,null\n")
    assert sweep.saved_axes(tmp_path) == (Axis("threat.eps", ("8/255", "null")),)
    (tmp_path / "sweep.yaml").write_text("3")
    with pytest.raises(RunDirectoryError, match=r"sweep\.yaml': "):
        sweep.saved_axes(tmp_path)
