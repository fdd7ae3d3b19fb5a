"""The linear head on frozen embeddings: fitted in seconds, its regularisation chosen on val."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.training.embeddings import batches
from catdog_pyfunc.preprocessing import Floats

WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_STEPS = 4  # of L-BFGS per weight decay, each starting where the last one ended
_MAX_ITERATIONS = 15  # per step


@dataclass(frozen=True)
class EpochMetrics:
    """Mean cross-entropy (nats) and accuracy on train and val after an epoch, or after a step of the head's optimiser."""

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Head:
    """A fitted head.

    Attributes:
        weight: (C, D), for embeddings that are not standardised.
        bias: (C,)
        weight_decay: The one of `WEIGHT_DECAYS` with the lowest loss on val.
        candidates: Weight decay → metrics after its last step.
        steps: Metrics after each step up to the chosen weight decay's last.
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    candidates: dict[float, EpochMetrics] = field(default_factory=dict)
    steps: list[EpochMetrics] = field(default_factory=list)

    def copy_to(self, layer: nn.Linear) -> None:
        """Copy weight and bias into a network's head."""
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)


def fit_head(train: Sequence[Floats], train_labels: list[int], val: Floats, val_labels: list[int], n_classes: int) -> Head:
    """Fit a multinomial logistic regression by L-BFGS, from strong to weak weight decay, and keep the best on val.

    Deterministic: it starts at zero and uses all images in each step. Some 8,000 embeddings are in use at a time
    and none are copied, so that memory-mapped ones may exceed the memory.

    Args:
        train: Embeddings (N₁, D), (N₂, D), …
        train_labels: N₁ + N₂ + … class indices.
        val: Embeddings (M, D).
        val_labels: M class indices.
        n_classes: C.

    Returns:
        The head with the lowest loss on val.
    """
    fitting = _Fitting(_Batches(train, train_labels), _Batches([val], val_labels), n_classes)
    candidates: dict[float, EpochMetrics] = {}
    steps: list[EpochMetrics] = []
    best: tuple[float, Tensor, Tensor, int] | None = None
    planned = [weight_decay for weight_decay in WEIGHT_DECAYS for _ in range(_STEPS)]
    for number, weight_decay in enumerate(progress(planned, "fitting the head", len(planned)), start=1):
        steps.append(fitting.step(weight_decay))
        if number % _STEPS:
            continue
        candidates[weight_decay] = steps[-1]
        if best is None or steps[-1].val_loss < candidates[best[0]].val_loss:
            weight, bias = fitting.head()
            best = (weight_decay, weight.detach(), bias.detach(), number)
    assert best is not None
    weight_decay, weight, bias, taken = best
    return Head(weight, bias, weight_decay, candidates, steps[:taken])


class _Batches:
    """Embeddings and labels, to be passed over again and again."""

    def __init__(self, embeddings: Sequence[Floats], labels: list[int]) -> None:
        self._embeddings = embeddings
        self._labels = torch.tensor(labels)
        self.count = len(labels)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, D) and (B,); only one batch of memory-mapped embeddings is in memory at a time."""
        done = 0
        for values in self._embeddings:
            for part in batches(values):
                yield torch.from_numpy(part), self._labels[done : done + len(part)]
                done += len(part)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each of the D features."""
        total, squares = torch.zeros(2, self._embeddings[0].shape[1], dtype=torch.float64)
        for x, _ in self:
            total += x.sum(0)
        mean = total / self.count
        for x, _ in self:
            squares += (x - mean).square().sum(0)
        return mean.float(), (squares / (self.count - 1)).sqrt().float()


class _Fitting:
    """A linear layer on standardised embeddings, on its way to the optimum."""

    def __init__(self, train: _Batches, val: _Batches, n_classes: int) -> None:
        self._train, self._val = train, val
        self._mean, std = train.moments()
        self._std = std.clamp_min(max(0.01 * std.mean().item(), 1e-6))  # nearly constant features would get huge weights
        self._layer = nn.Linear(len(std), n_classes)
        nn.init.zeros_(self._layer.weight)
        nn.init.zeros_(self._layer.bias)

    def head(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with the standardisation folded in: for embeddings as they are, in a single product."""
        weight = self._layer.weight / self._std
        return weight, self._layer.bias - weight @ self._mean

    def step(self, weight_decay: float) -> EpochMetrics:
        """Take one step of the optimiser, from where the last one ended, and measure."""
        optimizer = torch.optim.LBFGS(self._layer.parameters(), max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> float:
            optimizer.zero_grad()
            decay = 0.5 * weight_decay * self._layer.weight.square().sum()
            decay.backward()  # type: ignore[no-untyped-call]
            head = self.head()
            weight, bias = (value.detach().requires_grad_() for value in head)
            loss = decay.item()
            for x, y in self._train:
                part = functional.cross_entropy(functional.linear(x, weight, bias), y, reduction="sum") / self._train.count
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.item()
            torch.autograd.backward(head, (weight.grad, bias.grad))  # from the sum over all batches on to the layer
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return EpochMetrics(*_measure(self._train, *self.head()), *_measure(self._val, *self.head()))


def _measure(batches: _Batches, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    loss = correct = 0.0
    for x, y in batches:
        logits = functional.linear(x, weight, bias)
        loss += functional.cross_entropy(logits, y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
    return loss / batches.count, correct / batches.count
