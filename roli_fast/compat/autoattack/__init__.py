"""The package of github.com/fra31/auto-attack: change the import and nothing else.

    from roli_fast.compat.autoattack import AutoAttack

    adversary = AutoAttack(model, norm="Linf", eps=8/255, seed=0, device="cuda")
    x_adv = adversary.run_standard_evaluation(x, y, bs=250, state_path="state.json")

Its modules are there: `autopgd_base`, `square`, `fab_pt`, `state`, `other_utils`, `autoattack`. For
code that imports `autoattack` itself, RobustBench's `benchmark` say, one line goes before it:

    sys.modules["autoattack"] = roli_fast.compat.autoattack

The draws are the original's too, batch by batch, unless rng="native". What differs: the model is
attacked in eval mode whatever mode it is in, images outside the bounds are refused, torch's global
generator is left alone, an image that fools is the first found, a resumed evaluation returns the
images of the runs before it as well, and TensorFlow's models are refused.
"""

from roli_fast.compat.autoattack import other_utils
from roli_fast.compat.autoattack.components import APGDAttack as APGDAttack
from roli_fast.compat.autoattack.components import APGDAttack_targeted as APGDAttack_targeted
from roli_fast.compat.autoattack.components import FABAttack_PT as FABAttack_PT
from roli_fast.compat.autoattack.components import SquareAttack as SquareAttack
from roli_fast.compat.autoattack.evaluation import AutoAttack as AutoAttack
from roli_fast.compat.autoattack.state import EvaluationState as EvaluationState
from roli_fast.compat.peers import add_modules

_NORMS = {name: getattr(other_utils, name) for name in ("L0_norm", "L1_norm", "L2_norm")}

add_modules(
    __name__,
    {
        "autoattack": dict(AutoAttack=AutoAttack, EvaluationState=EvaluationState),
        "autopgd_base": dict(
            APGDAttack=APGDAttack,
            APGDAttack_targeted=APGDAttack_targeted,
            L1_projection=other_utils.L1_projection,
            **_NORMS,
        ),
        "square": dict(SquareAttack=SquareAttack),
        "fab_pt": dict(FABAttack_PT=FABAttack_PT, FABAttack=FABAttack_PT),
    },
)
