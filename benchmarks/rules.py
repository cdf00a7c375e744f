"""What does a weighted step cost beside the plain one, for every rule without a meta batch?

    python -m benchmarks.rules --model=resnet20 --batch_size=100 --output=results/rules_cpu.json

Compiles the fused step with each rule of `RULES` on random images and prints a table:
floating-point operations (FLOPs) and bytes accessed by XLA's count of the compiled program, beside
those of the plain step, cross-entropy without a rule; and the FLOPs of the rule alone. The rules of
derivative manipulation stand on their base loss `losses.unit_margin`, and their gap holds the
difference of the losses too.

Exits with status 1 if a rule needs more than 1.03 times the plain FLOPs. Expected: 1.000 for all;
six minutes on two cores. Seed 0; the counts do not depend on it.

`--count=lowered` counts the program before XLA's passes and compiles nothing: one minute. Over all
rules, on mlp its FLOPs are 0.01 to 0.03 % below the compiled ones and its ratios within 2e-4; on
resnet20 FLOPs are 2.1 % below, in the plain step as in the others, and ratios within 2e-6. Its
bytes are those of a program that fuses nothing, about twice as many.
"""

import dataclasses
import functools
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import reweight_jax as rw
from benchmarks import _cases, _cost, _report
from experiments import _errors
from experiments._errors import RunError, UsageError
from reweight_jax import runlog, training
from reweight_jax.types import WeightingRule

FLOPS_BOUND = 1.03  # in plain steps
COUNTS = ("compiled", "lowered")
PLAIN = "plain"

NUM_EXAMPLES = 50_000  # of the data set, for the rules that keep a row for each
CLASS_COUNTS = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)  # CIFAR-10 at imbalance 100
GAMMAS = (0.0,) * 5 + (2.0,) * 5
PREDICTIONS = (14, 12, 11, 11, 10, 10, 9, 8, 8, 7)

# By the name that `reweight_jax.rules` exports: how to make each rule that needs no meta batch.
RULES: dict[str, Callable[[], WeightingRule]] = {
  "uniform": rw.rules.uniform,
  "random_weights": rw.rules.random_weights,
  "rectify": rw.rules.rectify,
  "normalize": rw.rules.normalize,
  "clip_weights": lambda: rw.rules.clip_weights(5.0, 0.1),
  "mix_with_uniform": lambda: rw.rules.mix_with_uniform(0.1),
  "where_examples": lambda: rw.rules.where_examples(
    lambda *, losses, **unused: losses > 1, rw.rules.focal()
  ),
  "after_burn_in": lambda: rw.rules.after_burn_in(rw.rules.focal(), 1000),
  "class_balanced": lambda: rw.rules.class_balanced(CLASS_COUNTS),
  "inverse_frequency": lambda: rw.rules.inverse_frequency(CLASS_COUNTS),
  "class_weights": lambda: rw.rules.class_weights(GAMMAS),
  "focal": rw.rules.focal,
  "focal_transform": rw.rules.focal_transform,
  "asymmetric_focal": lambda: rw.rules.asymmetric_focal(GAMMAS),
  "asymmetric_focal_transform": lambda: rw.rules.asymmetric_focal_transform(GAMMAS),
  "generalized_cross_entropy": lambda: rw.rules.generalized_cross_entropy(truncate_at=0.05),
  "symmetric_cross_entropy": rw.rules.symmetric_cross_entropy,
  "taylor_cross_entropy": rw.rules.taylor_cross_entropy,
  "bootstrapped_confidence": rw.rules.bootstrapped_confidence,
  "loss_transform": lambda: rw.rules.loss_transform(jnp.tanh),
  "self_paced": lambda: rw.rules.self_paced(2.0, "linear"),
  "self_paced_mixture": lambda: rw.rules.self_paced_mixture(1.0, 3.0),
  "super_loss": rw.rules.super_loss,
  "small_loss": lambda: rw.rules.small_loss(0.6, of="class"),
  "large_loss": lambda: rw.rules.large_loss(0.25),
  "loss_quantiles": lambda: rw.rules.loss_quantiles(0.1, 0.9),
  "hard_mining": lambda: rw.rules.hard_mining(len(CLASS_COUNTS)),
  "gradient_harmonizing": rw.rules.gradient_harmonizing,
  "importance_ratio": lambda: rw.rules.importance_ratio(np.linspace(0, 2, NUM_EXAMPLES).tolist()),
  "label_shift": lambda: rw.rules.label_shift(np.eye(len(PREDICTIONS)) + 0.1, PREDICTIONS),
  "reducible_loss": lambda: rw.rules.reducible_loss(
    np.linspace(0, 3, NUM_EXAMPLES).tolist(), keep=0.1
  ),
  "just_train_twice": lambda: rw.rules.just_train_twice(np.arange(NUM_EXAMPLES) % 10 == 0),
  "smooth_by_index": lambda: rw.rules.smooth_by_index(NUM_EXAMPLES),
  "emphasis": lambda: rw.rules.emphasis(rw.densities.normal(8.0, 0.5)),
  "exponential_emphasis": lambda: rw.rules.exponential_emphasis(8.0),
  "polynomial_tail": rw.rules.polynomial_tail,
  "ldam": lambda: rw.rules.ldam(CLASS_COUNTS),
}
ON_UNIT_MARGIN = frozenset({"emphasis", "exponential_emphasis", "polynomial_tail"})
TIMED = ("uniform", "focal", "small_loss", "smooth_by_index", "exponential_emphasis")


