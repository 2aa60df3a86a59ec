"""What the monitor knows as a table of pandas, and its suspects as label issues of cleanlab."""

import pandas as pd
import torch
import torch.nn.functional as F
from cleanlab.classification import CleanLearning
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor, corrupt_labels

torch.manual_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
images = images.float() / 16
given = corrupt_labels(labels[:1300], 0.4)  # 40 % are wrong now
loader = DataLoader(TensorDataset(images[:1300], given), batch_size=64, shuffle=True)
model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
monitor = GradientMonitor(model, optimizer, loader)
for _ in range(60):
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    if monitor.should_stop:
        break

table = pd.DataFrame(monitor.samples()).set_index("index")
issues = table[["given_label", "predicted_label"]].assign(
    is_label_issue=table["score"] > 0.5,
    label_quality=1 - table["score"],  # as of cleanlab: near 0 a label is likely wrong
)
print(table.sort_values("score", ascending=False).head(3)[["score", "given_label", "loss"]])

X, y, test = images[:1300].numpy(), given.numpy(), images[1300:].numpy()
plain = LogisticRegression(max_iter=1000).fit(X, y)
clean = CleanLearning(LogisticRegression(max_iter=1000)).fit(X, y, label_issues=issues)
for trained_on, classifier in {"all labels": plain, "the others": clean}.items():
    right = (classifier.predict(test) == labels[1300:].numpy()).mean()
    print(f"accuracy after {trained_on}: {right:.2f}")
