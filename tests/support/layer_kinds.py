"""Layers of all kinds in all shapes, for hypothesis: how to make one, and what goes into it."""

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

VOCABULARY = 6


class Wrapped(nn.Module):
    """A layer between its input and class scores, without any other parameter."""

    def __init__(self, layer, call=lambda layer, x: layer(x), classes=3):
        super().__init__()
        self.layer = layer
        self.call = call
        self.classes = classes

    def forward(self, x):
        rows = self.call(self.layer, x).flatten(1)
        generator = torch.Generator().manual_seed(rows.shape[1])
        readout = torch.randn(rows.shape[1], self.classes, generator=generator)
        return rows @ readout.to(rows.dtype)


def linear(draw):
    lead = draw(st.lists(st.integers(1, 4), max_size=2))
    inputs, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return Wrapped(nn.Linear(inputs, outputs, bias=draw(st.booleans()))), (*lead, inputs)


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def convolution(draw):
    space = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    channels, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(space)]
    dilation = [draw(st.integers(1, 2)) for _ in range(space)]
    size = [d * (k - 1) + draw(st.integers(1, 4)) for k, d in zip(kernel, dilation, strict=True)]
    padding = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = [1] * space
    if padding == "numbers":
        padding = [draw(st.integers(0, 1)) for _ in range(space)]
        stride = [draw(st.integers(1, 2)) for _ in range(space)]
    layer = CONVOLUTIONS[space](
        channels,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "replicate", "circular"])),
    )
    return Wrapped(layer), (channels, *size)


def transposed_convolution(draw):
    space = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    channels, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    stride = [draw(st.integers(1, 3)) for _ in range(space)]
    layer = TRANSPOSED[space](
        channels,
        outputs,
        [draw(st.integers(2, 3)) for _ in range(space)],
        stride,
        padding=draw(st.integers(0, 1)),
        output_padding=[draw(st.integers(0, s - 1)) for s in stride],
        groups=groups,
        bias=draw(st.booleans()),
    )
    return Wrapped(layer), (channels, *(draw(st.integers(2, 4)) for _ in range(space)))


def normalisation(draw):
    kind = draw(st.sampled_from(["layer", "layer of two", "rms", "group", "instance"]))
    width = 2 * draw(st.integers(1, 3))
    space = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    if kind == "layer":
        return Wrapped(nn.LayerNorm(width, bias=draw(st.booleans()))), (*space, width)
    if kind == "layer of two":
        return Wrapped(nn.LayerNorm([3, width])), (*space, 3, width)
    if kind == "rms":
        return Wrapped(nn.RMSNorm(width)), (*space, width)
    if kind == "group":
        return Wrapped(nn.GroupNorm(draw(st.sampled_from([1, 2, width])), width)), (width, *space)
    by_space = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    return Wrapped(by_space[len(space)](width, affine=True)), (width, *space)


def evaluated_batch_norm(draw):
    width = draw(st.integers(1, 3))
    layer = nn.BatchNorm1d(width)
    nn.init.normal_(layer.running_mean)
    return Wrapped(layer.eval()), draw(st.sampled_from([(width,), (width, 4)]))


def embedding(draw):
    layer = nn.Embedding(VOCABULARY, 3, padding_idx=draw(st.sampled_from([None, 2])))
    return Wrapped(layer), draw(st.sampled_from([(), (1,), (5,), (2, 3)]))


def bags(draw):
    layer = nn.EmbeddingBag(
        VOCABULARY,
        3,
        mode=draw(st.sampled_from(["sum", "mean", "max"])),
        padding_idx=draw(st.sampled_from([None, 2])),
    )
    if layer.mode == "sum" and draw(st.booleans()):
        return Wrapped(layer, lambda bag, x: bag(x, per_sample_weights=weights_of(x, bag))), (4,)
    return Wrapped(layer), (4,)


def weights_of(index, layer):
    return (index + 1).to(layer.weight.dtype) / VOCABULARY


def prelu(draw):
    channels = draw(st.integers(1, 3))
    return Wrapped(nn.PReLU(draw(st.sampled_from([1, channels])))), (channels, 4)


def attention(draw):
    heads, length = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    other = draw(st.booleans())
    layer = nn.MultiheadAttention(
        2 * heads,
        heads,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        kdim=3 if other else None,
        vdim=3 if other else None,
    )
    options = {"need_weights": draw(st.booleans())}
    if draw(st.booleans()):
        options["attn_mask"] = torch.ones(length, length).triu(1).bool()

    def call(layer, x):
        x = x if layer.batch_first else x.transpose(0, 1)
        y = torch.cat((x, x), -1)[..., :3] if other else x
        assume(y.shape[-1] == (3 if other else 2 * heads))
        out = layer(x, y, y.flip(-1), **options)[0]
        return out if layer.batch_first else out.transpose(0, 1)

    return Wrapped(layer, call), (length, 2 * heads)


def recurrent(draw):
    kind = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
    layer = kind(
        3,
        2,
        num_layers=draw(st.integers(1, 2)),
        bidirectional=draw(st.booleans()),
        batch_first=draw(st.booleans()),
    )
    last = draw(st.booleans())

    def call(layer, x):
        out, hidden = layer(x if layer.batch_first else x.transpose(0, 1))
        if last:
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            return hidden.transpose(0, 1)
        return out if layer.batch_first else out.transpose(0, 1)

    return Wrapped(layer, call), (4, 3)


class Gate(nn.Module):
    """A layer that no library knows."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))
        self.mixing = nn.Parameter(torch.randn(width, width))

    def forward(self, x, shift=0.0):
        return (x @ self.mixing).tanh() * self.scale + shift


def unknown(draw):
    width = draw(st.integers(1, 3))
    return Wrapped(Gate(width), lambda gate, x: gate(x, shift=0.5)), (4, width)


KINDS = [
    linear,
    convolution,
    transposed_convolution,
    normalisation,
    evaluated_batch_norm,
    embedding,
    bags,
    prelu,
    attention,
    recurrent,
    unknown,
]


def inputs_for(model, shape, samples, dtype):
    if isinstance(model.layer, (nn.Embedding, nn.EmbeddingBag)):
        return torch.randint(VOCABULARY, (samples, *shape))
    return torch.randn(samples, *shape, dtype=dtype, requires_grad=False)
