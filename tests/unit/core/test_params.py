import torch

from maml_dist.core.params import flatten, layout, unflatten


def test_a_dict_survives_the_way_through_one_vector():
    params = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7.0), "c": torch.ones(2)}
    vector = flatten(params)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 1, 1]
    back = unflatten(vector, layout(params))
    assert list(back) == ["a", "b", "c"]
    assert all(torch.equal(back[name], params[name]) for name in params)


def test_gradients_flow_back_into_the_one_vector():
    vector = torch.arange(3.0, requires_grad=True)
    params = unflatten(vector, layout({"a": torch.zeros(2), "b": torch.zeros(())}))
    (params["a"].sum() * params["b"]).backward()
    assert vector.grad.tolist() == [2, 2, 1]
