"""The oracle: plain autograd, one sample at a time, and the definitions written out naively."""

import copy

import torch


def sample_gradients(model, head, per_sample_loss, inputs, targets):
    """Gradient of each sample's own loss with respect to the head, `[B, C, D (+1)]`."""
    twin = copy.deepcopy(model).double()
    names = {id(module): name for name, module in model.named_modules()}
    twin_head = twin.get_submodule(names[id(head)])
    parameters = [twin_head.weight] + ([twin_head.bias] if twin_head.bias is not None else [])
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        output = twin(x.unsqueeze(0).double() if x.is_floating_point() else x.unsqueeze(0))
        loss = per_sample_loss(logits_of(output).flatten(1), y.unsqueeze(0)).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat = [g.reshape(len(twin_head.weight), -1) for g in gradients]
        rows.append(torch.cat(flat, dim=1))
    return torch.stack(rows)


def logits_of(output):
    if isinstance(output, tuple):
        return output[1]
    return getattr(output, "logits", output)


def expected_statistics(gradients, noisy, targets, true_labels, update, ignored=None):
    """Every tag of design §3, from per-sample gradients `[B, C, P]` and 0/1 flags `[B]`."""
    keep = torch.ones(len(gradients), dtype=torch.bool) if ignored is None else ~ignored
    g, w = gradients[keep].double(), noisy[keep].double()
    y, truth = targets[keep], true_labels[keep]
    count = len(g)
    flat = g.flatten(1)
    weights = {"clean": 1 - w, "noisy": w}
    group = {name: (a[:, None] * flat).sum(0) / count for name, a in weights.items()}

    def pairs(a, b):
        total = sum(
            a[i] * b[j] * torch.dot(flat[i], flat[j])
            for i in range(count)
            for j in range(count)
            if i != j
        )
        return total / (count * (count - 1)) if count > 1 else torch.tensor(torch.nan)

    biased = {
        (a, b): torch.dot(group[a], group[b])
        for a in ("clean", "noisy")
        for b in ("clean", "noisy")
    }
    unbiased = {
        (a, b): torch.as_tensor(pairs(weights[a], weights[b]))
        for a in ("clean", "noisy")
        for b in ("clean", "noisy")
    }
    expected = {}
    for suffix, product in (("", biased), ("_population", unbiased)):
        clean, noisy_norm = product["clean", "clean"].sqrt(), product["noisy", "noisy"].sqrt()
        if suffix and (w.sum() < 2 or (1 - w).sum() < 2):  # one sample makes no pair
            clean = clean if (1 - w).sum() > 1 else torch.tensor(torch.nan)
            noisy_norm = noisy_norm if w.sum() > 1 else torch.tensor(torch.nan)
        expected["dominance_ratio" + suffix] = clean / noisy_norm
        cross = product["clean", "noisy"]
        expected["group_cosine" + suffix] = cross / (clean * noisy_norm)
        whole = product["clean", "clean"] + 2 * cross + product["noisy", "noisy"]
        share = (product["noisy", "noisy"] + cross) / whole
        expected["noise_share" + suffix] = share if whole > 0 else torch.tensor(torch.nan)
    everyone = torch.ones_like(w)
    expected["coherence"] = pairs(everyone, everyone) / (flat.square().sum(1).mean())
    expected["contribution_clean"] = -torch.dot(group["clean"], update.double().flatten())
    expected["contribution_noisy"] = -torch.dot(group["noisy"], update.double().flatten())
    expected |= _segments(g, w, y, truth)
    return {name: float(value) for name, value in expected.items()}


def _segments(g, w, y, truth):
    expected = {}
    for c in range(g.shape[1]):
        rows = g[:, c]
        clean = rows[(y == c) & (w == 0)].sum(0).norm()
        noisy = rows[(truth == c) & (w == 1)].sum(0).norm()
        expected[f"segment_ratio/{c}"] = clean / noisy
    return expected


def head_update(head, before):
    """What an optimizer step did to the head, laid out as `sample_gradients` does."""
    after = [head.weight.detach().flatten(1)]
    if head.bias is not None:
        after.append(head.bias.detach().unsqueeze(1))
    return torch.cat(after, dim=1).double() - before


def head_parameters(head):
    rows = [head.weight.detach().flatten(1)]
    if head.bias is not None:
        rows.append(head.bias.detach().unsqueeze(1))
    return torch.cat(rows, dim=1).double().clone()
