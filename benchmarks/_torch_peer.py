"""The same steps in PyTorch, as one writes them there: functional nets and double backward.

The residual networks of `rw.models.ResNet` over the same params, and learning to reweight from its
definition: a virtual step that keeps its graph, the meta loss, its gradient by the virtual weights.
Used only if torch is installed.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

import reweight_jax as rw
from benchmarks import _cases

Tensors = dict[str, torch.Tensor]
Row = tuple[str, int | None, Callable[[], Any] | None, str]


class Peer:
  """A residual network with its params and batches, on CUDA if there is one.

  Args:
    model: "resnet8", "resnet20" and so on.
    norm: "batch", "group" or "none".
    dtype: "float32", or "bfloat16" for autocast.
    batch_size: training examples.
  """

  def __init__(self, model: str, norm: str, dtype: str, batch_size: int):
    self.depth, self.norm = int(model.removeprefix("resnet")), norm
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    self.dtype = getattr(torch, dtype)
    params, _ = _cases.random_variables(_cases.build(model, norm, dtype))
    self.params = {name: self._tensor(leaf) for name, leaf in _flat(params).items()}
    self.batch = self.random_batch(1, batch_size)
    torch.set_num_threads(os.cpu_count() or 1)

  def plain_step(self) -> Tensors:
    """SGD on the mean loss; returns the new params."""
    params = _leaves(self.params)
    inputs, labels = self.batch
    loss = F.cross_entropy(self.logits(params, inputs, running=True), labels)
    return self._sgd(params, torch.autograd.grad(loss, list(params.values())))

  def weighted_step(self, meta_batch_size: int) -> tuple[Tensors, torch.Tensor]:
    """Learning to reweight by double backward; returns the new params and the weights."""
    params = _leaves(self.params)
    (inputs, labels), (meta_inputs, meta_labels) = self.batch, self.random_batch(2, meta_batch_size)
    virtual = torch.zeros(len(labels), device=self.device, requires_grad=True)
    losses = F.cross_entropy(self.logits(params, inputs), labels, reduction="none")
    grads = torch.autograd.grad(virtual @ losses, list(params.values()), create_graph=True)
    moved = {name: leaf - grad for (name, leaf), grad in zip(params.items(), grads, strict=True)}
    meta_loss = F.cross_entropy(self.logits(moved, meta_inputs), meta_labels)
    weights = torch.relu(-torch.autograd.grad(meta_loss, virtual)[0])
    total = weights.sum()
    return self.step_with(weights / torch.where(total > 0, total, torch.ones_like(total)))

  def step_with(self, weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """SGD on the weighted sum of the losses; returns the new params and the weights."""
    params = _leaves(self.params)
    inputs, labels = self.batch
    losses = F.cross_entropy(self.logits(params, inputs, running=True), labels, reduction="none")
    return self._sgd(params, torch.autograd.grad(weights @ losses, list(params.values()))), weights

  def logits(self, params: Tensors, inputs: torch.Tensor, running: bool = False) -> torch.Tensor:
    """Logits in training mode; batch statistics, and running averages if asked to."""
    with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
      features = self._convolve(params, "Conv_0", inputs, 1)
      features = F.relu(self._normalize(params, "Norm_0", features, running))
      block = 0
      for maps in (16, 32, 64):
        for place in range((self.depth - 2) // 6):
          stride = 2 if place == 0 and maps > 16 else 1
          features = self._block(params, f"Block_{block}/", features, stride, maps, running)
          block += 1
      pooled = features.mean((2, 3))
    return F.linear(pooled.float(), params["Dense_0/kernel"].T, params["Dense_0/bias"])

  def _block(
    self,
    params: Tensors,
    name: str,
    inputs: torch.Tensor,
    stride: int,
    maps: int,
    running: bool,
  ) -> torch.Tensor:
    features = self._convolve(params, f"{name}Conv_0", inputs, stride)
    features = F.relu(self._normalize(params, f"{name}Norm_0", features, running))
    features = self._convolve(params, f"{name}Conv_1", features, 1)
    features = self._normalize(params, f"{name}Norm_1", features, running)
    short = F.pad(inputs[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, maps - inputs.shape[1]))
    return F.relu(features + short)

  def _convolve(
    self, params: Tensors, name: str, inputs: torch.Tensor, stride: int
  ) -> torch.Tensor:
    bias = params.get(f"{name}/bias")
    return F.conv2d(inputs, params[f"{name}/kernel"], bias, stride=stride, padding=1)

  def _normalize(
    self, params: Tensors, name: str, inputs: torch.Tensor, running: bool
  ) -> torch.Tensor:
    channels = inputs.shape[1]
    if self.norm == "group":
      scale, bias = (params[f"{name}/GroupNorm_0/{part}"] for part in ("scale", "bias"))
      return F.group_norm(inputs, rw.models.num_groups(channels), scale, bias, 1e-5)
    if self.norm == "none":
      return inputs
    averages = [torch.zeros(channels, device=self.device) if running else None for _ in range(2)]
    scale, bias = params[f"{name}/scale"], params[f"{name}/bias"]
    return F.batch_norm(inputs, *averages, scale, bias, training=True, eps=1e-5)

  def _sgd(self, params: Tensors, grads: tuple[torch.Tensor, ...]) -> Tensors:
    with torch.no_grad():
      return {
        name: leaf - _cases.LEARNING_RATE * grad
        for (name, leaf), grad in zip(params.items(), grads, strict=True)
      }

  def _tensor(self, leaf: Any) -> torch.Tensor:
    array = np.array(leaf)
    if array.ndim == 4:
      array = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    tensor = torch.from_numpy(array).to(self.device)
    return tensor.to(memory_format=torch.channels_last) if array.ndim == 4 else tensor

  def random_batch(self, seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels that our own steps are given."""
    batch = _cases.random_batch(seed, size)
    images = torch.from_numpy(np.array(batch.inputs).transpose(0, 3, 1, 2)).to(self.device)
    labels = torch.from_numpy(np.array(batch.labels)).long().to(self.device)
    return images.contiguous(memory_format=torch.channels_last), labels


