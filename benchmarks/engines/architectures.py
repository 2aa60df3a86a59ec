"""Real architectures, small, with random weights, and random batches that fit them.

`ARCHITECTURES` names them all. The tests use them too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.engines.attention import (
    HandWrittenTextTransformer,
    TextTransformer,
    VisionTransformer,
)
from benchmarks.engines.residual import ResNet18, group_norm
from benchmarks.models import mlp, small_cnn

VOCABULARY = 1000
LENGTH = 16
"""Tokens of a text."""

MakeBatch = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Architecture:
    """A network and its data; the model is called as `model(inputs)`."""

    make_model: Callable[[], nn.Module]
    make_batch: MakeBatch
    """Batch size -> inputs and labels, `[B]` or, for a language model, `[B, T]`."""


# Data


def images(size: int, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Any:
    return torch.randn(size, *shape), torch.randint(classes, (size,))


def texts(size: int, length: int = LENGTH, classes: int = 4) -> Any:
    """Tokens from 1 on, as HF models take 0 for padding here."""
    return torch.randint(1, VOCABULARY, (size, length)), torch.randint(classes, (size,))


def texts_to_continue(size: int) -> Any:
    """Tokens, and at each position the next one as its label."""
    tokens = torch.randint(1, VOCABULARY, (size, LENGTH + 1))
    return tokens[:, :-1], tokens[:, 1:]


# Models


class LSTMClassifier(nn.Module):
    """The last hidden state of a two-layer LSTM over word embeddings classifies a text."""

    def __init__(self, width: int = 64, classes: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.tokens(tokens))
        return self.head(states[:, -1])


_TWO_LAYERS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=32, patch_size=8, num_labels=10, **_TWO_LAYERS)
    return ViTForImageClassification(config)


def hf_bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_labels": 4}
    return BertForSequenceClassification(BertConfig(**sizes, **_TWO_LAYERS))


def hf_gpt2_classifier() -> nn.Module:
    """Its head sees every token; the logits are those at the last one."""
    from transformers import GPT2ForSequenceClassification

    return GPT2ForSequenceClassification(_gpt2_config(num_labels=4))


def hf_gpt2() -> nn.Module:
    """A language model; its head and its word embedding share their weight."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel(_gpt2_config())


def _gpt2_config(**options: Any) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        use_cache=False,
        **options,
    )


# Training


def logits_of(output: Any) -> Tensor:
    """HF models return an object that holds the logits."""
    return output if isinstance(output, Tensor) else output.logits


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, over the tokens for a language model."""
    return cross_entropy(logits_of(model(inputs)).flatten(0, -2), labels.flatten())


vectors = partial(images, shape=(784,))
ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture(partial(mlp, 784, 512, 256, 10), vectors),
    "cnn": Architecture(partial(small_cnn, batch_norm=False), images),
    "cnn_batch_norm": Architecture(small_cnn, images),
    "resnet18": Architecture(ResNet18, images),
    "resnet18_no_inplace": Architecture(partial(ResNet18, inplace=False), images),
    "resnet18_group_norm": Architecture(partial(ResNet18, norm=group_norm), images),
    "resnet18_group_norm_no_inplace": Architecture(
        partial(ResNet18, norm=group_norm, inplace=False), images
    ),
    "vit": Architecture(VisionTransformer, images),
    "lstm": Architecture(LSTMClassifier, texts),
    "text_transformer": Architecture(TextTransformer, texts),
    "hand_written_text_transformer": Architecture(
        HandWrittenTextTransformer, partial(texts, length=64)
    ),
    "hf_vit": Architecture(hf_vit, images),
    "hf_bert": Architecture(hf_bert, texts),
    "hf_gpt2_classifier": Architecture(hf_gpt2_classifier, texts),
    "hf_gpt2": Architecture(hf_gpt2, texts_to_continue),
}
