"""torchattacks' interface (3.5.1) on this package's attacks. To switch, change one line:

    import roli_fast.compat.torchattacks as torchattacks

    attack = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True)
    images = attack(images, labels)

Constructors, defaults, attributes, modes, `set_normalization_used`, `save`, `load` and the modules
`attacks.*` and `wrappers.*` are theirs. Code that imports `torchattacks` itself finds it after
`sys.modules["torchattacks"] = roli_fast.compat.torchattacks`. Nothing of torchattacks is used. What
differs, on purpose:

- Model: train flags, gradients, statistics and torch's random state (but for a number a search,
  taken by random starts) are as before, after an exception too; `attack.generator =
  torch.Generator(...)` leaves the global one alone entirely. Theirs un-freezes BN layers in eval
  mode, stays in eval mode after an exception, and reseeds the global generator.
- Images outside [0, 1] are refused (theirs returns some far outside the ball), and found ones are
  inside ball and box exactly, in bf16 too. eps=0 and radii one a sample, eps=(B,), are allowed,
  images of any shape, (B, D) too, and norm "L1" where there is a norm.
- A zero gradient leaves the momentum as it is (in theirs MIFGSM and UPGD never move that image
  again); UPGD's "margin" goes on beyond the boundary; `eps_for_division` has no effect.
- Random starts are other draws: uniform in the ball in PGDL2, where theirs crowd at its centre.
- APGD, APGDT, FAB and Square: a `seed` draws by an image's place in the batch; None draws from
  `generator`. `attack.rng = "official"` repeats the draws of the original code. An image that fools
  is the first found (theirs: the last), FAB looks closer at it. APGDT gives each image its own step
  size in L2 (theirs: the first one's to all).
- AutoAttack makes the authors' 100 steps and 9 targets (theirs: 10 steps, n_classes - 1).
- A target may be the label: then the attack strengthens the class, as theirs does. FAB's targets
  belong to their images (theirs shift them once an image is wrong).
- Messages go to the logger "roli_fast.compat", nothing prints; `verbose` and `quiet` are its level.
- save writes once, with distances in [0, 1] units. "int" rounds towards the inputs, so that images
  stay in the ball, and its numbers are of the file's images; theirs rounds down after measuring.
- Overridden or assigned `forward` and `get_logits` work, in subclasses of `Attack` itself too;
  other methods of theirs that are not here are not called.
"""

from typing import Any

from roli_fast.compat.peers import add_modules
from roli_fast.compat.torchattacks import table
from roli_fast.compat.torchattacks.attack import Attack as Attack
from roli_fast.compat.torchattacks.table import MultiAttack as MultiAttack

__version__ = "3.5.1"
__wrapper__ = ["MultiAttack"]
__all__ = [*table.TABLE, *__wrapper__]  # noqa: PLE0604 - names

_CLASSES: dict[str, Any] = {name: table.made(name) for name in table.TABLE}
_MODULES = {f"attacks.{name.lower()}": {name: kind} for name, kind in _CLASSES.items()}
_MODULES |= {"attacks": {}, "wrappers": {}, "wrappers.multiattack": {"MultiAttack": MultiAttack}}
globals().update(_CLASSES)
add_modules(__name__, {name: members | {"Attack": Attack} for name, members in _MODULES.items()})


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module '{__name__}' has no '{name}'. There are: {', '.join(__all__)}.")
