"""The programs of examples/, each with the library that it is for."""

import importlib.util
from types import ModuleType

import pytest
import timm.data.loader
import timm.optim
import timm.utils
import torch
from shared_data import REPOSITORY
from tiny_data import write_folder
from tiny_models import images
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import roli_fast
from roli_fast.engine.engine import logits_in

EXAMPLES = REPOSITORY / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))


@pytest.fixture
def samples() -> TensorDataset:
    """Two classes that differ in brightness by more than the attack may change."""
    y = torch.arange(32) % 2
    return TensorDataset(images(32, 3, 8, 8) * 0.3 + 0.7 * y.view(-1, 1, 1, 1), y)


def robust_accuracy(model: nn.Module, samples: TensorDataset) -> float:
    x, y = samples.tensors
    x_adv = roli_fast.PGD(eps=4 / 255, steps=7)(model, x, y)
    return float((logits_in(model(x_adv)).argmax(1) == y).double().mean())


def test_plain_pytorch(samples) -> None:
    model = network()
    before = robust_accuracy(model, samples)
    example("plain_pytorch").train(model, DataLoader(samples, 8), epochs=15, lr=0.02)
    assert robust_accuracy(model, samples) >= max(0.9, before)


def test_a_loader_whose_images_are_attacked(samples) -> None:
    model = network()
    loader = example("attacked_loader").AttackedLoader(
        DataLoader(samples, 8), model, roli_fast.PGD(eps=4 / 255, steps=2)
    )
    assert len(loader) == len(list(loader)) == 4
    with torch.no_grad():
        for (x_adv, y), (x, _) in zip(loader, DataLoader(samples, 8), strict=True):
            assert 0 < (x_adv - x).abs().max() <= 4 / 255 + 1e-7
            losses = [functional.cross_entropy(model(image), y) for image in (x, x_adv)]
            assert losses[1] > losses[0]


def test_lightning_and_torchmetrics(samples, tmp_path) -> None:
    lightning = pytest.importorskip("lightning")
    module = example("lightning_module").Robust(network(), classes=2, lr=0.02)
    trainer = lightning.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = DataLoader(samples, 8)
    with pytest.warns():  # of few workers, and of few batches
        trainer.fit(module, loader, loader)
    assert trainer.callback_metrics["robust_accuracy"] >= 0.9


def test_the_trainer_of_transformers(samples, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=2,
    )  # fmt: skip
    model, module = transformers.ViTForImageClassification(config), example("hugging_face_trainer")
    arguments = transformers.TrainingArguments(
        tmp_path, num_train_epochs=30, per_device_train_batch_size=8, learning_rate=0.01,
        lr_scheduler_type="constant", report_to="none", save_strategy="no", use_cpu=True,
        disable_tqdm=True, max_grad_norm=0.0,
    )  # fmt: skip
    trainer = module.RobustTrainer(
        model, arguments, train_dataset=samples, data_collator=module.collate
    )
    trainer.train()
    assert robust_accuracy(model, samples) >= 0.9


def test_the_task_of_timm(samples) -> None:
    """The lines of timm's train.py that concern an update, its loader's normalisation, its EMA."""
    pytest.importorskip("timm.task")  # older ones have none
    task = example("timm_task").RobustTask(network(), criterion_kwargs={"smoothing": 0.0})
    ema = task.setup_ema(decay=0.8)
    optimizer = timm.optim.create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.02)
    normalised = timm.data.loader.PrefetchLoader(
        DataLoader([((255 * x).byte(), y) for x, y in samples], 8), (0.0,) * 3, (1.0,) * 3,
        device=torch.device("cpu"),
    )  # fmt: skip
    for _ in range(15):
        for x, y in normalised:
            clean = functional.cross_entropy(task.get_eval_model()(x), y)
            result = task(x, y)
            assert result["loss"] > clean and result["output"].shape == (8, 2)
            optimizer.zero_grad()
            result["loss"].backward()
            timm.utils.dispatch_clip_grad(task.get_clip_parameters(), value=10.0)
            optimizer.step()
            task.update_ema()
    assert robust_accuracy(task.get_eval_model(), samples) >= 0.9
    assert robust_accuracy(ema, samples) >= 0.9


def test_photos_in_five_lines(tmp_path) -> None:
    write_folder(tmp_path / "photos", {"cat": 9, "dog": 9})
    options = {f"{stage}.attack.steps": 1 for stage in ("probe", "finetune")}
    options |= {"validation.steps": 1, "test.steps": 1, "analysis_images": 0, "report": False}
    options |= {"data.image_size": 32, "probe.epochs": 1, "finetune.epochs": 1}
    fitted = example("photos_in_five_lines").robust(
        str(tmp_path / "photos"), None, run_dir=tmp_path / "run", quiet=True, options=options
    )
    assert fitted.classes == ("cat", "dog")
