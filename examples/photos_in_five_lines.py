"""A standard torchvision network made robust on a folder of photos."""

import torchvision

import roli_fast

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def robust(folder: str, weights: str | None = "DEFAULT", **options) -> roli_fast.Fitted:
    """`folder` has a folder of images for each class."""
    photos = torchvision.datasets.ImageFolder(folder)
    network = torchvision.models.resnet18(weights=weights)
    network = roli_fast.models.wrap(network, mean=MEAN, std=STD)
    data = roli_fast.data.from_datasets(photos, image_size=128)
    return roli_fast.fit(network, data, eps=4 / 255, epochs=10, **options)