@dataclasses.dataclass(frozen=True)
class Config:
  """What to measure."""

  model: str = "resnet20"
  batch_size: int = 100
  rules: tuple[str, ...] = ()  # (): all, of which TIMED are timed
  count: str = "compiled"
  num_timings: int = 0

  def uses_torch(self) -> bool:
    """What the header asks: there is no peer here."""
    return False


def check(config: Config) -> None:
  """Raises UsageError, one line, for the first setting that cannot be run."""
  for flag, words, known in (
    ("model", (config.model,), rw.models.MODELS),
    ("rules", config.rules, tuple(RULES)),
    ("count", (config.count,), COUNTS),
  ):
    for word in words:
      if word not in known:
        raise UsageError(f"--{flag}: expected one of {', '.join(known)}; got {word!r}")
  if config.batch_size < 1:
    raise UsageError(f"--batch_size: expected at least 1, got {config.batch_size}")
  if config.num_timings < 0:
    raise UsageError(f"--num_timings: expected at least 0, got {config.num_timings}")


def run(config: Config) -> list[dict[str, Any]]:
  """Counts every step; returns one row each, the plain one first.

  Raises:
    UsageError: for a setting that cannot be run.
    RunError: if XLA does not count a product and a convolution as they are by hand.
  """
  check(config)
  _cost.check_cost_analysis()
  rows: list[dict[str, Any]] = []
  calls: dict[str, Callable[[], Any]] = {}
  with jax.default_matmul_precision("highest"):
    for name in (PLAIN, *dict.fromkeys(config.rules or RULES)):
      case = make_case(config.model, config.batch_size, name)
      lowered = case.step.lower(*jax.eval_shape(case.make_arguments))  # type: ignore[attr-defined]
      program = lowered.compile() if config.count == "compiled" else lowered
      loss = "unit_margin" if name in ON_UNIT_MARGIN else "cross_entropy"
      rows.append({"rule": name, "loss": loss, **_counts(program)})
      if name != PLAIN:
        rows[-1]["alone_flops"] = count_alone(RULES[name](), config.batch_size)["flops"]
      if config.num_timings and name in (PLAIN, *(config.rules or TIMED)):
        step = program if config.count == "compiled" else case.step
        calls[name] = _make_call(step, case.make_arguments())
    _add_times(rows, config.num_timings, calls)
  return add_ratios(rows)


