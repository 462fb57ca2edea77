"""Random numbers of stages: the same whatever the number of stages; what could not be repeated is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain.errors import UsageError, UserCodeError
from hvtrain.hybrid.torch.pipeline import Microbatch
from hvtrain.hybrid.torch.randomness import Dice, check_generators, mixed
from tests.support.stages import DATA, SAMPLES, SCHEDULES, loss, piped, same, trained


class Noisy(nn.Module):
    """Draws in all ways that models do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        y = F.dropout(self.layer(x), 0.5, self.training) + torch.rand_like(x) + torch.randn(8) + torch.rand(x.shape)
        y = y[:, torch.randperm(8)] + torch.bernoulli(torch.full((8,), 0.5)) + torch.randint(3, (8,))
        return y + torch.randn_like(y) + torch.distributions.Normal(0.0, 1.0).rsample() + F.rrelu(y, training=True)


def noisy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), Noisy(), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh(), Noisy(),
                         nn.Linear(8, 3))


def random_loss(outputs):
    return F.dropout(outputs, 0.5).pow(2).sum() / SAMPLES


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_random_numbers_do_not_depend_on_the_stages(stages):
    before = torch.default_generator.get_state()
    expected = trained("", 1, 4, model=noisy(), losses=random_loss)
    for schedule in SCHEDULES:
        for recompute in (False, True):
            same(trained("", stages, 4, model=noisy(), losses=random_loss, schedule=schedule, recompute=recompute), expected)
    torch.manual_seed(0), noisy()
    after = torch.default_generator.get_state()
    torch.default_generator.set_state(before)
    noisy()
    assert torch.equal(torch.default_generator.get_state(), after), "training has drawn from the default generator"
    assert not torch.equal(trained("", stages, 4, model=noisy(), seed=4)["0.weight"], expected["0.weight"])


def test_every_micro_batch_and_every_layer_has_random_numbers_of_its_own():
    masks = []

    class Mask(nn.Module):
        def forward(self, x):
            mask = F.dropout(torch.ones(64), 0.5)
            masks.append(tuple(mask.tolist()))
            return x

    model = nn.Sequential(nn.Linear(4, 8), Mask(), Mask(), nn.Linear(8, 3))
    pipeline = piped(model, 2)
    masks.clear()
    for seed in (1, 2):
        pipeline.run([Microbatch((part,), loss) for part in DATA.tensor_split(3)], seed=seed)
    assert len(masks) == len(set(masks)) == 12
    assert mixed(1, 2, 3) != mixed(1, 3, 2) and mixed(5) != mixed(5, 0)


def test_a_generator_of_ones_own_is_left_alone():
    own = torch.Generator().manual_seed(5)
    with Dice().seeded(1):
        drawn = torch.rand(3, generator=own)
    assert torch.equal(drawn, torch.rand(3, generator=own.manual_seed(5)))


class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + torch.rand(1) if self.calls > 3 else x


def test_a_layer_that_draws_in_some_steps_only_is_refused():
    pipeline = piped(nn.Sequential(nn.Linear(4, 4), Sometimes()), 2)
    pipeline.run([Microbatch((DATA,), loss)])
    with pytest.raises(UserCodeError, match="some steps only"):
        pipeline.run([Microbatch((part,), loss) for part in DATA.tensor_split(4)])


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.layer, self.reentrant = nn.Linear(4, 4), reentrant

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        return checkpoint(lambda x: F.dropout(self.layer(x), 0.5), x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_within_a_layer_that_draws_is_refused(reentrant):
    """Its second forward pass runs within backward, where it would draw other numbers unnoticed."""
    with pytest.raises(UserCodeError, match="hybrid.recompute"):
        piped(nn.Sequential(nn.Linear(4, 4), Checkpointed(reentrant)), 2)


def test_two_stages_of_one_gpu_do_not_draw_from_its_generator_together():
    """A GPU's dropout takes no generator of the stage's own: one stage would seed it while the other draws."""
    check_generators([torch.device("cpu"), torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)])
    with pytest.raises(UsageError, match="several stages onto cuda:0 that draw random numbers"):
        check_generators([torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cuda", 0)])


def test_only_stages_that_draw_count_as_such():
    """The number after a stage's last link is the next stage's first; only in the last stage it stands for the loss."""
    made = piped(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)), 2)
    assert [stage.randomness.links for stage in made._stages] == [frozenset(), {2}]
