"""The linear head on frozen embeddings: fitted in seconds, its regularisation chosen on val."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

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


def fit_head(train: Floats, train_labels: list[int], val: Floats, val_labels: list[int], n_classes: int) -> Head:
    """Fit a multinomial logistic regression by L-BFGS, from strong to weak weight decay, and keep the best on val.

    Deterministic: it starts at zero and uses all images in each step.

    Args:
        train: Embeddings (N, D).
        train_labels: N class indices.
        val: Embeddings (M, D).
        val_labels: M class indices.
        n_classes: C.

    Returns:
        The head with the lowest loss on val.
    """
    mean, std = torch.from_numpy(train).mean(0), torch.from_numpy(train).std(0)
    std = std.clamp_min(max(0.01 * std.mean().item(), 1e-6))  # nearly constant features would get huge weights
    x, x_val = ((torch.from_numpy(values) - mean) / std for values in (train, val))  # (N, D), (M, D)
    y, y_val = torch.tensor(train_labels), torch.tensor(val_labels)
    layer = nn.Linear(x.shape[1], n_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    candidates: dict[float, EpochMetrics] = {}
    steps: list[EpochMetrics] = []
    best: tuple[float, Tensor, Tensor, int] | None = None
    for weight_decay in WEIGHT_DECAYS:
        for _ in range(_STEPS):
            _step(layer, x, y, weight_decay)
            steps.append(_measure(layer, x, y, x_val, y_val))
        candidates[weight_decay] = steps[-1]
        if best is None or steps[-1].val_loss < candidates[best[0]].val_loss:
            best = (weight_decay, layer.weight.detach().clone(), layer.bias.detach().clone(), len(steps))
    assert best is not None
    weight_decay, weight, bias, taken = best
    # Fold the standardisation into the head, so that it stays a single product.
    return Head(weight / std, bias - (weight / std) @ mean, weight_decay, candidates, steps[:taken])


def _step(layer: nn.Linear, x: Tensor, y: Tensor, weight_decay: float) -> None:
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(layer(x), y) + 0.5 * weight_decay * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _measure(layer: nn.Linear, x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> EpochMetrics:
    with torch.no_grad():
        logits, val_logits = layer(x), layer(x_val)
        return EpochMetrics(
            functional.cross_entropy(logits, y).item(),
            (logits.argmax(1) == y).float().mean().item(),
            functional.cross_entropy(val_logits, y_val).item(),
            (val_logits.argmax(1) == y_val).float().mean().item(),
        )
