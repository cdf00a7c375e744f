"""Learning to reweight as the libraries for meta-learning in PyTorch have one write it.

`higher` (`innerloop_ctx`) and `torchopt` (`MetaSGD`), each on the residual networks of
`_torch_peer`, wrapped as a module. Written from the two libraries' documentation. Used only where
they are installed.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks import _torch_peer

LIBRARIES = ("higher", "torchopt")


class Module(torch.nn.Module):
  """The net of a peer, whose parameters have the names of its params, "__" for "/"."""

  def __init__(self, peer: _torch_peer.Peer):
    super().__init__()
    self.peer = peer
    self.names = list(peer.params)
    for name, leaf in peer.params.items():
      self.register_parameter(_attribute(name), torch.nn.Parameter(leaf.clone()))

  def forward(self, inputs: torch.Tensor) -> torch.Tensor:
    """Logits in training mode."""
    params = {name: getattr(self, _attribute(name)) for name in self.names}
    return self.peer.logits(params, inputs)


def rows(peer: _torch_peer.Peer, meta_batch_size: int) -> list[_torch_peer.Row]:
  """A row for each library, with a reason where there is no call."""
  found: list[_torch_peer.Row] = []
  for library in LIBRARIES:
    name = f"torch {library}"
    if importlib.util.find_spec(library) is None:
      found.append((name, meta_batch_size, None, "not installed"))
      continue
    step = functools.partial(weighted_step, peer, Module(peer), library, meta_batch_size)
    found.append((name, meta_batch_size, _torch_peer.synchronized(step), ""))
  return found


def weighted_step(
  peer: _torch_peer.Peer, module: Module, library: str, meta_batch_size: int
) -> tuple[_torch_peer.Tensors, torch.Tensor]:
  """The step with the virtual step of a library; returns the new params and the weights."""
  meta_batch = peer.random_batch(2, meta_batch_size)
  virtual_weights = {"higher": _by_higher, "torchopt": _by_torchopt}[library]
  weights = torch.relu(virtual_weights(module, peer.batch, meta_batch))
  total = weights.sum()
  return peer.step_with(weights / torch.where(total > 0, total, torch.ones_like(total)))


Batch = tuple[torch.Tensor, torch.Tensor]


def _by_higher(module: Module, batch: Batch, meta_batch: Batch) -> torch.Tensor:
  higher: Any = importlib.import_module("higher")
  optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
  with higher.innerloop_ctx(module, optimizer) as (functional, differentiable):
    virtual, loss = _virtual_loss(functional, batch)
    differentiable.step(loss)
    return _alignment(functional, virtual, meta_batch)


def _by_torchopt(module: Module, batch: Batch, meta_batch: Batch) -> torch.Tensor:
  torchopt: Any = importlib.import_module("torchopt")
  optimizer = torchopt.MetaSGD(module, lr=1.0)
  before = torchopt.extract_state_dict(module)
  virtual, loss = _virtual_loss(module, batch)
  optimizer.step(loss)
  alignment = _alignment(module, virtual, meta_batch)
  torchopt.recover_state_dict(module, before)
  return alignment


def _virtual_loss(
  net: Callable[[torch.Tensor], torch.Tensor], batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
  inputs, labels = batch
  virtual = torch.zeros(len(labels), device=labels.device, requires_grad=True)
  return virtual, virtual @ F.cross_entropy(net(inputs), labels, reduction="none")


def _alignment(
  net: Callable[[torch.Tensor], torch.Tensor], virtual: torch.Tensor, meta_batch: Batch
) -> torch.Tensor:
  inputs, labels = meta_batch
  return -torch.autograd.grad(F.cross_entropy(net(inputs), labels), virtual)[0]


def _attribute(name: str) -> str:
  return name.replace("/", "__")
