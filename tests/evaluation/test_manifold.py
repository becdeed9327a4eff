"""Precision and recall against their definition, pair by pair in float64, and against torch-fidelity."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from minidiff import precision_recall
from minidiff.evaluation.manifold import _Comparison


def by_definition(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    def distances(x: Tensor, y: Tensor) -> Tensor:
        return (x.double()[:, None] - y.double()[None]).square().sum(2)

    def share_inside(points: Tensor, centres: Tensor) -> float:
        radii = []
        for i, row in enumerate(distances(centres, centres)):
            others = torch.cat([row[:i], row[i + 1 :]])
            radii.append(others.sort().values[k - 1])
        return (distances(points, centres) <= torch.stack(radii)).any(1).double().mean().item()

    return share_inside(fake, real), share_inside(real, fake)


def test_a_line_can_be_done_by_hand():
    """k = 1: balls of 0, 1, 3 around 0, 1, 3 reach 1, 1, 2 far; of the fakes 5 is on a surface and 5.5 outside."""
    real = torch.tensor([[0.0], [1.0], [3.0]])
    fake = torch.tensor([[5.0], [5.5], [0.2], [-0.5], [-1.25]])
    assert precision_recall(real, fake, k=1) == (0.6, pytest.approx(1 / 3))
    # to the second neighbour: 3, 2, 3 far around real; 0.75 and more around fake, where 5.3 is next after 0.5
    assert precision_recall(real, fake, k=2) == by_definition(real, fake, 2)


def test_collapse_costs_recall_and_noise_costs_precision(generator):
    real = torch.randn(300, 3, generator=generator)
    precision, recall = precision_recall(real, real[:1] + 1e-3 * torch.randn(300, 3, generator=generator))
    assert precision == 1 and recall < 0.1
    precision, recall = precision_recall(real, 3 * torch.randn(300, 3, generator=generator))
    assert precision < 0.5 and recall > 0.9


KINDS = ["normal", "lattice", "copies", "near copies far from 0", "narrow places far apart", "one point"]


def sets(kind: str, n: int, m: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    real, fake = torch.randn(n, dim, generator=generator), 1.3 * torch.randn(m, dim, generator=generator)
    if kind == "lattice":  # most distances are tied
        real, fake = real.round(), fake.round()
    elif kind == "copies":
        real, fake = torch.cat([real, real[:5], real[:3]]), torch.cat([fake[: m // 2], real[:5], real[:5]])
    elif kind == "near copies far from 0":  # they differ in the last bits of float32
        real, fake = real + 1e4, fake + 1e4
        fake = torch.cat([fake[: m // 2], real[:5], real[:5] * (1 + 2**-23)])
    elif kind == "narrow places far apart":  # products of matrices hardly see the distances within one
        real = 0.01 * real + 1e4 * torch.randint(0, 2, (n, 1), generator=generator)
        fake = torch.cat([0.01 * fake[: m // 2], real[:5] * (1 + 2**-23), real[5:6]])
    elif kind == "one point":
        fake = real[:1].expand(m, dim).contiguous()
    return real, fake


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(6, 40),
    m=st.integers(6, 40),
    dim=st.integers(1, 6),
    k=st.integers(1, 5),
    block=st.sampled_from([3, 16, 64]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_blocks_give_what_the_definition_gives_for_ties_and_near_copies_too(kind, n, m, dim, k, block, dtype, seed):
    real, fake = sets(kind, n, m, dim, torch.Generator().manual_seed(seed))
    real, fake = real.to(dtype), fake.to(dtype)
    assert precision_recall(real, fake, k, block) == by_definition(real, fake, k)


@pytest.mark.parametrize("kind", KINDS)
def test_many_dimensions_round_more_and_agree_too(kind, generator):
    real, fake = sets(kind, 120, 90, 500, generator)
    assert precision_recall(real, fake, block=50) == by_definition(real, fake, 3)


def test_a_sphere_through_copies_is_decided_by_exact_distances(generator):
    """Radii are 0 where k others are equal: only an equal fake is inside, and rounding must not let near ones in."""
    centres = torch.randn(20, 64, generator=generator, dtype=torch.float64) + 50
    real = centres.repeat_interleave(4, 0)
    near = centres + 1e-8 * torch.randn(20, 64, generator=generator, dtype=torch.float64)
    assert (near != centres).any(1).all()
    assert precision_recall(real, torch.cat([centres, near])) == (0.5, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scale", "offset", "far"), [(1, 0, 0), (1e-6, 1, 0), (1e3, -1e5, 0), (0.01, 0, 1e5)])
def test_the_bound_on_rounding_holds(scale, offset, far, dtype, generator):
    """Also where one vector draws the centre far away from the others."""
    x, y = (scale * torch.randn(12, 40, generator=generator, dtype=torch.float64) + offset for _ in range(2))
    x, y = x.to(dtype), y.to(dtype)
    y[0], y[5] = x[0], y[5] + far
    compare = _Comparison(x, y, 3, 5)
    found = compare.squared(x, y)
    for i, j in ((0, 0), (1, 2), (3, 3), (11, 7), (2, 5)):
        pairs = zip(x[i].tolist(), y[j].tolist(), strict=True)
        exact = float(sum((Fraction(u) - Fraction(v)) ** 2 for u, v in pairs))
        assert abs(found[i, j].item() - exact) <= compare.slack / 2


@pytest.mark.parametrize("error", [-0.5, 0, 0.5])
def test_exact_answers_do_not_hang_on_how_radii_were_rounded(error, generator):
    points, x = torch.randn(2, 30, 4, generator=generator).round()
    compare = _Comparison(x, points, 3, 8)
    radii = compare.radii(x) + error * compare.slack
    d = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    exact = d.sort().values[:, 2]
    assert torch.equal(compare._exact_radii(x, torch.arange(30), radii), exact)
    assert compare.settle(points, x, radii).double().mean().item() == by_definition(x, points, 3)[0]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_torch_fidelity(k, dtype, generator):
    """Whose first set is the fake one, and which averages in float32."""
    real = torch.randn(400, 16, generator=generator).to(dtype)
    fake = (0.9 * torch.randn(300, 16, generator=generator) + 0.2).to(dtype)
    for save_cpu_ram in (False, True):
        theirs = prc_features_to_metric(
            fake, real, prc_neighborhood=k, prc_batch_size=128, save_cpu_ram=save_cpu_ram, verbose=False
        )
        expected = pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)
        assert precision_recall(real, fake, k) == expected
        assert 0.1 < expected.expected[0] < 1 and expected.expected[0] != expected.expected[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: precision_recall(x, x[:3]), "fake has n=3: k=3 needs at least 4 vectors"),
        (lambda x: precision_recall(x[:5], x, 5), "real has n=5: k=5 needs at least 6 vectors"),
        (lambda x: precision_recall(x, x.log()), r"fake: 1 of 9 vectors hold NaN or infinity"),
        (lambda x: precision_recall(x, x[:, :2]), "real has 3 dimensions, fake 2"),
        (lambda x: precision_recall(x, x, 0), "k=0"),
        (lambda x: precision_recall(x, x, 3, 0), "block=0"),
    ],
)
def test_what_has_no_answer_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.arange(27.0).reshape(9, 3))
