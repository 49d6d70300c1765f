"""One cluster for all tests of this folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster_under_test import Cluster, small_package, started_cluster
from maas_package.package import Package


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with started_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Package]:
    folder = tmp_path_factory.mktemp("packages")
    return [small_package(folder / str(seed), seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def reviews(cluster: Cluster, packages: list[Package]) -> str:
    """The deployment `reviews` of the model `reviews`, version 1; a second version is registered."""
    for package in packages:
        cluster.maas("models", "push", "reviews", str(package.folder))
    cluster.maas("deploy", "reviews", "reviews@1")
    return "reviews"
