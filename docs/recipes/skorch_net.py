"""skorch. Run it again, and the pickled net goes on where it ended."""

import pickle
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn

from prioritymonitor import corrupt_labels
from prioritymonitor.integrations.skorch import GradientMonitorCallback

torch.manual_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
given = corrupt_labels(labels, 0.4)  # 40 % are wrong now

net = NeuralNetClassifier(
    nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=2e-3,
    batch_size=64,
    iterator_train__shuffle=True,
    callbacks=[("monitor", GradientMonitorCallback(log_dir="runs/skorch", restore_best=True))],
)
pickled = Path("net.pkl")
if pickled.exists():
    net = pickle.loads(pickled.read_bytes())
net.partial_fit((images.float() / 16).numpy(), given.numpy(), epochs=60)
pickled.write_bytes(pickle.dumps(net))

callback = dict(net.callbacks_)["monitor"]
print(callback.monitor.decision.message)
rows = [callback.rows_[suspect.index] for suspect in callback.monitor.suspects()]
wrong = sum(given[row] != labels[row] for row in rows)
print(f"{wrong} of {len(rows)} suspects have a wrong label")
