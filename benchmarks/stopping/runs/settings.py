"""The training runs on which stop rules are compared: data, wrong labels, models and loops."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import zip_longest

SEEDS = 1


@dataclass(frozen=True)
class Setting:
    """What makes one training run."""

    family: str = "images"
    """Runs that have much in common; each family counts as much as another."""
    data: str = "fashion-mnist"
    noise: str = "symmetric"
    """How labels are made wrong, see `wrong_labels`; or the name of a set of labels that the data
    bring: `"worse"` and `"random2"` by people, `"rules"` by keywords."""
    rate: float = 0.0
    """Share of wrong labels; with labels that the data bring, about that."""
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
        return "-".join(str(value).replace(" ", "_") for value in asdict(self).values())

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
        return 5 if self.extra == "pretrained" else 1


def settings(seeds: int = SEEDS) -> list[Setting]:
    """All runs: the first seed of each setting first, and one of each family in turn."""
    families = [family() for family in FAMILIES]
    in_turn = [one for row in zip_longest(*families) for one in row if one is not None]
    return [replace(one, seed=seed) for seed in range(seeds) for one in in_turn]


def _images() -> list[Setting]:
    mlp, cnn = Setting(), Setting(model="cnn", optimizer="sgd")
    short = Setting(model="cnn", extra="pretrained", epochs=5)
    return [
        *_noisy(mlp, none=0.0, symmetric=0.4, pair=0.3, parts=0.4, classes=0.3),
        *_noisy(cnn, none=0.0, symmetric=(0.2, 0.6), pair=0.3, instance=0.15),
        *_noisy(replace(mlp, data="mnist"), none=0.0, symmetric=0.4, instance=0.3),
        *_noisy(replace(cnn, data="mnist"), symmetric=0.4, parts=0.3),
        *_noisy(replace(mlp, schedule="step", optimizer="sgd"), symmetric=0.4),
        *_noisy(replace(cnn, schedule="cosine"), none=0.0, symmetric=0.4),
        *_noisy(replace(mlp, extra="regularised"), symmetric=0.4),
        *_noisy(replace(cnn, extra="augmented"), none=0.0, symmetric=0.4),
        *_noisy(short, none=0.0, symmetric=0.4, instance=0.3),
    ]


def _digits() -> list[Setting]:
    adam = Setting(family="digits", data="digits", epochs=60)
    return [
        *_noisy(adam, none=0.0, symmetric=(0.2, 0.4, 0.6), pair=0.3, flood=0.3),
        *_noisy(replace(adam, optimizer="sgd"), none=0.0, symmetric=0.4, instance=0.3),
    ]


def _human() -> list[Setting]:
    adam = Setting(family="human labels", data="cifar10", model="cnn", epochs=25)
    sgd = replace(adam, model="cnn-mean", optimizer="sgd")
    plain = replace(adam, model="cnn-plain")
    augmented = replace(sgd, extra="augmented", schedule="cosine", epochs=30)
    human = {"worse": 0.4, "random2": 0.18}
    return [
        *_noisy(adam, **human, none=0.0, symmetric=0.4),
        *_noisy(sgd, **human, none=0.0, symmetric=0.2),
        *_noisy(augmented, **human, none=0.0),
        *_noisy(plain, **human, none=0.0, symmetric=0.4),
    ]


def _texts() -> list[Setting]:
    adam = Setting(family="texts", epochs=30)
    youtube, semeval = replace(adam, data="youtube"), replace(adam, data="semeval")
    return [
        *_noisy(youtube, rules=0.16, none=0.0, symmetric=0.3),
        *_noisy(semeval, rules=0.2, none=0.0, symmetric=0.4, pair=0.3),
        *_noisy(replace(youtube, optimizer="sgd"), rules=0.16),
        *_noisy(replace(semeval, optimizer="sgd"), rules=0.2, none=0.0),
    ]


def _fine_tuning() -> list[Setting]:
    few = Setting(family="fine-tuning", model="lite0", data="cifar10", epochs=6)
    more = replace(few, model="minilm", data="semeval")
    return [
        *_noisy(few, worse=0.4, none=0.0, random2=0.18, symmetric=0.4),
        *_noisy(more, rules=0.2, none=0.0, symmetric=0.4),
        *_noisy(replace(more, data="youtube"), rules=0.16),
    ]


def _many_classes() -> list[Setting]:
    letter = Setting(family="many classes", data="letter", epochs=30)
    pairs = replace(letter, data="digit-pairs", epochs=20)
    return [
        *_noisy(letter, none=0.0, symmetric=0.4, pair=0.3, parts=0.3),
        *_noisy(pairs, symmetric=0.3, none=0.0),
        *_noisy(replace(pairs, model="cnn", optimizer="sgd"), symmetric=0.4, none=0.0, pair=0.2),
        *_noisy(replace(letter, optimizer="sgd"), symmetric=0.2),
    ]


def _few_classes() -> list[Setting]:
    two = Setting(family="few classes", data="fashion-2")
    three = replace(two, data="fashion-3")
    phoneme, ring = replace(two, data="phoneme", epochs=40), replace(two, data="ring", epochs=30)
    return [
        *_noisy(two, symmetric=0.3, none=0.0),
        *_noisy(replace(three, model="cnn", optimizer="sgd"), symmetric=0.4, none=0.0, pair=0.3),
        *_noisy(phoneme, none=0.0, symmetric=0.3),
        *_noisy(ring, symmetric=0.2, none=0.0, flood=0.2),
    ]


def _tables() -> list[Setting]:
    satimage = Setting(family="tables", data="satimage", epochs=30)
    penbased, texture = replace(satimage, data="penbased"), replace(satimage, data="texture")
    hard = replace(satimage, data="contraceptive")
    return [
        *_noisy(satimage, symmetric=0.4, none=0.0, classes=0.3, instance=0.2),
        *_noisy(replace(penbased, optimizer="sgd"), pair=0.3, none=0.0, symmetric=0.4),
        *_noisy(texture, symmetric=0.3, none=0.0, flood=0.3),
        *_noisy(hard, none=0.0, symmetric=0.3),
    ]


def _slow() -> list[Setting]:
    """Networks that learn slowly at first, and two that learn at once."""
    mlp = Setting(family="slow and fast", optimizer="adam-slow")
    cnn = replace(mlp, model="cnn", optimizer="sgd", schedule="warm-up")
    deep = replace(mlp, data="letter", model="deep", optimizer="adam", epochs=30)
    columns = replace(mlp, data="satimage", model="columns", optimizer="adam", epochs=30)
    ghost = replace(deep, model="ghost", optimizer="sgd")
    return [
        *_noisy(mlp, symmetric=0.4, none=0.0),
        *_noisy(cnn, none=0.0, symmetric=0.4),
        *_noisy(deep, symmetric=0.3, none=0.0),
        *_noisy(columns, none=0.0, symmetric=0.3),
        *_noisy(ghost, pair=0.3, none=0.0),
        *_noisy(replace(mlp, optimizer="adam-fast"), symmetric=0.4, none=0.0),
    ]


FAMILIES = (
    _human,
    _images,
    _fine_tuning,
    _texts,
    _many_classes,
    _slow,
    _few_classes,
    _tables,
    _digits,
)


def _noisy(setting: Setting, **rates: float | tuple[float, ...]) -> list[Setting]:
    """The setting with each kind of noise, at each of its rates."""
    return [
        replace(setting, noise="symmetric" if kind == "none" else kind, rate=rate)
        for kind, several in rates.items()
        for rate in (several if isinstance(several, tuple) else (several,))
    ]
