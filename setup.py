"""Builds `roli_fast._C` with CMake where the machine can, and installs without it where it cannot.

ROLI_FAST_BUILD says what to build:
    auto (default)  CUDA and CPU kernels if nvcc is found, CPU kernels if only a C++ compiler is,
                    nothing if that is missing too. A build that starts and fails never stops the
                    installation: the reason is kept in roli_fast/_build.json.
    cpu, cuda       exactly these kernels, or a failed installation
    none            no kernels; an old `_C` is deleted
Also read: ROLI_FAST_BUILD_DIR (keep CMake's folder), ROLI_FAST_CUDA_ARCHS, TORCH_CUDA_ARCH_LIST,
ROLI_FAST_WERROR=1 or CI (warnings are errors), CXX, CUDACXX, CUDA_HOME.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from importlib import util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "none")
DEFAULT_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
PTX_ARCHITECTURE = "90"  # newer devices compile this one at load time


class BuildFailed(Exception):
    """A build that was started did not produce the module."""


def build_mode(environ: Mapping[str, str]) -> str:
    """The value of ROLI_FAST_BUILD, checked."""
    mode = environ.get("ROLI_FAST_BUILD", "").strip().lower() or "auto"
    if mode not in MODES:
        raise SystemExit(f"ROLI_FAST_BUILD: expected one of {', '.join(MODES)}, got {mode!r}.")
    return mode


def is_on(environ: Mapping[str, str], name: str) -> bool:
    """Whether a switch such as CI or ROLI_FAST_WERROR is set to something other than no."""
    return environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off")


def find_cmake(environ: Mapping[str, str]) -> str | None:
    """CMake's path: the one beside this interpreter (build isolation puts it there), or PATH's."""
    if util.find_spec("cmake"):
        import cmake

        found = shutil.which("cmake", path=cmake.CMAKE_BIN_DIR)
        if found:
            return found
    return shutil.which("cmake", path=environ.get("PATH"))


def find_compiler(environ: Mapping[str, str]) -> str | None:
    """The C++ compiler that CMake would take."""
    names = [environ["CXX"].split()[0]] if environ.get("CXX") else ["c++", "g++", "clang++"]
    found = (shutil.which(name, path=environ.get("PATH")) for name in names)
    return next(filter(None, found), None)


def find_nvcc(environ: Mapping[str, str]) -> str | None:
    """nvcc, from CUDACXX, CUDA_HOME, PATH or the toolkit's usual folder, in this order."""
    if environ.get("CUDACXX"):
        return shutil.which(environ["CUDACXX"], path=environ.get("PATH"))
    homes = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    places = [f"{home}/bin" for home in homes]
    places += [environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)


def missing_tools(environ: Mapping[str, str]) -> list[str]:
    """What a CPU build needs and this machine lacks; empty when it can start."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    generator = shutil.which("ninja", path=environ.get("PATH")) or util.find_spec("ninja")
    found = {
        "a C++ compiler (c++, g++ or clang++ on PATH, or CXX)": find_compiler(environ),
        "cmake": find_cmake(environ),
        "ninja or make": generator or shutil.which("make", path=environ.get("PATH")),
        "the Python package pybind11": util.find_spec("pybind11"),
        "Python's C headers (python3-dev)": header.exists(),
    }
    return [name for name, value in found.items() if not value]


def parse_architecture(text: str) -> str:
    """One entry in CMake's words: "9.0" and "90" are 90-real, "9.0+PTX" is 90 (code and PTX)."""
    match = re.fullmatch(r"(\d+)\.?(\d)([af]?)(\+PTX)?", text.strip(), re.IGNORECASE)
    if not match:
        raise BuildFailed(
            f"CUDA architecture: expected a form like 9.0, 90 or 9.0+PTX, got {text!r}"
        )
    number = match[1] + match[2] + match[3].lower()
    return number if match[4] else f"{number}-real"


def cuda_architectures(environ: Mapping[str, str], supported: set[str]) -> list[str]:
    """The list for CMAKE_CUDA_ARCHITECTURES.

    ROLI_FAST_CUDA_ARCHS is taken as it stands. TORCH_CUDA_ARCH_LIST and the default list are
    narrowed to `supported`, the numbers that this nvcc knows.
    """
    own = re.split(r"[;,\s]+", environ.get("ROLI_FAST_CUDA_ARCHS", "").strip())
    if own != [""]:
        return [parse_architecture(item) for item in own]
    torch_list = re.split(r"[;,\s]+", environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if torch_list != [""]:
        wanted = [parse_architecture(item) for item in torch_list]
    else:
        wanted = [f"{number}-real" for number in DEFAULT_ARCHITECTURES]
        wanted.append(f"{PTX_ARCHITECTURE}-virtual")
    known = [item for item in wanted if re.sub(r"[af]?(-.*)?$", "", item) in supported]
    if not known:
        raise BuildFailed(f"this nvcc knows none of the architectures {', '.join(wanted)}")
    return known


def nvcc_architectures(nvcc: str) -> set[str]:
    """The numbers that `nvcc --list-gpu-arch` prints."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    return set(re.findall(r"compute_(\d+)", listed.stdout))


def run(command: list[str], environ: Mapping[str, str]) -> None:
    """Run one CMake command, echo what it prints, and keep the end of it for a failure's reason."""
    print("+", " ".join(command), flush=True)
    done = subprocess.run(
        command, env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"\berror\b|not found", line, re.I)]
        raise BuildFailed(" | ".join(telling[:3] or lines[-3:])[:400])


