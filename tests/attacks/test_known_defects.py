"""What was seen in other attack libraries, and the test that looks for it here.

Behaviours of torchattacks 3.5.1, foolbox 3.3.4, ART 1.20.1, AutoAttack (a392200) and Madry's
robustness (a954124), each seen when run.
"""

import ast
from pathlib import Path

import pytest

STATE, INPUTS = "test_known_defects_state.py", "test_known_defects_inputs.py"
TABLE = [  # library and what it does, file, test
    (
        "torchattacks: a BN layer in eval inside a train() model trains after the attack",
        STATE,
        "test_a_frozen_batch_norm_stays_in_eval_mode",
    ),
    (
        "torchattacks: the model stays in eval mode after an exception",
        STATE,
        "test_after_an_exception_the_model_is_as_before",
    ),
    (
        "foolbox, ART: gradients of the weights are filled",
        STATE,
        "test_no_gradient_of_a_weight_is_filled_or_changed",
    ),
    (
        "ART: the model is in eval mode afterwards; tensors are refused",
        STATE,
        "test_the_mode_comes_back_and_tensors_are_taken",
    ),
    (
        "AutoAttack: BN statistics of a model in train mode move",
        STATE,
        "test_statistics_of_a_training_model_do_not_move",
    ),
    (
        "AutoAttack, torchattacks: the global generator is reseeded",
        STATE,
        "test_the_global_generators_go_on_as_if_nothing_had_run",
    ),
    (
        "AutoAttack, torchattacks: every attack leaves the global generator at one number",
        STATE,
        "test_without_a_generator_the_global_one_is_drawn_from_and_not_reseeded",
    ),
    (
        "AutoAttack: another batch size gives other images",
        STATE,
        "test_results_do_not_depend_on_the_batch_size",
    ),
    (
        "AutoAttack on a compiled model: debuggers' tracers are removed",
        STATE,
        "test_a_compiled_model_is_attacked_and_the_tracer_stays",
    ),
    (
        "Madry's robustness: the last restart overwrites the others",
        STATE,
        "test_a_later_restart_takes_nothing_away",
    ),
    (
        "AutoAttack's Square, torchattacks' APGD: raise on a model under autocast",
        INPUTS,
        "test_a_model_under_autocast_with_fp32_images",
    ),
    (
        "AutoAttack, torchattacks' APGD: raise on bf16; torchattacks' PGD leaves the ball",
        INPUTS,
        "test_a_model_and_images_of_sixteen_bits",
    ),
    (
        "torchattacks' PGDL2, APGD, Square, AutoAttack's Square: raise on (N, 20); AutoAttack "
        "raises with 5 classes",
        INPUTS,
        "test_rows_of_twenty_numbers_and_few_classes",
    ),
    (
        "AutoAttack's and torchattacks' Square in l2 and l1: raise on images that are not square",
        INPUTS,
        "test_images_that_are_not_square",
    ),
    (
        "torchattacks' PGD: raises on one eps a sample; foolbox runs an attack for each",
        INPUTS,
        "test_a_radius_a_sample_equals_calls_with_one_radius",
    ),
    (
        "torchattacks, AutoAttack: images outside [0, 1] give changes of up to 4.02 at eps 0.03",
        INPUTS,
        "test_images_outside_the_box_are_refused",
    ),
    (
        "AutoAttack's DLR: crashes on gradients that are channels_last",
        INPUTS,
        "test_gradients_that_are_channels_last",
    ),
]


@pytest.mark.parametrize("file", [STATE, INPUTS])
def test_every_row_has_its_test_and_every_test_its_row(file: str) -> None:
    tree = ast.parse((Path(__file__).parent / file).read_text())
    tests = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and "test_" in n.name}
    assert tests == {test for _, where, test in TABLE if where == file}
