"""The paper's grade classifier (section 3.3): a small CNN on the feature maps of a slice.

Two blocks of convolution, batch norm, ReLU and max-pool; two fully connected layers with dropout 0.5 before and
after the first; one logit. The sigmoid is left outside, so that the logits of a patient's slices can be averaged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from gliaflow_plugins.contracts import FeatureSource, Progress
from gliaflow_plugins.features import channel_scale

Indices = NDArray[np.int64]
History = list[dict[str, float]]


class Classifier(nn.Module):
    """features [n, C, H, W] → logit [n]; positive: the first class (HGG).

    Follows any tap: each block pools by more where the map is larger, so that about 4×4 is left for the fully
    connected layers. ``scale`` [C] is what features are divided by, kept with the network.
    """

    inverse: Tensor

    def __init__(self, shape: tuple[int, int, int], scale: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        channels, *sides = shape
        if scale is None:
            scale = np.ones(channels, dtype=np.float32)
        # A channel that was always 0 in training says nothing, whatever it holds later.
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        self.register_buffer("inverse", torch.from_numpy(inverse).view(1, -1, 1, 1))
        pool = [1 if side < 4 else max(2, round((side / 4) ** 0.5)) for side in sides]
        left = [side // factor // factor for side, factor in zip(sides, pool, strict=True)]
        kernel = (pool[0], pool[1])
        self.blocks = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(kernel),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(kernel),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(64 * left[0] * left[1], 64),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(64, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        logit: Tensor = self.head(self.blocks(features * self.inverse))
        return logit[:, 0]


@dataclass(frozen=True)
class PatientScores:
    """Each patient's mean logit [P] and whether the patient is of the first class [P], in the order of ``patients``."""

    patients: NDArray[np.str_]
    logits: NDArray[np.float64]
    positive: NDArray[np.bool_]

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that are there, at a logit of 0."""
        right = (self.logits > 0) == self.positive
        return float(np.mean([right[self.positive == kind].mean() for kind in np.unique(self.positive)]))

    @property
    def auc(self) -> float:
        """Area under the ROC curve; NaN where all patients are of one class."""
        if len(np.unique(self.positive)) < 2:
            return float("nan")
        return float(roc_auc_score(self.positive, self.logits))


def patient_scores(logits: NDArray[np.floating], labels: Indices, patients: Sequence[str]) -> PatientScores:
    """From slices (logit, label, patient: [n] each) to patients: the mean logit of a patient's slices."""
    names, index = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    slices = np.bincount(index)
    mean = np.bincount(index, weights=logits) / slices
    positive = np.bincount(index, weights=labels == 0) > slices / 2
    return PatientScores(names, mean, positive)


def slice_logits(
    module: nn.Module, features: FeatureSource, indices: Indices, device: str = "cpu"
) -> NDArray[np.float32]:
    """The logits [n] of the samples at ``indices``, in evaluation mode."""
    module.eval()
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(features.batch(indices[start : start + 32])).to(device)).cpu().numpy()
            for start in range(0, len(indices), 32)
        ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def fit_classifier(
    features: FeatureSource,
    train_idx: Indices,
    val_idx: Indices,
    patients: Sequence[str],
    *,
    seed: int,
    epochs: int = 30,
    weights: Sequence[float] | Literal["balanced"] | None = "balanced",
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    batch: int = 32,
    patience: int = 8,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[Classifier, History]:
    """Fit the classifier on ``train_idx`` and keep the epoch that grades the patients of ``val_idx`` best.

    Best is the mean of balanced accuracy and AUC by patient, and at equal ones the lower loss: with a dozen patients
    the first two are coarse. It stops after ``patience`` epochs without a better one. Without ``val_idx`` the last
    epoch is kept.

    Parameters
    ----------
    features: samples and labels; class 0 is the positive one (HGG).
    patients: the patient of each sample of ``features`` [N]. Synthetic samples may have any name: they are only
        ever in ``train_idx``.
    weights: the loss's weight of each class; "balanced" weighs a class by the inverse of its count; None is 1.

    Returns
    -------
    The network on the CPU in evaluation mode, and each epoch's ``loss``, ``val_loss``, ``val_balanced_accuracy`` and
    ``val_auc``.

    Raises
    ------
    ValueError: a patient is on both sides, or the training samples are all of one class.
    """
    both = {patients[i] for i in train_idx} & {patients[i] for i in val_idx}
    if both:
        raise ValueError(f"patients in training and in validation: {', '.join(sorted(both)[:5])}")
    labels = features.labels
    of_class = torch.from_numpy(_class_weights(labels[train_idx], weights)).to(device)
    history: History = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        module = Classifier(features.shape, channel_scale(features, train_idx)).to(device)
        optimiser = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
        best, best_state, best_epoch = (-np.inf, -np.inf), copy.deepcopy(module.state_dict()), 0
        for epoch in range(1, epochs + 1):
            module.train()
            losses = []
            for indices in np.array_split(rng.permutation(train_idx), max(1, len(train_idx) // batch)):
                label = torch.from_numpy(labels[indices]).to(device)
                loss = _loss(module(torch.from_numpy(features.batch(indices)).to(device)), label, of_class)
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimiser.step()
                losses.append(loss.item())
            figures = {
                "loss": float(np.mean(losses)),
                **_validate(module, features, val_idx, patients, of_class, device),
            }
            history.append(figures)
            if progress is not None:
                progress(epoch, epochs, figures)
            score = _score(figures)
            if score > best or not len(val_idx):
                best, best_state, best_epoch = score, copy.deepcopy(module.state_dict()), epoch
            elif epoch - best_epoch >= patience:
                break
        module.load_state_dict(best_state)
    return module.cpu().eval(), history


def _loss(logits: Tensor, labels: Tensor, of_class: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, (labels == 0).float(), weight=of_class[labels])


def _validate(
    module: nn.Module, features: FeatureSource, val_idx: Indices, patients: Sequence[str], of_class: Tensor, device: str
) -> dict[str, float]:
    if not len(val_idx):
        return {}
    logits, labels = slice_logits(module, features, val_idx, device), features.labels[val_idx]
    scores = patient_scores(logits, labels, [patients[i] for i in val_idx])
    return {
        "val_loss": _loss(torch.from_numpy(logits), torch.from_numpy(labels), of_class.cpu()).item(),
        "val_balanced_accuracy": scores.balanced_accuracy,
        "val_auc": scores.auc,
    }


def _score(figures: dict[str, float]) -> tuple[float, float]:
    # Patients of one class have no AUC: balanced accuracy is then all there is.
    found = (figures.get("val_balanced_accuracy", np.nan), figures.get("val_auc", np.nan))
    measures = [measure for measure in found if np.isfinite(measure)]
    return (float(np.mean(measures)) if measures else -np.inf, -figures.get("val_loss", 0.0))


def _class_weights(labels: Indices, weights: Sequence[float] | Literal["balanced"] | None) -> NDArray[np.float32]:
    counts = np.bincount(labels, minlength=2)
    if (counts > 0).sum() < 2:
        raise ValueError(f"the training samples are all of one class: {counts.tolist()}")
    if weights is None:
        return np.ones(len(counts), dtype=np.float32)
    if weights == "balanced":
        return np.asarray(counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), dtype=np.float32)
    return np.asarray(weights, dtype=np.float32)
