"""The decisions of setup.py, without building anything."""

import importlib.util
import json
import os
import stat
import sys
import sysconfig

import pytest
from shared_data import REPOSITORY


@pytest.fixture(scope="module")
def setup():
    """setup.py as a module; it calls setuptools only when run as a program."""
    if not (REPOSITORY / "setup.py").exists():
        pytest.skip("not a source tree")
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("roli_fast_setup", REPOSITORY / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tools(setup, monkeypatch, tmp_path):
    """A machine of our own: which tools exist, and what a build of each target does."""
    for name in ("find_compiler", "find_cmake", "find_nvcc"):
        monkeypatch.setattr(setup, name, lambda environ, name=name: f"/tools/{name}")
    monkeypatch.setattr(setup, "missing_tools", lambda environ: [])
    tried = []

    def build(target, output, environ):
        tried.append(target)
        if target in build.failing:
            raise setup.BuildFailed(f"{target} is broken")
        return ["90-real"] if target == "cuda" else []

    build.failing, build.tried = set(), tried
    monkeypatch.setattr(setup, "cmake_build", build)
    return build


def record(setup, mode: str | None = None) -> dict:
    environ = {} if mode is None else {"ROLI_FAST_BUILD": mode}
    return setup.build_native(REPOSITORY / "nowhere", environ)


def test_modes(setup):
    for value, mode in ((None, "auto"), ("", "auto"), ("cpu", "cpu"), (" CUDA ", "cuda")):
        assert setup.build_mode({} if value is None else {"ROLI_FAST_BUILD": value}) == mode
    with pytest.raises(SystemExit, match="one of auto, cpu, cuda, none, got 'gpu'"):
        setup.build_mode({"ROLI_FAST_BUILD": "gpu"})


@pytest.mark.parametrize(
    ("missing", "failing", "tried", "reasons"),
    [
        ("", (), ["cuda"], []),
        ("nvcc", (), ["cpu"], ["nvcc was not found"]),
        ("a C++ compiler", (), [], ["missing: a C++ compiler"]),
        ("", ("cuda",), ["cuda", "cpu"], ["cuda is broken"]),
        ("", ("cuda", "cpu"), ["cuda", "cpu"], ["cuda is broken", "cpu is broken"]),
    ],
    ids=["all", "no nvcc", "no compiler", "broken cuda", "both broken"],
)
def test_auto_builds_what_it_can_and_says_why_not_more(
    setup, tools, monkeypatch, missing, failing, tried, reasons
):
    tools.failing = set(failing)
    if missing == "nvcc":
        monkeypatch.setattr(setup, "find_nvcc", lambda environ: None)
    elif missing:
        monkeypatch.setattr(setup, "missing_tools", lambda environ: [missing])
    result = record(setup)
    left = [target for target in tried if target not in failing]
    assert tools.tried == tried and result["built"] == (left[0] if left else "none")
    assert result["failed"] is bool(failing) and len(result["reasons"]) == len(reasons)
    assert all(part in said for part, said in zip(reasons, result["reasons"], strict=True))
    assert left != ["cuda"] or result["architectures"] == ["90-real"]
    json.dumps(result)


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_forced_modes_fail_loudly(setup, tools, monkeypatch, mode):
    assert record(setup, mode)["built"] == mode
    tools.failing = {mode}
    with pytest.raises(SystemExit, match=f"{mode} is broken"):
        record(setup, mode)
    monkeypatch.setattr(setup, "find_nvcc", lambda environ: None)
    if mode == "cuda":
        with pytest.raises(SystemExit, match="ROLI_FAST_BUILD=cuda: .*nvcc"):
            record(setup, mode)
    monkeypatch.setattr(setup, "missing_tools", lambda environ: ["cmake"])
    with pytest.raises(SystemExit, match="missing: cmake"):
        record(setup, mode)
    assert tools.tried == [mode, mode]
    assert record(setup, "none")["built"] == "none" and tools.tried == [mode, mode]


def test_the_build_command_writes_the_record_and_deletes_an_old_module(
    setup, tmp_path, monkeypatch
):
    from setuptools import Distribution, Extension

    monkeypatch.setenv("ROLI_FAST_BUILD", "none")
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "lib" / "roli_fast" / "_C.cpython-39-other.so"
    old.parent.mkdir(parents=True)
    old.touch()
    command = setup.NativeBuild(
        Distribution({"name": "roli-fast", "ext_modules": [Extension("roli_fast._C", [])]})
    )
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ensure_finalized()
    command.run()
    assert not old.exists()
    written = json.loads((old.parent / "_build.json").read_text())
    assert written["requested"] == "none" and written["reasons"] == ["ROLI_FAST_BUILD=none"]


def executable(folder, name: str):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.skipif(os.name == "nt", reason="writes shell scripts")
def test_compilers_are_looked_for_in_the_usual_places(setup, tmp_path, monkeypatch):
    compiler = executable(tmp_path / "a", "g++")
    other = executable(tmp_path / "b", "my-c++")
    assert setup.find_compiler({"PATH": str(tmp_path / "a")}) == compiler
    assert setup.find_compiler({"PATH": str(tmp_path)}) is None
    assert setup.find_compiler({"PATH": "", "CXX": f"{other} -m64"}) == other
    nvcc = executable(tmp_path / "cuda" / "bin", "nvcc")
    assert setup.find_nvcc({"PATH": "", "CUDA_HOME": str(tmp_path / "cuda")}) == nvcc
    assert setup.find_nvcc({"PATH": str(tmp_path / "cuda" / "bin")}) == nvcc
    assert setup.find_nvcc({"PATH": str(tmp_path / "cuda" / "bin"), "CUDACXX": "/no/nvcc"}) is None


def test_every_missing_tool_is_named(setup, monkeypatch):
    monkeypatch.setattr(setup.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "cmake", None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    missing = " ".join(setup.missing_tools({"PATH": ""}))
    for name in ("C++ compiler", "cmake", "ninja or make", "pybind11", "python3-dev"):
        assert name in missing


def test_architecture_lists(setup):
    known = {"75", "80", "90", "100"}
    for text, parsed in (("9.0", "90-real"), ("90", "90-real"), ("9.0+PTX", "90")):
        assert setup.parse_architecture(text) == parsed
    assert setup.parse_architecture("12.0a") == "120a-real"
    assert setup.cuda_architectures({}, known) == [
        *("75-real", "80-real", "90-real", "100-real", "90-virtual")
    ]
    torch_list = {"TORCH_CUDA_ARCH_LIST": "7.0;8.0 9.0+PTX"}
    assert setup.cuda_architectures(torch_list, known) == ["80-real", "90"]
    own = torch_list | {"ROLI_FAST_CUDA_ARCHS": "70,90"}
    assert setup.cuda_architectures(own, known) == ["70-real", "90-real"]
    with pytest.raises(setup.BuildFailed, match="knows none"):
        setup.cuda_architectures({"TORCH_CUDA_ARCH_LIST": "5.0"}, known)
    with pytest.raises(setup.BuildFailed, match="expected a form like"):
        setup.cuda_architectures({"TORCH_CUDA_ARCH_LIST": "Hopper"}, known)


def test_switches(setup):
    for value, on in (("1", True), ("true", True), ("", False), ("0", False), ("false", False)):
        assert setup.is_on({"CI": value}, "CI") is on
    assert setup.is_on({}, "CI") is False
