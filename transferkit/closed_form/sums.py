"""Sums over pictures of features, targets and their products: all that a solve has to know.

They can be added: those of two processes, or of two runs, are the sums over all their pictures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from transferkit import processes
from transferkit.errors import UserError

ROWS = 1024
"""Pictures that are turned to float64 at a time."""


@dataclass(frozen=True)
class Sums:
    """Sums in float64 over pictures with features (D,) and targets (K,), each by its weight.

    pictures: their number (); weight: sum of their weights (). features: (D,). products: (D, D) of
    features by features. targets: (K,). crossed: (D, K) of features by targets.
    """

    pictures: Tensor
    weight: Tensor
    features: Tensor
    products: Tensor
    targets: Tensor
    crossed: Tensor

    @staticmethod
    def empty(num_features: int, num_targets: int) -> "Sums":
        """Return the sums over no pictures."""
        sizes = [(), (), (num_features,), (num_features, num_features)]
        sizes += [(num_targets,), (num_features, num_targets)]
        return Sums(*(torch.zeros(size, dtype=torch.float64) for size in sizes))

    def add_(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add pictures, in place. features: (N, D). targets: (N, K). weights: (N,), else 1 each.

        Raises UserError for features that are not finite numbers.
        """
        for start in range(0, len(features), ROWS):
            part = slice(start, start + ROWS)
            x, y = finite(features[part]), targets[part].double()
            w = torch.ones(len(x)).double() if weights is None else weights[part].double()
            self.pictures.add_(len(x))
            self.weight.add_(w.sum())
            self.features.add_(w @ x)
            self.targets.add_(w @ y)
            weighted = (x * w[:, None]).T
            self.products.addmm_(weighted, x)
            self.crossed.addmm_(weighted, y)

    def __add__(self, other: "Sums") -> "Sums":
        """Return the sums over the pictures of both, which have the same features and targets."""
        names = [field.name for field in fields(self)]
        return Sums(*(getattr(self, name) + getattr(other, name) for name in names))

    def over_processes_(self) -> "Sums":
        """Replace the sums by those over all processes' pictures; return them."""
        for value in self.tensors().values():
            processes.sum_(value)
        return self

    def of_columns(self, columns: slice) -> "Sums":
        """Return the sums of some of the features."""
        products, crossed = self.products[columns, columns], self.crossed[columns]
        features = self.features[columns]
        return Sums(self.pictures, self.weight, features, products, self.targets, crossed)

    def of_classes(self, places: Sequence[int], num_targets: int) -> "Sums":
        """Return the sums with target k at `places[k]` of `num_targets`; the others are 0."""
        targets = self.targets.new_zeros(num_targets)
        crossed = self.crossed.new_zeros(len(self.crossed), num_targets)
        targets[list(places)] = self.targets
        crossed[:, list(places)] = self.crossed
        kept = (self.pictures, self.weight, self.features, self.products)
        return Sums(*kept, targets, crossed)

    def tensors(self) -> dict[str, Tensor]:
        """Return all sums by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def packed(self) -> dict[str, Tensor]:
        """Return all sums by name, to be written to a file: of the products, half."""
        rows, columns = torch.triu_indices(*self.products.shape)
        return self.tensors() | {"products": self.products[rows, columns]}

    @staticmethod
    def unpacked(tensors: Mapping[str, Tensor]) -> "Sums":
        """Read what `packed` gave. Raises ValueError or LookupError for what does not fit."""
        size = len(tensors["features"])
        products = torch.zeros(size, size, dtype=torch.float64)
        rows, columns = torch.triu_indices(size, size)
        if len(rows) != len(tensors["products"]):
            raise ValueError("sums do not fit together: products")
        products[rows, columns] = products[columns, rows] = tensors["products"]
        return Sums.from_tensors({**tensors, "products": products})

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "Sums":
        """Read what `tensors` gave. Raises ValueError for what does not fit together."""
        found = Sums(**{field.name: tensors[field.name] for field in fields(Sums)})
        wanted = Sums.empty(len(found.features), len(found.targets)).tensors()
        misfits = [
            name
            for name, value in found.tensors().items()
            if value.shape != wanted[name].shape or value.dtype != torch.float64
        ]
        if misfits:
            raise ValueError(f"sums do not fit together: {', '.join(misfits)}")
        return found


def sum_up(features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Sums:
    """Return the sums over pictures, see `Sums.add_`."""
    sums = Sums.empty(features.shape[1], targets.shape[1])
    sums.add_(features, targets, weights)
    return sums


def finite(features: Tensor) -> Tensor:
    """Return features in float64. Raises UserError where they are not finite numbers."""
    values = features.double()
    if not torch.isfinite(values).all():
        rows = int((~torch.isfinite(values)).any(1).sum())
        raise UserError(
            f"the backbone's features of {rows} of {len(values)} pictures are not finite numbers",
            "a linear head cannot be solved from them",
            "check the file of its weights, or start from other weights",
        )
    return values


def one_hot(labels: Iterable[int] | Tensor, num_classes: int) -> Tensor:
    """Return targets (N, K) float32 of labels (N,): 1 for the label, else 0."""
    return torch.nn.functional.one_hot(torch.as_tensor(labels).long(), num_classes).float()
