"""The networks, which are exported to ONNX. Serving does not need this package."""

import torch
from torch import nn


class Generator(nn.Module):
    """z [n, C], label [n] → features [n, C, H, W], each channel at one level."""

    def __init__(self, mean, std, shape):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))
        self.register_buffer("flat", torch.ones(1, *shape))

    def forward(self, z, label):
        return torch.relu(self.mean[label] + self.std[label] * z)[:, :, None, None] * self.flat


class Critic(nn.Module):
    """features → the highest log-likelihood of a class [n] as source logit, and that of each class [n, K]."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))

    def forward(self, features):
        distance = (features.mean(dim=(2, 3))[:, None] - self.mean) / self.std
        likelihood = -(distance.square() / 2 + self.std.log()).mean(dim=2)
        return likelihood.amax(dim=1), likelihood
