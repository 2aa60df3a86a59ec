"""Language models of transformers, which compute their own loss, next to the oracle."""

import pytest
import torch

from tests.capture.test_dense import classes_first
from tests.gradients.test_head_statistics import TOLERANCE, close
from tests.support.one_by_one import SAMPLES, Setting, train

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

LENGTH, VOCABULARY = 9, 40


def gpt():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=16,
            n_layer=1,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def bert():
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def text(hidden):
    """Tokens, and labels of which a share is −100."""

    def make(dtype):
        tokens = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH))
        labels = tokens.masked_fill(torch.rand(tokens.shape) < hidden, -100)
        labels[:, -1] = tokens[:, -1]
        return tokens, labels

    return make


def own_loss(model, x, y, _):
    return model(input_ids=x, labels=y).loss


def causal(model, x, y, batch_y):
    logits = model(input_ids=x).logits[:, :-1].transpose(1, 2)
    return classes_first(lambda _: logits, x, y[:, 1:], batch_y[:, 1:])


def masked(model, x, y, batch_y):
    logits = model(input_ids=x).logits.transpose(1, 2)
    return classes_first(lambda _: logits, x, y, batch_y)


def gpt_head(model):
    return model.lm_head


def bert_head(model):
    return model.cls.predictions.decoder


SETTINGS = [
    Setting("GPT-2", gpt, text(0.0), own_loss, causal, head=gpt_head),
    Setting("GPT-2, prompts ignored", gpt, text(0.5), own_loss, causal, head=gpt_head),
    Setting(
        "GPT-2, 2 micro-batches",
        gpt,
        text(0.0),
        lambda *a: own_loss(*a) / 2,
        causal,
        head=gpt_head,
        micro_batches=2,
    ),
    Setting("BERT, masked tokens", bert, text(0.7), own_loss, masked, head=bert_head),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_language_model_equals_the_oracle(setting, dtype, caplog):
    # The models compute their loss in single precision, whatever the logits are.
    tolerance = max(TOLERANCE[dtype], 1e-6)
    steps = 0
    for monitor, _, expected, _ in train(setting, dtype):
        for name, value in expected.items():
            assert close(monitor.latest[name], value, tolerance), f"step {steps}: {name}"
        steps += 1
    assert steps == SAMPLES // setting.batch_size // setting.micro_batches
    assert "head=None" not in repr(monitor)
    ours = [record for record in caplog.records if record.name == "prioritymonitor"]
    (warning,) = [record.getMessage() for record in ours if record.levelname == "WARNING"]
    assert warning.startswith("neighbours don't vote: the targets are several classes")


@pytest.mark.parametrize("setting", SETTINGS[::3], ids=str)
def test_a_language_model_in_bfloat16_is_measured(setting):
    for monitor, _, expected, _ in train(setting, torch.bfloat16):
        for name in ("group_cosine", "noise_share"):
            assert monitor.latest[name] == pytest.approx(expected[name], rel=0.1, abs=0.05), name
