import torch
import torch.nn.functional as F


def test_the_step_descends_the_cross_entropy_of_the_retain_set(
    classification, tensors, gradient, step_gradient
):
    x, y = tensors(classification, "retain")
    model = classification.target
    found = step_gradient(classification, "fine-tune")
    for name, value in gradient(model, F.cross_entropy(model(x), y)).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)
