"""A wheel, installed beside other releases of torch than the one it was built with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import REPOSITORY

CHECK = """
import torch, roli_fast
from roli_fast import ops
x = torch.rand(64, 3, 32, 32)
grad, found = torch.randn_like(x), []
torch.set_num_threads(2)
for name in ("native", "reference"):
    with ops.use_backend(name):
        assert ops.backend("linf_step_", "cpu", x.dtype).name == name
        step = dict(eps=0.1, step_size=0.03, bounds=(0.0, 1.0))
        found.append(ops.linf_step_(x.clone(), grad, x, **step))
assert torch.equal(*found)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line}
assert len(maps) == 1 and "torch" in maps.pop(), maps
print(torch.__version__, roli_fast.__version__, ops.build_info()["openmp"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` has left in dist, or one of CPU kernels."""
    if made := sorted(REPOSITORY.glob("dist/*.whl")):
        return made[-1]
    if not (REPOSITORY / "setup.py").exists():
        pytest.skip("not a source tree")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, REPOSITORY]
    subprocess.run(command, env=os.environ | {"ROLI_FAST_BUILD": "cpu"}, check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.parametrize("torch", ["torch==2.6.0", "torch==2.13.0"])
def test_it_installs_without_a_compiler(wheel: Path, torch: str, tmp_path: Path) -> None:
    """The kernels run, to the same bits, on the threads of torch's one pool."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    python, env = tmp_path / "bin/python", {**os.environ, "PATH": str(tmp_path / "bin")}
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        env.pop(name, None)
    pip = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:"]
    if subprocess.run(
        [*pip, torch, "numpy", "scipy", "pillow", "safetensors", "PyYAML"], env=env
    ).returncode:
        pytest.skip(f"pip cannot install {torch}")
    subprocess.run([*pip, "--no-deps", wheel], env=env, check=True)
    subprocess.run([python, "-c", CHECK], env=env, cwd=tmp_path, check=True)