def make_case(model: str, batch_size: int, name: str) -> _cases.Case:
  """The step of a model with one rule, or the plain one."""
  net = _cases.build(model, None, "float32")
  loss = rw.losses.unit_margin if name in ON_UNIT_MARGIN else rw.losses.softmax_cross_entropy
  rule = RULES[name]() if name != PLAIN else optax.with_extra_args_support(optax.identity())
  loss_fn = rw.losses.from_apply(rw.models.linen_apply(net), loss)
  tx = optax.sgd(_cases.LEARNING_RATE)

  def make_arguments() -> tuple[Any, ...]:
    params, model_state = _cases.random_variables(net)
    state = training.init_train_state(
      params, model_state, rule, tx, key=jax.random.key(0), batch_size=batch_size
    )
    return state, _cases.random_batch(1, batch_size)

  step = jax.jit(training.make_train_step(loss_fn, rule, tx))
  return _cases.Case(name, None, step, make_arguments)


def count_alone(rule: WeightingRule, batch_size: int) -> dict[str, float]:
  """The counts of a rule by itself, on evidence without a meta batch, not compiled."""
  batch = lambda dtype, *more: jax.ShapeDtypeStruct((batch_size, *more), dtype)
  weights = batch(jnp.float32)
  evidence = {
    "losses": weights,
    "logits": batch(jnp.float32, _cases.NUM_CLASSES),
    "labels": batch(jnp.int32),
    "indices": batch(jnp.int32),
    "mask": batch(jnp.bool_),
  }
  state = jax.eval_shape(rule.init, weights)
  return _counts(jax.jit(rule.update).lower(weights, state, None, **evidence))


def _counts(program: Any) -> dict[str, float]:
  counts = program.cost_analysis() or {}
  fields = ("flops", "transcendentals", "bytes accessed")
  return {field.replace(" ", "_"): counts.get(field, 0) for field in fields}


def _make_call(step: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], Any]:
  return lambda: jax.block_until_ready(step(*arguments))


def _add_times(
  rows: list[dict[str, Any]], num_timings: int, calls: Mapping[str, Callable[[], Any]]
) -> None:
  seconds = dict(zip(calls, _cost.time_steps(num_timings, list(calls.values())), strict=True))
  for row in rows:
    if row["rule"] in seconds:
      times = seconds[row["rule"]]
      row["seconds"] = float(np.median(times))
      # Ratios within a round, so that a slow spell of the machine meets both sides alike.
      row["time_ratio"] = float(np.median(times / seconds[PLAIN]))


