"""Fresh processes: switches in the environment, forks, a missing or unfit module, the doctor."""

import re

import pytest

RUN = """
import torch
from roli_fast import ops
x = torch.rand(2, 3, 64, 64)
ops.linf_step_(x.clone(), torch.randn_like(x), x, eps=0.1, step_size=0.1)
chosen = ops.backend("linf_step_", "cpu", torch.float32)
print("took", chosen.name, "because", chosen.reason)
"""
HIDE = """
import sys
sys.modules["roli_fast._C"] = None  # as if it had not been built
"""


def test_the_reference_can_be_asked_for(python):
    out = python(RUN, ROLI_FAST_BACKEND="reference", ROLI_FAST_REQUIRE_EXT="1")
    assert "took reference because the reference was asked for" in out


def test_a_wrong_switch_is_an_error(python):
    out = python(RUN, code=1, ROLI_FAST_BACKEND="fast")
    assert "`ROLI_FAST_BACKEND`: expected native or reference, got 'fast'" in out


def test_without_the_module_everything_works_and_the_reason_is_logged_once(python):
    out = python(HIDE + RUN, ROLI_FAST_REQUIRE_EXT="")
    assert "took reference" in out
    assert out.count("no compiled kernels") <= 1  # silent where none were asked for


def test_a_required_kernel_that_is_missing_is_an_error(python):
    out = python(HIDE + RUN, code=1, ROLI_FAST_REQUIRE_EXT="1")
    assert "MissingKernelError: linf_step_: ROLI_FAST_REQUIRE_EXT is set and" in out


def test_an_unfit_module_is_not_used(python):
    program = """
import sys, types
module = types.ModuleType("roli_fast._C")
module.build_info = lambda: {"interface": -1}
sys.modules["roli_fast._C"] = module
"""
    out = python(program + RUN, ROLI_FAST_REQUIRE_EXT="")
    assert "took reference because _C is of another version" in out
    assert out.count("no compiled kernels") == 1


def test_a_forked_child_does_not_wait_for_the_thread_pool(kernels, python):
    out = python("""
import os, signal, torch
from roli_fast import ops
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
""")
    assert "child: 0" in out


@pytest.mark.parametrize("hidden", [False, True], ids=["as built", "without _C"])
def test_doctor(python, hidden):
    program = (
        HIDE if hidden else ""
    ) + "from roli_fast import doctor; raise SystemExit(doctor.main())"
    out = python(program, ROLI_FAST_REQUIRE_EXT="", ROLI_FAST_BACKEND="")
    for word in ("python ", "torch ", "torchvision ", "timm ", "numpy ", "cuda ", "threads "):
        assert re.search(rf"^  {word}", out, re.M), out
    assert len(re.findall(r"^  linf_step_ +(cpu|cuda) +\w+ +(native|reference)", out, re.M)) == 8
    if hidden:
        assert "no _C: " in out and not re.search(r"cpu +\w+ +native", out)
        assert python(program, code=1, ROLI_FAST_REQUIRE_EXT="1", ROLI_FAST_BACKEND="")
