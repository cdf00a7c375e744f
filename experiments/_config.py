"""The configuration of a command: what its flags say, with the defaults that depend on others."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from experiments._rule_options import RuleOptions

DEFAULT_STEPS = 600
DEFAULT_META_BATCH_SIZE = 20
DEFAULT_RULE_OPTIONS = RuleOptions()
MODEL_OF = {
  "digits": "mlp",
  "mnist": "lenet",
  "fashion_mnist": "lenet",
  "cifar10": "resnet20",
  "cifar100": "resnet32",
}
# LeNet, without any norm, does not train at 0.1: its logits start too large.
LEARNING_RATE_OF = {"lenet": 0.02, "transformer": 0.02, "conv1d": 0.02}
# A mirrored digit is another sign.
WITHOUT_FLIPS = ("digits", "mnist")
AUGMENT_OF = {"cifar10": "paper", "cifar100": "paper"}
LONGEST_NAME = 100


@dataclasses.dataclass(frozen=True)
class Config:
  """One command: a setting, and the methods and seeds to run in it."""

  dataset: str = "digits"  # one of data.DATASETS, or the path of an NPZ file
  methods: tuple[str, ...] = ()
  rules: tuple[str, ...] = ()
  seeds: tuple[int, ...] = (0,)
  noise: str = "pair"
  noise_rate: float | None = None  # None: 0.45, or 0 where the noise takes none
  human_labels: str | None = None
  imbalance: str = "none"
  imbalance_ratio: float = 1.0
  meta_size: int = 20
  validation_size: int = 200
  train_size: int | None = None  # None: all that meta and validation leave
  augment: str | None = None  # None: AUGMENT_OF[dataset] or "none"
  model: str | None = None  # None: MODEL_OF[dataset]
  norm: str | None = None  # None: the model's own
  dtype: str = "float32"
  precision: str = "highest"
  batch_size: int = 100
  meta_batch_size: int | None = None  # None: DEFAULT_META_BATCH_SIZE, or all of a smaller meta set
  steps: int | None = None  # None: epochs, or DEFAULT_STEPS
  epochs: float | None = None
  finetune_steps: int = 200
  learning_rate: float | None = None  # None: LEARNING_RATE_OF[model] or 0.1
  schedule: str = "constant"
  decay_at: tuple[float, ...] = (0.5, 0.75)
  momentum: float = 0.0
  weight_decay: float = 0.0
  label_smoothing: float = 0.0
  mixup: float = 0.0
  defer_until: float = 0.8
  reference: str | None = None  # WORKDIR/METHOD of finished runs that jtt, rho, ... build on
  importance_file: str | None = None
  ema_decay: float | None = None
  route: str = "forward"
  virtual_optimizer: str | None = None  # None: training for rules that need it, else none
  virtual_steps: int = 1
  meta_every: int = 1  # steps between meta batches
  meta_layers: tuple[str, ...] = ()  # (): all
  meta_labels: str = "clean"
  meta_loss: str = "ce"
  rule_options: RuleOptions = DEFAULT_RULE_OPTIONS
  eval_every: int = 50
  checkpoint_every: int = 1000
  keep: int = 2
  chunk_steps: int | None = None  # None: 1 on CPU, 100 elsewhere
  parallel_seeds: int | None = None  # None: 1 on CPU, elsewhere as many as fit
  pictures: bool = True
  resume: bool = True  # False: refuse a workdir in which these runs have begun
  workdir: str | None = None
  data_dir: str | None = None

  def num_steps(self, num_train: int) -> int:
    """Steps of a run over `num_train` training examples, fine-tuning not counted."""
    if self.epochs is None:
      return self.steps or DEFAULT_STEPS
    return max(1, round(self.epochs * (num_train // self.batch_size)))

  def num_meta(self) -> int:
    """Meta examples a step."""
    return self.meta_batch_size or min(DEFAULT_META_BATCH_SIZE, self.meta_size)

  def rate_of_noise(self) -> float:
    """The noise rate, or the default of the noise."""
    if self.noise_rate is None:
      return 0.45 if self.takes_noise_rate() else 0.0
    return self.noise_rate

  def takes_noise_rate(self) -> bool:
    """Whether the noise is drawn at a rate; human labels are as wrong as they are."""
    return self.noise != "none" and not self.noise.startswith("human:")

  def model_name(self) -> str:
    """The model, or that of the data set."""
    return self.model or MODEL_OF.get(self.dataset, "resnet20")

  def augment_kind(self) -> str:
    """The augmentation, or that of the data set."""
    return self.augment or AUGMENT_OF.get(self.dataset, "none")

  def rate(self) -> float:
    """The learning rate, or that of the model."""
    return self.learning_rate or LEARNING_RATE_OF.get(self.model_name(), 0.1)

  def run_names(self) -> tuple[str, ...]:
    """The names of the table's rows, which are folders too."""
    if not self.rules:
      return self.methods
    # A rule may be called like a method that does more: small_loss, large_loss, hard_mining.
    name = "+".join(self.rules) if len(self.rules) > 1 else f"rule_{self.rules[0]}"
    if len(name) > LONGEST_NAME:  # of a folder, file systems take 255
      name = f"{name[:LONGEST_NAME]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return (name,)

  def title(self) -> str:
    """What is trained on, in words."""
    parts = [self.dataset]
    if self.noise != "none":
      parts.append(f"{self.noise} noise {self.rate_of_noise():g}")
    if self.imbalance != "none":
      parts.append(f"{self.imbalance} {self.imbalance_ratio:g}")
    return ", ".join(parts)

  def setting(self) -> dict[str, Any]:
    """What decides the numbers of all methods, apart from the seed: flag -> value, as in JSON."""
    fields = dataclasses.asdict(self)
    fields |= {
      "model": self.model_name(),
      "meta_batch_size": self.num_meta(),
      "learning_rate": self.rate(),
      "noise_rate": self.rate_of_noise(),
      "augment": self.augment_kind(),
      "decay_at": list(self.decay_at),
      "steps": self.num_steps(0) if self.epochs is None else None,
    }
    for name in (*EXECUTION, *FILES_OF_METHODS):
      del fields[name]
    fields["meta_layers"] = list(self.meta_layers)
    for name, default in ADDED.items():
      if fields[name] == default:
        del fields[name]
    del fields["rule_options"]
    return fields | self.rule_options.given()


