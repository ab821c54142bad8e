import pytest
import torch
import torch.nn.functional as F

from tlx.errors import UserError
from tlx.models.outputs import num_outputs, predicted, probabilities, sample_losses, target_classes


@pytest.mark.parametrize(("width", "classes"), [(1, 2), (2, 2), (5, 5)])
def test_losses_are_cross_entropies_of_the_probabilities(width: int, classes: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, width, generator=random)
    soft = torch.rand(8, classes, generator=random)
    soft /= soft.sum(1, keepdim=True)
    expected = -(soft.double() * probabilities(logits).log()).sum(1)
    torch.testing.assert_close(sample_losses(logits, soft).double(), expected, atol=1e-6, rtol=1e-5)
    hard = torch.arange(8) % classes
    vectors = F.one_hot(hard, classes).float()
    torch.testing.assert_close(sample_losses(logits, hard), sample_losses(logits, vectors))
    assert sample_losses(logits.bfloat16(), vectors).dtype == torch.float32


def test_the_class_of_a_target() -> None:
    assert target_classes(torch.tensor([2, 0])).tolist() == [2, 0]
    assert target_classes(torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]])).tolist() == [1, 0]


def test_the_predicted_class_is_the_likeliest() -> None:
    for width in (1, 2, 5):
        logits = torch.randn(20, width, generator=torch.Generator().manual_seed(1))
        assert torch.equal(predicted(logits), probabilities(logits).argmax(1))


def test_one_logit_is_for_two_classes() -> None:
    assert (num_outputs("binary", 2), num_outputs("cross_entropy", 2)) == (1, 2)
    with pytest.raises(UserError, match="loss=binary is for 2 classes, not 3"):
        num_outputs("binary", 3)
