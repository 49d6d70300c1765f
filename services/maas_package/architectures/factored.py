"""Linear layers of a rank that a configuration states: two thinner ones, one behind the other."""

from collections.abc import Mapping

from torch import nn

from maas_package.architectures import ArchitectureConfigInvalid


def factor_linears(module: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put two layers, inputs to rank and rank to outputs, in the place of each named nn.Linear.

    The weights are fresh ones. Raises ArchitectureConfigInvalid for a name that is no linear layer, or a rank that it
    cannot have.
    """
    linears = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    for name, rank in ranks.items():
        linear = linears.get(name)
        if linear is None:
            raise ArchitectureConfigInvalid(f"ranks: there is no linear layer {name[:200]!r}")
        most = min(linear.in_features, linear.out_features)
        if type(rank) is not int or not 1 <= rank <= most:
            raise ArchitectureConfigInvalid(f"the rank of {name} is a whole number from 1 to {most}, not {rank!r}")
        parent, _, child = name.rpartition(".")
        factors = nn.Sequential(
            nn.Linear(linear.in_features, rank, bias=False),
            nn.Linear(rank, linear.out_features, bias=linear.bias is not None),
        )
        setattr(module.get_submodule(parent), child, factors)
