import torch

from influence.stability import sign_agreement


def test_agreement_is_the_share_of_checkpoints_on_the_side_of_their_sum() -> None:
    looks = torch.tensor([[1.0, -1.0, 3.0, 0.0, 0.0], [2.0, 2.0, -1.0, 0.0, 1.0], [1.0, -3.0, -1.0, 0.0, 1.0]])
    torch.testing.assert_close(sign_agreement(looks), torch.tensor([3.0, 2.0, 1.0, 3.0, 2.0]).double() / 3)


def test_one_checkpoint_agrees_with_itself() -> None:
    assert sign_agreement(torch.tensor([[1.0, -2.0, 0.0]])).tolist() == [1.0, 1.0, 1.0]
