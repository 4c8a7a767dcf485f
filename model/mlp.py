"""Architecture of the multilayer perceptron with dropout (d2l.ai, "Dropout")."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Architecture of a multilayer perceptron with dropout after each hidden layer.

    The defaults are those of the d2l.ai chapter "Dropout".

    Raises:
        ValueError: a size is below 1, a probability lies outside [0, 1], or there is not one for each hidden layer.
    """

    image: tuple[int, ...] = (1, 28, 28)
    hidden: tuple[int, ...] = (256, 256)
    dropout: tuple[float, ...] = (0.2, 0.5)
    classes: int = 10

    def __post_init__(self) -> None:
        sizes = (*self.image, *self.hidden, self.classes)
        if not all(type(size) is int and size >= 1 for size in sizes):
            raise ValueError(f"sizes must be whole numbers of at least 1, got {self}")
        if len(self.dropout) != len(self.hidden):
            raise ValueError(f"one dropout probability for each hidden layer: got {self.dropout} for {self.hidden}")
        if not all(0 <= p <= 1 for p in self.dropout):
            raise ValueError(f"dropout probabilities must be in [0, 1], got {self.dropout}")

    def tensors(self) -> dict[str, str]:
        """Dtype and shape of each parameter, by its name in the state dict."""
        widths = (math.prod(self.image), *self.hidden, self.classes)
        names = [*(f"hidden{number}" for number in range(1, len(self.hidden) + 1)), "logits"]
        types: dict[str, str] = {}
        for name, inputs, outputs in zip(names, widths, widths[1:], strict=False):
            types |= {f"{name}.weight": f"float32[{outputs}, {inputs}]", f"{name}.bias": f"float32[{outputs}]"}
        return types
