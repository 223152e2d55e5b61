"""Embeddings of ids, then a multi-layer perceptron: a small recommender."""

from collections.abc import Sequence

from torch import Tensor, nn

from maml_dist.core.validation import check_layers
from maml_dist.models.mlp import MLP


class EmbeddingMLP(nn.Module):
    """x [n, ids], whole numbers from 0 -> [n, outputs]; one table of `rows` ids serves them all."""

    def __init__(
        self,
        rows: int,
        dim: int = 16,
        *,
        ids: int = 1,  # of an example
        outputs: int = 1,
        hidden: Sequence[int] = (32,),
    ) -> None:
        super().__init__()
        check_layers("model", rows=rows, dim=dim)
        check_layers("model", ids=ids)
        self.embedding = nn.Embedding(rows, dim)
        self.mlp = MLP(ids * dim, outputs, hidden=hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, ids] -> [n, outputs]."""
        outputs: Tensor = self.mlp(self.embedding(x.long()))
        return outputs
