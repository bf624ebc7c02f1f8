"""`roli_fast.fit` in the cells of a real notebook, and its stop button."""

import asyncio

import pytest

CELLS = (
    """
import torch, roli_fast
from torch import nn
from torch.utils.data import TensorDataset
y = torch.arange(24) % 2
data = TensorDataset(torch.rand(24, 3, 8, 8) / 2 + y.view(-1, 1, 1, 1) / 2, y)
net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
call = {"epochs": 1, "options": {"analysis_images": 0, "report": False}}
""",
    "roli_fast.fit(net, data, run_dir='done', **call)",
    "roli_fast.fit(net, data, run_dir='stopped', **call | {'epochs': 100_000})",
    "import pathlib; best = next(pathlib.Path('stopped').rglob('best.safetensors'))",
    "print(roli_fast.models.load(best)(data.tensors[0]).shape, net(data.tensors[0]).shape)",
)


@pytest.mark.slow
def test_a_notebook(tmp_path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")
    cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    book = nbformat.v4.new_notebook(cells=cells)
    where = {"metadata": {"path": str(tmp_path)}}
    epochs = tmp_path / "stopped" / "metrics.jsonl"
    client = nbclient.NotebookClient(book, timeout=300, allow_errors=True, resources=where)

    async def execute() -> None:
        async with client.async_setup_kernel():
            for number, cell in enumerate(cells):
                running = asyncio.ensure_future(client.async_execute_cell(cell, number))
                if number == 2:
                    while not running.done() and not epochs.is_file():
                        await asyncio.sleep(0.2)
                    await client.km.interrupt_kernel()
                await running

    asyncio.run(execute())
    said = ["".join(map(str, cell.outputs)) for cell in cells]
    assert said[0] == said[3] == "" and "torch.Size([24, 2]) torch.Size([24, 2])" in said[4]
    assert "method  stages" in said[1] and "Error" not in said[1]
    assert "InterruptedRunError" in said[2] and "run_dir='stopped'" in said[2]
