"""Small trainings of transformers' Trainer: real models from a config, and data made here."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

from prioritymonitor.integrations.transformers import GradientMonitorCallback
from tests.support.cases import INPUTS, mlp
from tests.support.separable import separable

SENTENCES = 48
WORDS = 40


class Table(Dataset[dict[str, Tensor]]):
    """Samples that a small network can tell apart, with 40 % wrong labels; 400 of them, or less."""

    def __init__(self, samples: int = 400) -> None:
        self.data = separable()
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.data.inputs[index], "labels": self.data.given[index]}


class WithLoss(nn.Module):
    """A network that computes its own loss, as the Trainer wants it."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = mlp()
        self.body[0] = nn.Linear(INPUTS, width)
        self.body[2] = nn.Linear(width, 5)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(self.drop(x))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def sentences() -> list[dict[str, Any]]:
    """Random words, 4 to 9 of them, with a label, and what a model does not take."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 10, (SENTENCES,), generator=generator).tolist()
    words = [torch.randint(1, WORDS, (n,), generator=generator).tolist() for n in lengths]
    return [
        {"input_ids": one, "label": number % 5, "text": f"sentence {number}"}
        for number, one in enumerate(words)
    ]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Of the words "0" to "39"; "0" pads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({str(number): number for number in range(WORDS)}, unk_token="0")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="0")


def bert() -> transformers.BertForSequenceClassification:
    """With its dropout, for five classes."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        num_labels=5,
    )
    return transformers.BertForSequenceClassification(config)


def trainer_of(
    model: nn.Module,
    folder: Any,
    callback: GradientMonitorCallback | None = None,
    *,
    kind: type[transformers.Trainer] = transformers.Trainer,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    data_collator: Any = None,
    processing_class: Any = None,
    compute_loss_func: Any = None,
    **options: Any,
) -> transformers.Trainer:
    """A Trainer on the CPU that says little; options are those of `TrainingArguments`."""
    usual = {
        "use_cpu": True,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 20,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return kind(
        model,
        transformers.TrainingArguments(str(folder), **usual | options),
        train_dataset=Table() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        data_collator=data_collator,
        processing_class=processing_class,
        compute_loss_func=compute_loss_func,
        callbacks=[] if callback is None else [callback],
    )


def assert_every_sample_was_told(callback: GradientMonitorCallback, given: Tensor, visits: int):
    """Each sample was seen under its own label, so many times."""
    table = callback.monitor.samples()
    assert table["given_label"].tolist() == given.tolist()
    assert set(table["visits"].tolist()) == {visits}