EXECUTION = (
  *("methods", "rules", "seeds", "workdir", "data_dir"),
  *("checkpoint_every", "keep", "chunk_steps", "parallel_seeds", "pictures", "resume"),
)
"""The fields that decide which runs there are and how they are carried out, not their numbers."""
ADDED: dict[str, Any] = {
  "virtual_optimizer": None,
  "virtual_steps": 1,
  "meta_every": 1,
  "meta_layers": [],
  "meta_labels": "clean",
  "meta_loss": "ce",
}
"""The fields that came later, with their defaults, at which a setting leaves them out: so the names
of workdirs, which are made of it, stay as they were."""
FILES = ("dataset", "human_labels", "train_file", "test_file")
"""The fields that name, or may name, a file that every method reads."""
FILES_OF_METHODS = ("reference", "importance_file")
"""The fields that name what some methods read and the others do not look at."""

_OF_THE_PAPER: dict[str, Any] = {
  "dataset": "cifar10",
  "noise_rate": 0.4,
  "validation_size": 5000,
  "batch_size": 100,
  "meta_batch_size": 100,
  "learning_rate": 0.1,
  "schedule": "step",
  "momentum": 0.9,
  "weight_decay": 2e-4,
  "augment": "paper",
  "finetune_steps": 5000,
  "eval_every": 1000,
}
PROTOCOLS: dict[str, dict[str, Any]] = {
  # BackgroundFlip of Ren et al. 2018: ten clean images a class; a tenth of the rate from step
  # 40,000 on, a hundredth from 60,000 on.
  "background": _OF_THE_PAPER
  | {
    "noise": "background",
    "model": "preact_resnet32",
    "meta_size": 100,
    "steps": 80_000,
    "decay_at": (0.5, 0.75),
  },
  # UniformFlip of the same: 1000 clean images; the rate falls at steps 40,000 and 50,000.
  "uniform": _OF_THE_PAPER
  | {
    "noise": "symmetric",
    "model": "wrn28_10",
    "meta_size": 1000,
    "steps": 60_000,
    "decay_at": (2 / 3, 5 / 6),
  },
  # Long-tailed CIFAR of Cao et al. 2019 (arXiv 1906.07413), sec. 4: 200 epochs.
  # Departs from it: a tenth of the rate at each drop, not a hundredth; no warm-up of 5 epochs.
  "long_tail": {
    "dataset": "cifar10",
    "noise": "none",
    "imbalance": "long_tail",
    "imbalance_ratio": 100.0,
    "model": "resnet32",
    "meta_size": 100,
    "meta_batch_size": 100,
    "validation_size": 0,
    "batch_size": 128,
    "epochs": 200.0,
    "steps": None,
    "learning_rate": 0.1,
    "schedule": "step",
    "decay_at": (0.8, 0.9),
    "momentum": 0.9,
    "weight_decay": 2e-4,
    "augment": "standard",
    "defer_until": 0.8,
    "eval_every": 500,
  },
  # The noise of "background" on a short schedule, a small net and a small meta batch.
  "quick": _OF_THE_PAPER
  | {
    "noise": "background",
    "model": "resnet20",
    "meta_size": 100,
    "meta_batch_size": 20,
    "steps": 4_000,
    "finetune_steps": 500,
    "schedule": "cosine",
    "augment": "standard",
    "eval_every": 500,
  },
}
"""Settings by name, flag -> value, after Ren et al. 2018 (arXiv 1803.09050), sec. 4.2."""


def with_protocol(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
  """The values of a protocol and those given, which win over them."""
  values = dict(PROTOCOLS[name]) if name else {}
  if name and given.get("dataset") == "cifar100":
    values["meta_size"] = 1000  # ten a class there too
  return values | dict(given)
