"""The same training in a plain loop and in the Trainer: the same curve, stop and suspects."""

import pytest

from tests.integrations import same_training

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from prioritymonitor.integrations.transformers import GradientMonitorCallback  # noqa: E402


class InThatOrder(transformers.Trainer):
    """The order of the samples is the same in every trainer; the Trainer would draw its own."""

    def _get_train_sampler(self, train_dataset=None):
        return same_training.OrderOfEpochs()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_gives_the_curve_of_a_plain_loop(accumulate, workers, tmp_path):
    network, callback = same_training.WithLoss(), GradientMonitorCallback()
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        num_train_epochs=same_training.MOST_EPOCHS,
        per_device_train_batch_size=same_training.BATCH,
        gradient_accumulation_steps=accumulate,
        dataloader_num_workers=workers,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = InThatOrder(
        network,
        arguments,
        train_dataset=same_training.Rows(),
        optimizers=(same_training.optimizer_of(network), None),
        callbacks=[callback],
    )
    trainer.train()
    curve, expected = (
        same_training.curve_of(callback.monitor),
        same_training.in_a_plain_loop(accumulate=accumulate),
    )
    same_training.assert_same(curve, expected)
    assert trainer.state.epoch == expected.stop_epoch
