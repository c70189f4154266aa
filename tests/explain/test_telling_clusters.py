"""Telling clusters: what follows the image and hangs together, and no two alike."""

import torch

from gift_vit.explain.select import telling_clusters
from tests.explain.conftest import noise


def blob(row: int, column: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)


def test_an_object_that_moves_comes_before_noise_and_before_a_fixed_place() -> None:
    maps = 0.01 * noise(3, 4, 8, 8)
    maps[:, 0] += noise(3, 8, 8, seed=1)
    maps[:, 1] += 40 * blob(1, 1)  # the same in every image, and far stronger
    maps[:, 2] += torch.stack([blob(1, 2), blob(5, 5), blob(2, 6)])
    assert telling_clusters(maps, 1) == [2]
    assert telling_clusters(maps * torch.tensor([9.0, 0.1, 0.2, 50])[:, None, None] + 3, 1) == [2]


def test_neither_a_copy_nor_its_negative_comes_twice() -> None:
    first, second = torch.stack([blob(1, 2), blob(5, 5)]), torch.stack([blob(6, 1), blob(2, 6)])
    maps = torch.stack([first, 2 - 3 * first, 0.9 * first, second + 0.2 * noise(2, 8, 8)], 1)
    assert set(telling_clusters(maps, 2)) in [{index, 3} for index in range(3)]


def test_of_one_image_coherence_decides() -> None:
    maps = torch.stack([noise(8, 8), blob(3, 3), noise(8, 8, seed=2)]).unsqueeze(0)
    assert telling_clusters(maps, 2)[0] == 1


def test_constant_maps_come_last_and_none_twice() -> None:
    maps = torch.stack([torch.full((8, 8), 0.1), blob(2, 2), torch.zeros(8, 8)]).unsqueeze(0)
    assert telling_clusters(maps, 9) == [1, 0, 2]
    assert telling_clusters(torch.full((3, 2, 4, 4), -7.3), 6) == [0, 1]
    assert len(set(telling_clusters(noise(2, 20, 4, 4)))) == 6
