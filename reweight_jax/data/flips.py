"""Which class is mistaken for which: the flips of asymmetric noise."""

from collections.abc import Sequence

from reweight_jax.data.dataset import DataError

_CIFAR10 = {
  "truck": "automobile",
  "bird": "airplane",
  "deer": "horse",
  "cat": "dog",
  "dog": "cat",
}
_MNIST = {"2": "7", "3": "8", "5": "6", "6": "5", "7": "1"}
# The 20 super-classes of CIFAR-100, each with its five classes in alphabetical order.
_SUPER_CLASSES = """
beaver dolphin otter seal whale
aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip
bottle bowl can cup plate
apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe
bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf
bridge castle house road skyscraper
cloud forest mountain plain sea
camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk
crab lobster snail spider worm
baby boy girl man woman
crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor
"""


def asymmetric_flips(name: str, class_names: Sequence[str]) -> dict[int, int]:
  """The flips of the field for one of its data sets, class number -> class number.

  CIFAR-10: truck to automobile, bird to airplane, deer to horse, cat and dog to each other.
  CIFAR-100: every class to the next of its super-class, in alphabetical order, the last to the
  first. MNIST: 2 to 7, 3 to 8, 7 to 1, 5 and 6 to each other.

  Args:
    name: name of the data set.
    class_names: its classes, in the order of their numbers.

  Returns:
    What `corrupt_labels` takes as `flips`.

  Raises:
    DataError: if the data set has no such flips, or other classes than its own.

  Source: Patrini, Rozza, Menon, Nock, Qu, "Making Deep Neural Networks Robust to Label Noise: a
  Loss Correction Approach", 2017, arXiv 1609.03683, experiments.

  Example:
    >>> asymmetric_flips("mnist", "0123456789")
    {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}
  """
  known = {"cifar10": _CIFAR10, "cifar100": _cifar100(), "mnist": _MNIST}
  if name not in known:
    raise DataError(
      f"{name}: asymmetric noise is defined for {', '.join(known)}. Choose one of them or another "
      "noise."
    )
  number = {class_name: label for label, class_name in enumerate(class_names)}
  flips = known[name]
  missing = sorted((flips.keys() | flips.values()) - number.keys())
  if missing:
    raise DataError(
      f"{name}: asymmetric noise expects the classes of the data set, {missing[0]!r} is not among "
      f"the {len(class_names)} here. Check class_names."
    )
  return {number[source]: number[target] for source, target in flips.items()}


def _cifar100() -> dict[str, str]:
  flips: dict[str, str] = {}
  for line in _SUPER_CLASSES.split("\n"):
    members = line.split()
    flips |= dict(zip(members, members[1:] + members[:1], strict=True))
  return flips
