"""Trainer. Run it again after an interruption, and it goes on from its last checkpoint."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.utils.data import StackDataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.trainer_utils import get_last_checkpoint

from prioritymonitor import corrupt_labels
from prioritymonitor.integrations.transformers import GradientMonitorCallback

torch.manual_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
given = corrupt_labels(labels, 0.4)  # 40 % are wrong now
pixels = images.float().reshape(-1, 1, 8, 8) / 16
dataset = StackDataset(pixel_values=pixels, labels=given)

size = dict(image_size=8, patch_size=4, num_channels=1, num_labels=10)
layers = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256)
model = ViTForImageClassification(ViTConfig(**size, **layers))
arguments = TrainingArguments(
    "checkpoints",
    num_train_epochs=60,
    per_device_train_batch_size=64,
    learning_rate=2e-3,
    lr_scheduler_type="constant",
    save_strategy="epoch",
    save_total_limit=1,
    use_cpu=True,
)
callback = GradientMonitorCallback(log_dir="runs/transformers", restore_best=True)
trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=[callback])
last = get_last_checkpoint("checkpoints") if Path("checkpoints").exists() else None
trainer.train(resume_from_checkpoint=last)

print(callback.monitor.decision.message)
suspects = callback.monitor.suspects()
wrong = sum(given[suspect.index] != labels[suspect.index] for suspect in suspects)
print(f"{wrong} of {len(suspects)} suspects have a wrong label")
