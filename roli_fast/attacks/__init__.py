"""Attacks, one a file: frozen dataclasses, attack(model, x, y, generator=None) -> x_adv."""

from roli_fast.attacks.apgd import APGD as APGD
from roli_fast.attacks.apgd import APGDT as APGDT
from roli_fast.attacks.auto_attack import AutoAttack as AutoAttack
from roli_fast.attacks.base import ATTACKS as ATTACKS
from roli_fast.attacks.base import Attack as Attack
from roli_fast.attacks.base import AttackResult as AttackResult
from roli_fast.attacks.closest import CW as CW
from roli_fast.attacks.closest import DeepFool as DeepFool
from roli_fast.attacks.fab import FAB as FAB
from roli_fast.attacks.fab import FABT as FABT
from roli_fast.attacks.pgd import PGD as PGD
from roli_fast.attacks.several_norms import MSD as MSD
from roli_fast.attacks.several_norms import MultiAPGD as MultiAPGD
from roli_fast.attacks.single_step import FGSM as FGSM
from roli_fast.attacks.single_step import NFGSM as NFGSM
from roli_fast.attacks.single_step import RSFGSM as RSFGSM
from roli_fast.attacks.single_step import SORA as SORA
from roli_fast.attacks.single_step import SingleStep as SingleStep
from roli_fast.attacks.square import Square as Square
from roli_fast.attacks.transfer import Transfer as Transfer
from roli_fast.attacks.union import Union as Union
from roli_fast.attacks.unseen import JPEG as JPEG
from roli_fast.attacks.unseen import UNSEEN as UNSEEN
from roli_fast.attacks.unseen import Elastic as Elastic
from roli_fast.attacks.unseen import Fog as Fog
from roli_fast.attacks.unseen import Gabor as Gabor
from roli_fast.attacks.unseen import Snow as Snow
from roli_fast.attacks.unseen import SparsePGD as SparsePGD
from roli_fast.registry import load_components

load_components(__name__, __path__)
