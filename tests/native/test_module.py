"""The shared object: what it exports, needs and carries, and what happens where it is missing."""

import importlib
import logging
import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from roli_fast import doctor, ops
from roli_fast.errors import ArgumentError
from roli_fast.ops import native


def read(tool, *command: str) -> str:
    return subprocess.run([tool(command[0]), *command[1:]], capture_output=True, text=True).stdout


def test_build_info_names_what_was_built(kernels):
    info = ops.build_info()
    assert info["cpu_level"] in ("x86-64-v4", "x86-64-v3", "default")
    assert "-ffp-contract=off" in info["flags"] or info["compiler"].startswith("MSVC")
    assert (info["cuda"] is None) == (info["cuda_architectures"] == "")
    assert ";" not in info["cuda_architectures"]


def test_only_the_init_function_is_exported(module_file, tool):
    symbols = read(tool, "nm", "-D", "--defined-only", str(module_file)).splitlines()
    assert [line.split()[-1] for line in symbols] == ["PyInit__C"]


def test_it_needs_neither_torch_nor_a_cuda_runtime(module_file, tool):
    dynamic = read(tool, "readelf", "-d", str(module_file))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert "libc.so.6" in needed
    allowed = r"lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d+|ld-linux.*"
    assert [name for name in needed if not re.fullmatch(allowed, name)] == []
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic


LOAD = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("_C", {path!r})
spec = importlib.util.spec_from_loader("_C", loader)
kernels = importlib.util.module_from_spec(spec)
loader.exec_module(kernels)
"""
LOOK = """
print({line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "iomp" in line})
"""
USE = """
import os, signal, torch
from roli_fast import ops
ops.build_info(), ops.backend("linf_step_", "cpu", torch.float32)
print("initialised:", torch.cuda.is_initialized())
torch.set_num_threads(2)
x = torch.rand(4, 3, 224, 224)
ops.linf_step_(x.clone(), torch.randn_like(x), x, eps=0.1, step_size=0.1)
grad = torch.ones_like(x)
want = ops.linf_step_(x.clone(), grad, x, eps=0.1, step_size=0.1)
target = x.clone()
child = os.fork()
if child == 0:
    signal.alarm(30)
    ops.linf_step_(target, grad, x, eps=0.1, step_size=0.1)
    same = (target.numpy() == want.numpy()).all()  # torch's own comparison might wait
    os._exit(0 if same else 1)
print("child:", os.waitpid(child, 0)[1])
"""


def test_a_process_that_forks_and_leaves_cuda_alone(module_file, python):
    """The child has lost the thread pool, and would wait for it for ever. There is one OpenMP
    runtime, torch's: two would fight over the cores; none is asked for by a file's name."""
    out = python(USE + LOAD.format(path=str(module_file)) + LOOK)
    assert "initialised: False" in out and "child: 0" in out and out.count("omp") == 1, out


def test_wrong_addresses_are_python_errors(kernels):
    linf_step = importlib.import_module("roli_fast._C").linf_step
    x = torch.rand(4)
    number = (0, 0.1, 0)
    good = [x.data_ptr()] * 3 + [1, 4, 0, number, number, 0.0, 1.0, 1]
    for index, bad in ((0, 0), (2, 0), (3, 3), (3, 0), (4, -4), (5, 7)):
        arguments = [*good]
        arguments[index] = bad
        with pytest.raises(ValueError, match="roli_fast._C"):
            linf_step(*arguments)


@pytest.fixture
def fresh(monkeypatch, caplog):
    """The package's state as a new process with this environment and this module has it."""

    def make(module: ModuleType | None = None, **environ: str) -> str:
        for name in ("ROLI_FAST_BACKEND", "ROLI_FAST_REQUIRE_EXT"):
            monkeypatch.setenv(name, environ.get(name, ""))
        monkeypatch.setitem(sys.modules, "roli_fast._C", module)  # None: as if it was not built
        with caplog.at_level(logging.WARNING, "roli_fast"):
            monkeypatch.setattr(native, "state", native._State())
        return caplog.text

    return make


def step() -> torch.Tensor:
    x = torch.full((2, 3), 0.5)
    return ops.linf_step_(x.clone(), torch.ones(2, 3), x, eps=0.1, step_size=0.125)


def test_the_switches_of_the_environment(fresh):
    with pytest.raises(ArgumentError, match="`ROLI_FAST_BACKEND`: expected native or reference"):
        fresh(ROLI_FAST_BACKEND="fast")
    fresh(ROLI_FAST_BACKEND="reference", ROLI_FAST_REQUIRE_EXT="1")
    chosen = ops.backend("linf_step_", "cpu", torch.float32)
    assert chosen == ("reference", "the reference was asked for")
    assert torch.allclose(step(), torch.tensor(0.6))


def test_without_the_module_everything_works_unless_it_is_required(fresh):
    assert fresh().count("no compiled kernels") <= 1  # silent where none were asked for
    assert ops.backend("linf_step_", "cpu", torch.float32).name == "reference"
    assert ops.build_info() == {} and torch.allclose(step(), torch.tensor(0.6))
    fresh(ROLI_FAST_REQUIRE_EXT="1")
    with pytest.raises(ops.MissingKernelError, match="linf_step_: ROLI_FAST_REQUIRE_EXT is set"):
        step()


def test_an_unfit_module_is_not_used(fresh):
    module = ModuleType("roli_fast._C")
    module.build_info = lambda: {"interface": -1}  # type: ignore[attr-defined]
    assert fresh(module).count("no compiled kernels: _C is of another version") == 1
    assert "of another version" in ops.backend("linf_step_", "cpu", torch.float32).reason


def report(capsys, code: int = 0) -> str:
    assert doctor.main([]) == code
    return capsys.readouterr().out


def test_doctor(fresh, capsys):
    out = report(capsys, code=1 if native.state.required and not ops.build_info() else 0)
    for word in ("python ", "torch ", "torchvision ", "timm ", "numpy ", "cuda ", "threads "):
        assert re.search(rf"^  {word}", out, re.M), out
    assert len(re.findall(r"^  linf_step_ +(cpu|cuda) +\w+ +(native|reference)", out, re.M)) == 8
    fresh()
    out = report(capsys)
    assert "no _C: " in out and not re.search(r"cpu +\w+ +native", out)
    fresh(ROLI_FAST_REQUIRE_EXT="1")
    report(capsys, code=1)
