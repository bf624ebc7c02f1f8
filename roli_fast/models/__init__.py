"""Classifiers that take images in [0, 1] and normalise inside."""

from roli_fast.models.classifier import Classifier as Classifier
from roli_fast.models.classifier import Model as Model
from roli_fast.models.convstem import ConvStem as ConvStem
from roli_fast.models.factory import create as create
from roli_fast.models.factory import imagenet_names as imagenet_names
from roli_fast.models.factory import load as load
from roli_fast.models.factory import published_outputs as published_outputs
from roli_fast.models.factory import restore as restore
from roli_fast.models.factory import trained_classes as trained_classes
from roli_fast.models.head import HeadInit as HeadInit
from roli_fast.models.head import backbone_fingerprint as backbone_fingerprint
from roli_fast.models.head import init_head as init_head
from roli_fast.models.head import load_head as load_head
from roli_fast.models.head import save_head as save_head
from roli_fast.models.layers import Normalize as Normalize
from roli_fast.models.preact import PreActResNet as PreActResNet
from roli_fast.models.weights import load_backbone as load_backbone
from roli_fast.models.weights import read_state_dict as read_state_dict
from roli_fast.models.weights import save_model as save_model
from roli_fast.models.wrap import hand_in as hand_in
from roli_fast.models.wrap import wrap as wrap
