"""The shared object itself: what it exports, needs and carries."""

import re
import subprocess

import pytest
import torch

from roli_fast import ops


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
    allowed = r"lib(gomp|stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d+|ld-linux.*"
    assert [name for name in needed if not re.fullmatch(allowed, name)] == []
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic


LOAD = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("_C", {path!r})
spec = importlib.util.spec_from_loader("_C", loader)
kernels = importlib.util.module_from_spec(spec)
loader.exec_module(kernels)
print(kernels.build_info()["openmp"], "torch" in sys.modules)
"""


def test_it_loads_without_torch(module_file, python):
    assert python(LOAD.format(path=str(module_file))).split()[1] == "False"


@pytest.mark.parametrize("first", ["torch", "_C"])
def test_one_openmp_runtime_is_loaded_in_either_order(module_file, python, first):
    """Two would fight over the cores."""
    both = ["import torch", LOAD.format(path=str(module_file))]
    look = """
print({line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "iomp" in line})
"""
    out = python("\n".join([*(both if first == "torch" else both[::-1]), look]))
    assert out.count("omp") == 1, out


def test_wrong_addresses_are_python_errors(kernels):
    import importlib

    linf_step = importlib.import_module("roli_fast._C").linf_step
    x = torch.rand(4)
    number = (0, 0.1, 0)
    good = [x.data_ptr()] * 3 + [1, 4, 0, number, number, 0.0, 1.0, 1]
    for index, bad in ((0, 0), (2, 0), (3, 3), (3, 0), (4, -4), (5, 7)):
        arguments = [*good]
        arguments[index] = bad
        with pytest.raises(ValueError, match="roli_fast._C"):
            linf_step(*arguments)


def test_importing_and_asking_for_backends_leaves_cuda_alone(python):
    out = python("""
import torch
from roli_fast import ops
ops.build_info(), ops.backend("linf_step_", "cpu", torch.float32)
print("initialised:", torch.cuda.is_initialized())
""")
    assert "initialised: False" in out
