"""Normalization with learned gains: of a batch's features, of groups of an image's channels."""

import flax.linen as nn

GROUP = 8
"""Channels normalized together."""


def group_norm() -> nn.GroupNorm:
    """Group normalization (Wu and He 2018): by the mean and variance of 8 channels of one image."""
    return nn.GroupNorm(
        num_groups=None,
        group_size=GROUP,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("mlp",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",)),
    )


def batch_norm(train: bool, name: str | None = None) -> nn.BatchNorm:
    """gamma (x - mean) / sqrt(variance + 1e-5) + beta (Ioffe and Szegedy 2015, algorithm 1).

    Mean and variance are the batch's in training, and the collection `batch_stats`, their running
    averages with decay 0.9, otherwise.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("mlp",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",)),
        name=name,
    )