def cmake_build(target: str, output: Path, environ: Mapping[str, str]) -> list[str]:
    """Configure and build `output`; return the CUDA architectures it holds."""
    import pybind11

    cmake, nvcc, environ = find_cmake(environ) or "cmake", find_nvcc(environ) or "", dict(environ)
    if util.find_spec("ninja"):
        import ninja as ninja_package

        environ["PATH"] = os.pathsep.join([ninja_package.BIN_DIR, environ.get("PATH", "")])
    werror = is_on(environ, "CI") or is_on(environ, "ROLI_FAST_WERROR")
    architectures = (
        cuda_architectures(environ, nvcc_architectures(nvcc)) if target == "cuda" else []
    )
    with tempfile.TemporaryDirectory(prefix="roli_fast-") as fresh:
        folder = environ.get("ROLI_FAST_BUILD_DIR") or fresh
        configure = [cmake, "-S", str(ROOT), "-B", folder, "-DCMAKE_BUILD_TYPE=Release"]
        configure += ["-G", "Ninja"] if shutil.which("ninja", path=environ["PATH"]) else []
        configure += [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DROLI_FAST_CUDA={'ON' if architectures else 'OFF'}",
            f"-DROLI_FAST_WERROR={'ON' if werror else 'OFF'}",
        ]
        if architectures:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}")
        run(configure, environ)
        run([cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1)], environ)
        built = list(Path(folder).glob("_C.*"))
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(next(p for p in built if p.suffix in (".so", ".pyd")), output)
    return architectures


def targets(mode: str, environ: Mapping[str, str], reasons: list[str]) -> list[str]:
    """What to try, best first. A missing tool leaves a reason, and stops the modes cpu and cuda."""
    if mode == "none":
        reasons.append("ROLI_FAST_BUILD=none")
        return []
    lacking = missing_tools(environ)
    nvcc = mode == "cpu" or find_nvcc(environ)
    if lacking:
        reasons.append(f"missing: {', '.join(lacking)}")
    elif not nvcc:
        reasons.append("no CUDA kernels: nvcc was not found")
    if mode != "auto":
        if reasons:
            raise SystemExit(f"ROLI_FAST_BUILD={mode}: {reasons[-1]}.")
        return [mode]
    if lacking:
        return []
    return ["cuda", "cpu"] if nvcc else ["cpu"]


def build_native(output: Path, environ: Mapping[str, str]) -> dict[str, object]:
    """Build the module at `output` as ROLI_FAST_BUILD asks; return what `_build.json` will say."""
    mode, started, reasons = build_mode(environ), time.time(), []
    record: dict[str, object] = {"requested": mode, "built": "none", "failed": False}
    for target in targets(mode, environ, reasons):
        try:
            record["architectures"] = cmake_build(target, output, environ)
            record["built"] = target
            break
        except BuildFailed as error:
            if mode != "auto":
                raise SystemExit(f"ROLI_FAST_BUILD={mode}: the build failed: {error}") from None
            record["failed"] = True
            reasons.append(f"the {target} build failed: {error}")
    record |= {"reasons": reasons, "seconds": round(time.time() - started, 1)}
    return record


class NativeBuild(build_ext):
    """`build_ext` that hands the one extension to CMake and records what came of it."""

    def run(self) -> None:
        """Build into build_lib; setuptools copies from there for an editable installation."""
        output = Path(self.build_lib) / self.get_ext_filename("roli_fast._C")
        folders = [output.parent, ROOT / "roli_fast"] if self.inplace else [output.parent]
        for old in (path for folder in folders for path in folder.glob("_C.*")):
            old.unlink()
        record = build_native(output, os.environ)
        if record["built"] == "none":
            self.extensions = []
        output.parent.mkdir(parents=True, exist_ok=True)
        self.record_file = output.parent / "_build.json"
        self.record_file.write_text(json.dumps(record, indent=1) + "\n")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Nothing left to do: `run` has put the module in its place."""

    def copy_extensions_to_source(self) -> None:
        """Editable installation: the module and its record go beside the Python files."""
        super().copy_extensions_to_source()
        shutil.copyfile(self.record_file, ROOT / "roli_fast" / "_build.json")


if __name__ == "__main__":
    setup(ext_modules=[Extension("roli_fast._C", [])], cmdclass={"build_ext": NativeBuild})