def rows(
  model: str,
  norm: str | None,
  dtype: str,
  batch_size: int,
  sizes: tuple[int, ...],
  more: Callable[[Peer, int], list[Row]] = lambda peer, size: [],
) -> list[Row]:
  """The peer's steps: name, size of the meta batch, the call, and why there is none.

  Those of `more` come after double backward, at each size.
  """
  depth = model.removeprefix("resnet")
  if not (model.startswith("resnet") and depth.isdecimal() and int(depth) % 6 == 2):
    return [("torch plain", None, None, f"the peer has no {model}")]
  peer = Peer(model, norm or "batch", dtype, batch_size)
  found: list[Row] = [("torch plain", None, synchronized(peer.plain_step), "")]
  for size in sizes:
    call = synchronized(functools.partial(peer.weighted_step, size))
    found += [("torch double backward", size, call, ""), *more(peer, size)]
  if peer.device == "cuda":
    compiled = synchronized(torch.compile(peer.plain_step))
    try:
      compiled()
      found.append(("torch plain, compiled", None, compiled, ""))
    except Exception as error:  # the compiler's own, of every kind
      reason = f"does not compile: {type(error).__name__}"
      found.append(("torch plain, compiled", None, None, reason))
  return found


def set_precision(precision: str) -> None:
  """Makes float32 products as exact as JAX's: TensorFloat-32 only under "default"."""
  torch.set_float32_matmul_precision("high" if precision == "default" else "highest")
  torch.backends.cudnn.allow_tf32 = precision == "default"


def count_flops(call: Callable[[], Any]) -> int:
  """FLOPs of the products and convolutions of a call, by torch's own counter."""
  with FlopCounterMode(display=False) as counter:
    call()
  return counter.get_total_flops()


def peak_bytes(call: Callable[[], Any]) -> int | None:
  """The most memory that a call holds on CUDA beyond what is there before; None on CPU."""
  if not torch.cuda.is_available():
    return None
  torch.cuda.synchronize()
  torch.cuda.reset_peak_memory_stats()
  before = torch.cuda.memory_allocated()
  call()
  torch.cuda.synchronize()
  return torch.cuda.max_memory_allocated() - before


def synchronized(call: Callable[[], Any]) -> Callable[[], Any]:
  """The call, over when the device has finished."""

  def run() -> Any:
    result = call()
    if torch.cuda.is_available():
      torch.cuda.synchronize()
    return result

  return run


def _leaves(params: Tensors) -> Tensors:
  return {name: leaf.detach().requires_grad_() for name, leaf in params.items()}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {"/".join(key.key for key in path): leaf for path, leaf in leaves}
