"""The linear head on frozen embeddings: learned in seconds, its regularisation chosen on val."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from catdog_pyfunc.preprocessing import Floats

WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_STEPS = 4  # of L-BFGS, for each weight decay; each begins where the last one ended
_ITERATIONS = 15  # within a step, at most


@dataclass(frozen=True)
class EpochMetrics:
    """How well a head does on train and val: mean cross-entropy (nats) and accuracy."""

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Head:
    """A learned head.

    Attributes:
        weight: (C, D), on embeddings as they are.
        bias: (C,)
        weight_decay: What val chose, of `WEIGHT_DECAYS`.
        candidates: Weight decay → scores after its last step.
        steps: Scores after each step on the way to the chosen head.
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
    """Fit a multinomial logistic regression by L-BFGS, from strong to weak weight decay; keep the least loss on val.

    Nothing is random: it starts at zero.

    Args:
        train: Embeddings (N, D).
        train_labels: Class indices, N of them.
        val: Embeddings (M, D).
        val_labels: Class indices, M of them.
        n_classes: C.

    Returns:
        The head.
    """
    mean, std = torch.from_numpy(train).mean(0), torch.from_numpy(train).std(0)
    std = std.clamp_min(max(0.01 * std.mean().item(), 1e-6))  # nearly dead features would get weights that drown in rounding
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
            steps.append(_score(layer, x, y, x_val, y_val))
        candidates[weight_decay] = steps[-1]
        if best is None or steps[-1].val_loss < candidates[best[0]].val_loss:
            best = (weight_decay, layer.weight.detach().clone(), layer.bias.detach().clone(), len(steps))
    assert best is not None
    weight_decay, weight, bias, taken = best
    # Back to embeddings as they are: the head stays one product.
    return Head(weight / std, bias - (weight / std) @ mean, weight_decay, candidates, steps[:taken])


def _step(layer: nn.Linear, x: Tensor, y: Tensor, weight_decay: float) -> None:
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(layer(x), y) + 0.5 * weight_decay * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _score(layer: nn.Linear, x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> EpochMetrics:
    with torch.no_grad():
        logits, val_logits = layer(x), layer(x_val)
        return EpochMetrics(
            functional.cross_entropy(logits, y).item(),
            (logits.argmax(1) == y).float().mean().item(),
            functional.cross_entropy(val_logits, y_val).item(),
            (val_logits.argmax(1) == y_val).float().mean().item(),
        )
