"""How many samples a classifier takes for digits: `python benchmarking/sample_quality.py CKPT...`.

A small convolutional classifier learns the labels of the whole training split at the models' image size. A sample
counts as a digit when the classifier gives one class at least 0.9; the share of real test images that do is
printed beside it. The classifier is the only judge: this says nothing about diversity within a class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lvkam.build import load_checkpoint
from lvkam.data import load_dataset, load_labels
from lvkam.errors import InputError
from lvkam.experiment import draw_samples

SURE = 0.9
EPOCHS, BATCH = 4, 128


class Classifier(nn.Module):
    """Two convolutions and two dense layers."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.shape = (1, height, width)
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.dense = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * (height // 2) * (width // 2), 128), nn.ReLU(),
            nn.Dropout(0.25), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, H W) -> (N, 10), before the softmax."""
        return self.dense(self.convolutions(x.view(-1, *self.shape)))


def fit(classifier: Classifier, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    steps = [batch for _ in range(EPOCHS) for batch in torch.randperm(len(images)).split(BATCH)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=len(steps))
    for batch in tqdm(steps, desc="classifier"):
        loss = F.cross_entropy(classifier(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    classifier.eval()


@torch.no_grad()
def confidences(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and index of each image's likeliest class, (N,) each."""
    best = torch.cat([classifier(chunk) for chunk in images.split(1000)]).softmax(1).max(1)
    return best.values, best.indices


def report(name: str, classifier: Classifier, images: Tensor) -> None:
    sure, kind = confidences(classifier, images)
    shares = kind.bincount(minlength=10) / len(kind)
    classes = " ".join(f"{digit}:{100 * share:.1f}" for digit, share in enumerate(shares.tolist()))
    print(f"{name}: {100 * (sure >= SURE).float().mean():.1f} % at least {SURE} sure; classes (%) {classes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="of models of MNIST, one image size")
    parser.add_argument("--num-samples", type=int, default=1000)
    arguments = parser.parse_args()

    try:
        models = [load_checkpoint(path) for path in arguments.checkpoints]
    except InputError as error:
        parser.error(str(error))
    shapes = {model.checkpoint.image_shape for model in models}
    if len(shapes) > 1 or any(model.checkpoint.dataset != "MNIST" for model in models):
        parser.error("the checkpoints must be of models of MNIST with one image size")
    height, width = shapes.pop()
    data = load_dataset("MNIST", 60000, 10000, (height, width))
    torch.manual_seed(0)
    classifier = Classifier(height, width)
    fit(classifier, data.train, load_labels("MNIST", "train", 60000))
    kind = confidences(classifier, data.test)[1]
    accuracy = (kind == load_labels("MNIST", "test", 10000)).float().mean()
    print(f"classifier: {100 * accuracy:.2f} % test accuracy at {height}x{width}")
    report("real test images", classifier, data.test[: arguments.num_samples])
    for path, (checkpoint, config, model) in zip(arguments.checkpoints, models, strict=True):
        images, _ = draw_samples(model, config, arguments.num_samples, checkpoint.seed)
        report(str(path), classifier, images)


if __name__ == "__main__":
    main()
