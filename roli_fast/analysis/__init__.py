"""Why a fine-tuning works: pure functions of (features, logits, y), and of (model, images, attack).

>>> from roli_fast import analysis
>>> clean = analysis.gather(model, batches)
>>> attacked = analysis.gather(model, batches, PGD(eps=8 / 255, steps=10))
>>> analysis.robust_drift(clean.features, attacked.features)
"""

from roli_fast.analysis import calibration as calibration
from roli_fast.analysis.features import Drift as Drift
from roli_fast.analysis.features import HeadNorms as HeadNorms
from roli_fast.analysis.features import RobustDrift as RobustDrift
from roli_fast.analysis.features import Sensitivity as Sensitivity
from roli_fast.analysis.features import class_separation as class_separation
from roli_fast.analysis.features import feature_drift as feature_drift
from roli_fast.analysis.features import head_norms as head_norms
from roli_fast.analysis.features import linear_cka as linear_cka
from roli_fast.analysis.features import margin_sensitivity as margin_sensitivity
from roli_fast.analysis.features import pairwise_cosine as pairwise_cosine
from roli_fast.analysis.features import residual_size as residual_size
from roli_fast.analysis.features import robust_drift as robust_drift
from roli_fast.analysis.kernel_regression import Regression as Regression
from roli_fast.analysis.kernel_regression import kernel_regression as kernel_regression
from roli_fast.analysis.lora_kernel import LoraKernel as LoraKernel
from roli_fast.analysis.lora_kernel import lora_kernel as lora_kernel
from roli_fast.analysis.ntk import Kernel as Kernel
from roli_fast.analysis.ntk import empirical_ntk as empirical_ntk
from roli_fast.analysis.ntk import top_eigenvalues as top_eigenvalues
from roli_fast.analysis.one_step import Change as Change
from roli_fast.analysis.one_step import OneStep as OneStep
from roli_fast.analysis.one_step import ScaleRow as ScaleRow
from roli_fast.analysis.one_step import actual_change as actual_change
from roli_fast.analysis.one_step import first_update as first_update
from roli_fast.analysis.one_step import head_scale as head_scale
from roli_fast.analysis.one_step import one_step as one_step
from roli_fast.analysis.view import Gathered as Gathered
from roli_fast.analysis.view import LinearHead as LinearHead
from roli_fast.analysis.view import gather as gather
