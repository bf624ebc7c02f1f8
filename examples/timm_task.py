"""Adversarial training in timm's own loop, by the task that each of its updates goes through."""

from timm.task import ClassificationTask

import roli_fast


class RobustTask(ClassificationTask):
    """In timm's train.py the task of classification; with `--mean 0 0 0 --std 1 1 1` its images are
    in [0, 1]. Mixup has no place here: the attack takes a class an image."""

    attack = roli_fast.PGD(norm="linf", eps=4 / 255, steps=7)

    def forward(self, input, target):
        return super().forward(self.attack(self.trainable_module, input, target), target)