def add_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The rows with what each needs beside the first one."""
  plain = rows[0]
  added = []
  for row in rows:
    ratio = row["flops"] / plain["flops"]
    beside = {"flops_ratio": ratio, "flops_bound": None if row is plain else FLOPS_BOUND}
    beside["gap_percent"] = 100 * (ratio - 1)
    beside["bytes_ratio"] = row["bytes_accessed"] / plain["bytes_accessed"]
    added.append({**row, **beside})
  return added


def broken_bounds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """The rules that need more FLOPs than the bound allows, in words."""
  return [
    f"{row['rule']}: {row['flops_ratio']:.4f} times the plain step, bound {row['flops_bound']:.2f}"
    for row in rows
    # Not a `>`, which a ratio that is no number would pass.
    if row["flops_bound"] is not None and not row["flops_ratio"] <= row["flops_bound"]
  ]


def markdown(header: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
  """The header in words, the table, and whether the bound holds."""
  settings = header["flags"]
  versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
  broken = broken_bounds(rows)
  lines = [
    f"Cost of one training step with each weighting rule: {settings['model']}, batch "
    f"{settings['batch_size']}, images 32x32x3, float32, SGD. Ratios and gaps are to the plain "
    "step, cross-entropy without a rule.",
    "",
    *_table(rows),
    "",
    f"- Bound of {FLOPS_BOUND:.2f} times the plain FLOPs: "
    + (f"DOES NOT HOLD for {'; '.join(broken)}" if broken else f"holds for all {len(rows) - 1}"),
    f"- Command: `{header['command']}`",
    f"- Machine: {header['device']}; load average at the start {header['load_average_at_start']}",
    f"- Versions: {versions}",
    f"- Times: medians of {settings['num_timings']} interleaved rounds, ratios within a round"
    if settings["num_timings"]
    else "- Times: not taken",
    f"- Counts: `cost_analysis()` of the {settings['count']} programs, which adds up in float32: "
    f"here FLOPs come in steps of {np.spacing(np.float32(rows[0]['flops'])):g}; the rule alone is "
    "lowered by itself. Transcendentals (exponentials, logarithms, powers) are no part of FLOPs",
  ]
  if header["note"]:
    lines.append(f"- Note: {header['note']}")
  return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  number = lambda name, form, scale=1.0: (
    lambda row: "-" if row.get(name) is None else f"{row[name] / scale:{form}}"
  )
  columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "rule": lambda row: row["rule"],
    "base loss": lambda row: row["loss"],
    "GFLOP": number("flops", ".3f", 1e9),
    "FLOPs ratio": number("flops_ratio", ".3f"),
    "bound": number("flops_bound", ".2f"),
    "gap %": number("gap_percent", ".5f"),
    "FLOPs of the rule alone": number("alone_flops", ",.0f"),
    "transcendentals": number("transcendentals", ",.0f"),
    "GB accessed": number("bytes_accessed", ".4f", 1e9),
    "bytes ratio": number("bytes_ratio", ".4f"),
  }
  if any("seconds" in row for row in rows):
    columns |= {"step s": number("seconds", ".3g"), "time ratio": number("time_ratio", ".2f")}
  cells = [list(columns), ["---"] * len(columns)]
  cells += [[show(row) for show in columns.values()] for row in rows]
  return [f"| {' | '.join(line)} |" for line in cells]


def define_flags(values: flags.FlagValues) -> None:
  """The flags, each with the default of `Config`."""
  default = Config()
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  text("model", default.model, f"one of {', '.join(rw.models.MODELS)}")
  text("rules", "", "list of rules; default all")
  text("count", default.count, f"one of {', '.join(COUNTS)}; lowered: without compiling")
  whole = functools.partial(flags.DEFINE_integer, flag_values=values)
  whole("batch_size", default.batch_size, "training examples a step")
  whole(
    "num_timings",
    default.num_timings,
    f"timed rounds of {', '.join(TIMED)}, or of --rules; 0: none",
  )
  text("output", None, "JSON file to write; the table goes beside it, in Markdown")
  text("note", "", "a sentence to record, such as what else the machine was doing")


def make_config(values: flags.FlagValues) -> Config:
  """The flags as a `Config`."""

  def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())

  return Config(
    model=values.model,
    batch_size=values.batch_size,
    rules=words(values.rules),
    count=values.count,
    num_timings=values.num_timings,
  )


def main(values: flags.FlagValues) -> None:
  """Counts, prints the table, writes it where asked to, and says whether the bound holds."""
  config = make_config(values)
  check(config)
  _report.check_output(values.output)
  command = shlex.join(["python", "-m", "benchmarks.rules", *sys.argv[1:]])
  header = _report.header(config, values.note) | {"command": command}
  rows = run(config)
  print(markdown(header, rows))
  if values.output:
    runlog.write_json(values.output, {**header, "rows": rows})
    runlog.write_text(pathlib.Path(values.output).with_suffix(".md"), markdown(header, rows))
  broken = broken_bounds(rows)
  if broken:
    raise RunError("more FLOPs than the bound allows: " + "; ".join(broken))


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
