"""How many bytes of the tensors that pass somewhere are alive at once."""

import weakref

from torch import Tensor


class Alive:
    """Sees tensors pass; ``most`` is the largest sum of those that lived at once.

    Letters: none; whatever shapes pass.
    """

    def __init__(self) -> None:
        self.most = self.largest = 0
        self._seen: list[tuple[weakref.ref[Tensor], int]] = []

    def see(self, tensor: Tensor) -> Tensor:
        self._seen = [(ref, size) for ref, size in self._seen if ref() is not None]
        self._seen.append((weakref.ref(tensor), tensor.nbytes))
        self.largest = max(self.largest, tensor.nbytes)
        self.most = max(self.most, sum(size for _, size in self._seen))
        return tensor
