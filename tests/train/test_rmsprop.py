import torch
from torch import nn

from stdenoise.train.rmsprop import RMSprop


def test_equals_torch_at_the_constants_of_keras():
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(7, 5, generator=draw, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = RMSprop([ours], 1e-2, 0.1)
    reference = torch.optim.RMSprop([theirs], lr=1e-2, alpha=0.9, eps=1e-7, weight_decay=0.1)
    for step in range(40):
        # From far below epsilon, where its place shows, to far above.
        ours.grad = torch.randn(7, 5, generator=draw, dtype=torch.float64) * 10.0 ** (step % 10 - 9)
        theirs.grad = ours.grad.clone()
        if step == 20:
            for optimizer in (mine, reference):
                optimizer.param_groups[0]["lr"] *= 0.1
        mine.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert mine.param_groups[0]["lr"] == 1e-3
    assert (ours - start).abs().min() > 1e-3
