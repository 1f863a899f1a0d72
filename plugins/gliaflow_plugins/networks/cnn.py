"""The paper's grade classifier (section 3.3): a small CNN on the feature maps of a slice.

Two blocks of convolution, batch norm, ReLU and max-pool; two fully connected layers with dropout 0.5 before and
after the first; one logit. The network has no sigmoid, so that the logits of a patient's slices can be averaged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from gliaflow_plugins.contracts import FeatureSource, FitContext, FitSamples, Indices
from gliaflow_plugins.features import channel_scale, parts
from gliaflow_plugins.networks.tumour_statistics import inverse_scale

History = list[dict[str, float]]


class CNNClassifier(nn.Module):
    """features [n, C, H, W] → logit [n]; positive: the first class (HGG).

    It fits any tap: each block pools by more where the map is larger, so that about 4×4 positions remain for the fully
    connected layers. Features are divided by ``scale`` [C], which is part of the network.
    """

    inverse: Tensor

    def __init__(self, shape: tuple[int, int, int], scale: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        channels, *sides = shape
        self.register_buffer("inverse", inverse_scale(torch.ones(channels) if scale is None else torch.tensor(scale)))
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
        """The mean recall of the classes that occur, at a threshold of 0."""
        right = (self.logits > 0) == self.positive
        return float(np.mean([right[self.positive == kind].mean() for kind in np.unique(self.positive)]))

    @property
    def auc(self) -> float:
        """Area under the ROC curve; NaN if all patients are of one class."""
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
        logits = [
            module(torch.from_numpy(features.batch(part)).to(device)).cpu().numpy() for part in parts(indices, 32)
        ]
    return np.concatenate(logits) if logits else np.zeros(0, dtype=np.float32)


def fit_cnn(
    features: FeatureSource, options: Any, samples: FitSamples, context: FitContext
) -> tuple[CNNClassifier, History]:
    """Fit the network on ``samples.learn`` and keep the epoch that grades the patients of ``samples.choose`` best.

    Best is the highest mean of balanced accuracy and AUC by patient, and among equals the lowest loss: with a dozen
    patients the first two are coarse. The fit stops after ``options.patience`` epochs without a better one. Without
    samples to choose by, the last epoch is kept.

    Parameters
    ----------
    features: samples and labels; class 0 is the positive one (HGG).
    options: a ``CNNOptions``.
    samples: "balanced" weights a class by the inverse of its count.

    Returns
    -------
    The network on the CPU in evaluation mode, and each epoch's ``loss``, ``val_loss``, ``val_balanced_accuracy`` and
    ``val_auc``.

    Raises
    ------
    ValueError: a patient has samples to learn from and to choose by, or the former are all of one class.
    """
    learn, choose, patients, device = samples.learn, samples.choose, samples.patients, context.device
    both = {patients[i] for i in learn} & {patients[i] for i in choose}
    if both:
        raise ValueError(f"patients in training and in validation: {', '.join(sorted(both)[:5])}")
    labels = features.labels
    class_weights = torch.from_numpy(_class_weights(labels[learn], samples.weights)).to(device)
    history: History = []
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        rng = np.random.default_rng(context.seed)
        module = CNNClassifier(features.shape, channel_scale(features, learn)).to(device)
        optimiser = torch.optim.AdamW(module.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        best, best_state, best_epoch = (-np.inf, -np.inf), copy.deepcopy(module.state_dict()), 0
        for epoch in range(1, options.epochs + 1):
            module.train()
            losses = []
            for indices in np.array_split(rng.permutation(learn), max(1, len(learn) // options.batch)):
                label = torch.from_numpy(labels[indices]).to(device)
                loss = _loss(module(torch.from_numpy(features.batch(indices)).to(device)), label, class_weights)
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimiser.step()
                losses.append(loss.item())
            figures = {"loss": float(np.mean(losses))}
            if len(choose):
                figures |= _validated(slice_logits(module, features, choose, device), features, samples, class_weights)
            history.append(figures)
            if context.progress is not None:
                context.progress(epoch, options.epochs, figures)
            score = _score(figures)
            if score > best or not len(choose):
                best, best_state, best_epoch = score, copy.deepcopy(module.state_dict()), epoch
            elif epoch - best_epoch >= options.patience:
                break
        module.load_state_dict(best_state)
    return module.cpu().eval(), history


def _loss(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, (labels == 0).float(), weight=class_weights[labels])


def _validated(
    logits: NDArray[np.float32], features: FeatureSource, samples: FitSamples, class_weights: Tensor
) -> dict[str, float]:
    labels = features.labels[samples.choose]
    scores = patient_scores(logits, labels, [samples.patients[i] for i in samples.choose])
    return {
        "val_loss": _loss(torch.from_numpy(logits), torch.from_numpy(labels), class_weights.cpu()).item(),
        "val_balanced_accuracy": scores.balanced_accuracy,
        "val_auc": scores.auc,
    }


def _score(figures: dict[str, float]) -> tuple[float, float]:
    # Patients of one class have no AUC: the score is then the balanced accuracy alone.
    both = (figures.get("val_balanced_accuracy", np.nan), figures.get("val_auc", np.nan))
    finite = [measure for measure in both if np.isfinite(measure)]
    return (float(np.mean(finite)) if finite else -np.inf, -figures.get("val_loss", 0.0))


def _class_weights(labels: Indices, weights: Literal["balanced"] | None) -> NDArray[np.float32]:
    counts = np.bincount(labels, minlength=2)
    if (counts > 0).sum() < 2:
        raise ValueError(f"the training samples are all of one class: {counts.tolist()}")
    if weights is None:
        return np.ones(len(counts), dtype=np.float32)
    return np.asarray(counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), dtype=np.float32)
