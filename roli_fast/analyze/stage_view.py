"""A stage of a run as the deep analysis sees it."""

from functools import partial

from roli_fast.analysis.deep import Start
from roli_fast.analysis.view import LinearHead
from roli_fast.train.method_analysis import MethodAnalysis


def start_of(
    analysis: MethodAnalysis,
    number: int,
    images: int | None = None,
) -> Start | None:
    """A stage at its start, or None where it trains the head alone: then no feature moves.

    Args:
        analysis: of the method.
        number: which stage, counted from 1.
        images: of each split; None is what the light analysis looks at.
    """
    _, stage = analysis.experiment.stages(analysis.method)[number - 1]
    model = analysis.first_model(number)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not set(names) & set(LinearHead.of(model).backbone()):
        return None
    count, splits = images or analysis.plan.points, analysis.splits
    return Start(
        model=model,
        names=names,
        train=partial(analysis.images_of, splits.train, count),
        validation=partial(analysis.images_of, splits.val, count),
        attack=analysis.plan.attack,
        lr=stage.optimizer.lr,
        optimizer=stage.optimizer.name,
        optimize=stage.optimizer.build,
        counts=(min(count, len(splits.train)), min(count, len(splits.val))),
        attacks=stage.attack is not None,
        seed=analysis.draws,
    )
