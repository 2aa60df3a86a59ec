"""The training runs on which stop rules are compared: data, wrong labels, models and loops."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

SEEDS = 3


@dataclass(frozen=True)
class Setting:
    """What makes one training run."""

    data: str = "fashion-mnist"
    noise: str = "symmetric"
    """How labels are made wrong; see `wrong_labels`."""
    rate: float = 0.0
    """Share of wrong labels."""
    model: str = "mlp"
    optimizer: str = "adam"
    schedule: str = "constant"
    extra: str = "plain"
    """`"plain"`, `"augmented"` (shifted and mirrored images), `"regularised"` (dropout and weight
    decay) or `"pretrained"` (all weights but the head's come from other, clean samples)."""
    epochs: int = 30
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the file that keeps the run."""
        return "-".join(str(value) for value in asdict(self).values())

    @property
    def group(self) -> str:
        """The setting without its seed, for people."""
        noise = f"{self.noise} {self.rate:.0%}" if self.rate else "none"
        loop = [] if self.schedule == "constant" else [self.schedule]
        loop += [] if self.extra == "plain" else [self.extra]
        return ", ".join([self.data, noise, self.model, self.optimizer, *loop])

    @property
    def views_per_epoch(self) -> int:
        """How many times an epoch the weights are tried on the test set."""
        return 1 if self.epochs > 10 else 5


def settings(seeds: int = SEEDS) -> list[Setting]:
    """All runs, the first seed of each setting first."""
    return [replace(one, seed=seed) for seed in range(seeds) for one in _single_seed()]


def _single_seed() -> list[Setting]:
    mlp, cnn = Setting(), Setting(model="cnn", optimizer="sgd")
    mnist, digits = replace(mlp, data="mnist"), replace(mlp, data="digits", epochs=60)
    short = Setting(model="cnn", optimizer="adam", extra="pretrained", epochs=5)
    sgd = {"optimizer": "sgd"}
    return [
        *_noisy(mlp, none=0.0, symmetric=(0.2, 0.4, 0.6), pair=0.3, instance=0.3, classes=0.3),
        *_noisy(replace(mlp, **sgd), none=0.0, symmetric=0.4, pair=0.3, instance=0.3),
        *_noisy(cnn, none=0.0, symmetric=(0.2, 0.4, 0.6), pair=0.3, instance=(0.15, 0.3)),
        *_noisy(mnist, none=0.0, symmetric=0.4, pair=0.3, instance=0.3),
        *_noisy(replace(cnn, data="mnist"), none=0.0, symmetric=0.4, instance=0.3),
        *_noisy(digits, none=0.0, symmetric=(0.2, 0.4, 0.6), pair=0.3),
        *_noisy(replace(digits, **sgd), none=0.0, symmetric=0.4, instance=0.3),
        *_noisy(replace(cnn, schedule="cosine"), none=0.0, symmetric=0.4),
        *_noisy(replace(mlp, schedule="cosine"), instance=0.3),
        *_noisy(replace(mlp, schedule="step", **sgd), symmetric=0.4),
        *_noisy(replace(mlp, extra="regularised"), none=0.0, symmetric=0.4),
        *_noisy(replace(cnn, extra="augmented"), none=0.0, symmetric=0.4, instance=0.15),
        *_noisy(short, none=0.0, symmetric=0.4, instance=0.3),
    ]


def _noisy(setting: Setting, **rates: float | tuple[float, ...]) -> list[Setting]:
    """The setting with each kind of noise, at each of its rates."""
    return [
        replace(setting, noise="symmetric" if kind == "none" else kind, rate=rate)
        for kind, several in rates.items()
        for rate in (several if isinstance(several, tuple) else (several,))
    ]
