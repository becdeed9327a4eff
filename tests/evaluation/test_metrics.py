"""The metrics against closed forms, their definitions in exact arithmetic, and torch-fidelity on the same features."""

import subprocess
import sys
from fractions import Fraction
from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kernel_mmd, kid_features_to_metric

from minidiff import Moments, frechet_distance, inception_score, kernel_distance
from minidiff.evaluation import metrics
from minidiff.evaluation.metrics import mmd2


def vectors(n: int, generator: torch.Generator, dim: int = 5) -> Tensor:
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix + torch.arange(float(dim))


# ---- moments ----


def exact_moments(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    rows = [[Fraction(value) for value in row] for row in x.tolist()]
    n, dim = x.shape
    mean = [sum(row[i] for row in rows) / n for i in range(dim)]
    covariance = [
        [sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows) / (n - 1) for j in range(dim)] for i in range(dim)
    ]
    return np.array(mean, dtype=float), np.array(covariance, dtype=float)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0, 1000])
def test_moments_are_those_of_exact_arithmetic_far_from_zero_too(dtype, offset, generator, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 16)
    x = (vectors(50, generator, 3) + offset).to(dtype)
    moments, (mean, covariance) = Moments.of(x), exact_moments(x)
    assert moments.n == 50 and moments.mean.dtype == moments.covariance.dtype == torch.float64
    np.testing.assert_allclose(moments.mean.numpy(), mean, rtol=1e-14)
    np.testing.assert_allclose(moments.covariance.numpy(), covariance, rtol=0, atol=1e-12 * covariance.max())


@given(
    sizes=st.lists(st.integers(0, 30), min_size=2, max_size=6),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
)
def test_shards_in_any_order_and_grouping_equal_one_pass(sizes, order, seed):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * vectors(sum(sizes) + 2, generator) + 100
    parts = [Moments.of(part) for part in x.split([2, *sizes])]
    while len(parts) > 1:
        order.shuffle(parts)
        parts.append(parts.pop().merge(parts.pop()))
    streamed = Moments(5)
    for part in x.split([*sizes, 2]):
        streamed.update(part)
    for moments in (parts[0], streamed):
        assert moments.n == len(x)
        torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-12, atol=0)
        covariance = torch.cov(x.T)
        torch.testing.assert_close(moments.covariance, covariance, rtol=0, atol=1e-12 * covariance.max().item())
        assert torch.equal(moments.covariance, moments.covariance.T)


def test_merging_leaves_both_parts_as_they_were(generator):
    a, b = Moments.of(vectors(20, generator)), Moments.of(vectors(30, generator))
    before = [(m.n, m.mean.clone(), m.covariance) for m in (a, b)]
    a.merge(b).update(vectors(10, generator))
    for moments, (n, mean, covariance) in zip((a, b), before, strict=True):
        assert moments.n == n and torch.equal(moments.mean, mean) and torch.equal(moments.covariance, covariance)


def test_moments_from_a_file_go_on_where_they_were(generator):
    x = vectors(80, generator)
    first = Moments.of(x[:50])
    mu, sigma = first.mean.numpy(), first.covariance.numpy()
    given = mu.copy(), sigma.copy()
    read = Moments.from_arrays(*given, 50)
    for array in given:
        array[:] = 0  # what was read is no view of it
    torch.testing.assert_close(read.mean, first.mean, rtol=0, atol=0)
    torch.testing.assert_close(read.covariance, first.covariance, rtol=1e-14, atol=0)
    read.update(x[50:])
    torch.testing.assert_close(read.covariance, Moments.of(x).covariance, rtol=0, atol=1e-12 * sigma.max())

    unknown = Moments.from_arrays(mu, sigma)
    assert unknown.n is None
    np.testing.assert_array_equal(unknown.covariance, sigma)
    assert frechet_distance(unknown, x[50:]) == pytest.approx(frechet_distance(x[:50], x[50:]), rel=1e-12)
    for join in (lambda: unknown.merge(first), lambda: first.merge(unknown), lambda: unknown.update(x)):
        with pytest.raises(ValueError, match="unknown number"):
            join()


def test_vectors_that_are_refused_leave_no_trace(generator, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 16)
    x = vectors(50, generator)
    moments, bad = Moments.of(x), vectors(50, generator)
    bad[[20, 20, 44], [0, 1, 3]] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    with pytest.raises(ValueError, match="features: 2 of 50 vectors hold NaN or infinity"):
        moments.update(bad)
    assert moments.n == 50 and torch.equal(moments.covariance, Moments.of(x).covariance)


MEMORY = """
import resource, torch
from minidiff import Moments, precision_recall
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
warm = torch.zeros(10, 2048)
Moments.of(warm), precision_recall(warm, warm)
x = torch.empty(8192, 64).uniform_()
before = peak()
precision_recall(x, x.flip(0), block=512)
print(peak() - before)
x = torch.empty(12288, 2048).uniform_()
before = peak()
Moments.of(x)
print(peak() - before)
"""


def test_working_memory_is_that_of_a_block_of_vectors_and_not_of_all():
    """100 MB beside the features: with 50,000 × 2,048 of them (410 MB) and PyTorch itself far below 1.5 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    manifold, moments = map(float, done.stdout.split())
    assert moments < 100  # all 12,288 in float64 are 201 MB
    assert manifold < 50  # all pairs of 8,192 in float64 are 537 MB


# ---- Fréchet distance ----


def test_it_is_the_formula_with_a_matrix_square_root(generator):
    a, b = vectors(60, generator).numpy(), vectors(40, generator).numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)


def test_a_shift_counts_its_square_and_a_scale_the_difference_of_deviations(generator):
    a = vectors(50, generator)
    trace = torch.cov(a.T).trace().item()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * trace)
    shift = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    assert frechet_distance(a, a + shift) == pytest.approx(5.25, abs=1e-12 * trace)
    scaled = a.mean(0) + 3 * (a - a.mean(0))
    assert frechet_distance(a, scaled) == pytest.approx(4 * trace, rel=1e-12)


def test_singular_covariances_and_single_dimensions_are_no_obstacle():
    line = torch.linspace(0, 1, 10).double()[:, None]
    assert frechet_distance(line, line + 2) == pytest.approx(4)
    flat = torch.cat([line, torch.zeros_like(line)], dim=1)
    assert frechet_distance(flat, flat.flip(1)) == pytest.approx(2 * 0.25 + 2 * line.var().item())
    point = torch.ones(3, 2, dtype=torch.float64)
    assert frechet_distance(point, flat) == pytest.approx(0.25 + 1 + line.var().item())
    assert frechet_distance(point, point + 1) == 2


def turned(diagonal_blocks: Tensor, generator: torch.Generator) -> Tensor:
    """The matrix in another orthonormal basis: two reflections of it."""
    s = diagonal_blocks
    for _ in range(2):
        v = torch.nn.functional.normalize(torch.randn(len(s), generator=generator, dtype=torch.float64), dim=0)
        w = s @ v
        s = s - 2 * torch.outer(v, w) - 2 * torch.outer(w, v) + 4 * (v @ w) * torch.outer(v, v)
    return (s + s.T) / 2


def centred(sigma: Tensor) -> Moments:
    return Moments.from_arrays(torch.zeros(len(sigma), dtype=torch.float64), sigma, 1000)


@pytest.mark.parametrize("case", ["ten decades", "singular", "nearly equal", "equal"])
def test_commuting_covariances_differ_by_the_roots_of_their_eigenvalues(case, generator):
    a = 10 ** torch.linspace(0, -10, 300, dtype=torch.float64)
    if case == "ten decades":
        b = 3 * a.flip(0)
    elif case == "singular":  # of ranks 200 and 180, with 80 directions in common
        a = torch.rand(300, generator=generator, dtype=torch.float64) + 0.1
        b = torch.rand(300, generator=generator, dtype=torch.float64) + 0.1
        a[200:], b[:120] = 0, 0
    elif case == "nearly equal":
        b = a * (1 + 1e-3 * torch.randn(300, generator=generator, dtype=torch.float64))
    else:
        b = a
    basis = generator.get_state()
    sigma_a = turned(a.diag(), generator)
    sigma_b = turned(b.diag(), generator.set_state(basis))
    expected, traces = (a.sqrt() - b.sqrt()).square().sum().item(), (a.sum() + b.sum()).item()
    assert frechet_distance(centred(sigma_a), centred(sigma_b)) == pytest.approx(expected, rel=0, abs=1e-12 * traces)


def test_blocks_of_two_have_a_closed_form_in_2048_dimensions(generator):
    """tr (AB)^½ = (tr AB + 2 (det A det B)^½)^½ for 2 × 2; some blocks are of rank 1 or 0; A and B do not commute."""
    factors = torch.randn(2, 1024, 2, 2, generator=generator, dtype=torch.float64)
    factors[0, 100:300, :, 1] = 0  # of rank 1
    factors[1, 200:500, :, 1] = 0
    factors[0, 600:], factors[1, 500:800] = 0, 0
    a, b = factors @ factors.mT
    det = torch.linalg.det(factors).square().prod(0)
    cross = ((a * b.mT).sum((1, 2)) + 2 * det.sqrt()).clamp(min=0).sqrt().sum().item()
    traces = factors.square().sum().item()
    basis = generator.get_state()
    sigma_a = turned(torch.block_diag(*a), generator)
    sigma_b = turned(torch.block_diag(*b), generator.set_state(basis))
    assert frechet_distance(centred(sigma_a), centred(sigma_b)) == pytest.approx(traces - 2 * cross, rel=1e-11)


def test_fewer_vectors_than_dimensions_give_the_singular_values_of_their_products(generator):
    """Centred vectors are themselves a root of their covariance, so nothing need be diagonalised."""
    a, b = vectors(40, generator, 300), vectors(60, generator, 300)
    root_a, root_b = (a - a.mean(0)) / sqrt(39), (b - b.mean(0)) / sqrt(59)
    cross = torch.linalg.matrix_norm(root_a @ root_b.T, "nuc")
    squares = (a.mean(0) - b.mean(0)).square().sum() + root_a.square().sum() + root_b.square().sum()
    assert frechet_distance(a, b) == pytest.approx((squares - 2 * cross).item(), rel=1e-12)


def fidelity_fid(a: Tensor, b: Tensor) -> float:
    statistics = [fid_features_to_statistics(x) for x in (a, b)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


@pytest.mark.parametrize(("n", "tolerance"), [(500, 1e-11), (50, 1e-6)])
def test_it_equals_torch_fidelity(n, tolerance, generator):
    """Whose eigenvalues of C_a C_b keep half of the digits where the covariances are singular."""
    a, b = vectors(n, generator, 100), vectors(n + 20, generator, 100)
    assert frechet_distance(a, b) == pytest.approx(fidelity_fid(a, b), rel=tolerance)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(fidelity_fid(a.float(), b.float()), rel=1e-6)


# ---- Inception Score ----


def test_a_classifier_that_knows_nothing_scores_1_and_one_that_is_certain_the_number_of_classes(generator):
    assert inception_score(torch.zeros(100, 7)) == (pytest.approx(1, abs=1e-14), pytest.approx(0, abs=1e-14))
    certain = torch.eye(7).repeat(20, 1)
    for scale in (1e3, 1e30):  # every other probability underflows
        assert inception_score(scale * certain, splits=4) == (pytest.approx(7, rel=1e-14), pytest.approx(0, abs=1e-12))
    assert inception_score(1e3 * torch.eye(7).repeat_interleave(20, 0), splits=7)[0] == pytest.approx(1, rel=1e-14)


def test_half_certain_scores_are_the_exponential_of_the_information():
    """Two classes, images of one with probability p: exp(ln 2 − H(p))."""
    p = 0.2
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log().repeat(30, 1) + 5
    assert inception_score(logits, splits=3)[0] == pytest.approx(2 * np.exp(-entropy), rel=1e-14)


@pytest.mark.parametrize(("n", "splits"), [(100, 10), (103, 10), (57, 4), (5, 5), (20, 1)])
def test_splits_are_those_of_torch_fidelity_without_its_shuffle(n, splits, generator):
    logits = 3 * torch.randn(n, 12, generator=generator)
    theirs = isc_features_to_metric(logits, splits, shuffle=False)
    mean, deviation = inception_score(logits, splits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-14)


# ---- kernel distance ----


def test_mmd_is_the_mean_over_pairs_of_different_vectors(generator):
    x, y = (torch.randint(-3, 4, (n, 2), generator=generator).double() for n in (5, 7))
    k = lambda u, v: (Fraction(int(u @ v), 2) + 1) ** 3
    within = lambda z: (
        sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))
    )
    between = sum(k(u, v) for u in x for v in y) / (len(x) * len(y))
    assert mmd2(x, y) == pytest.approx(float(within(x) + within(y) - 2 * between), rel=1e-13)


def test_mmd_of_samples_is_on_average_that_of_the_populations(generator):
    """All samples of 2 and of 3, drawn with replacement from two populations of 3 and of 4 vectors."""
    p, q = vectors(3, generator, 2), vectors(4, generator, 2)
    estimates = [mmd2(p[list(i)], q[list(j)]) for i in product(range(3), repeat=2) for j in product(range(4), repeat=3)]
    k = lambda u, v: ((u @ v.T / 2 + 1) ** 3).mean().item()
    assert np.mean(estimates) == pytest.approx(k(p, p) + k(q, q) - 2 * k(p, q), rel=1e-12)


def test_subsets_scatter_around_the_estimate_of_the_whole_sets(generator):
    a, b = vectors(60, generator), vectors(80, generator) + 0.5
    whole = mmd2(a, b)
    deviations = []
    for size in (5, 20):
        mean, deviation = kernel_distance(a, b, generator, subsets=400, subset_size=size)
        assert abs(mean - whole) < 4.5 * deviation / sqrt(400)
        deviations.append(deviation)
    assert deviations[0] > 1.5 * deviations[1]


def test_a_subset_is_drawn_without_replacement_and_by_the_generator(generator):
    a, b = vectors(30, generator), vectors(30, generator)
    mean, deviation = kernel_distance(a, b, generator, subsets=5, subset_size=30)
    assert mean == pytest.approx(mmd2(a, b), rel=1e-12) and deviation < 1e-9 * abs(mean)
    draws = [kernel_distance(a, b, torch.Generator().manual_seed(seed), 3, 10) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][1] > 0  # and no subset like another


def test_it_equals_torch_fidelity_on_the_same_subsets(generator):
    a, b = vectors(90, generator, 30), vectors(70, generator, 30) + 1
    theirs = kid_features_to_metric(a, b, kid_subsets=7, kid_subset_size=40, rng_seed=3, verbose=False)
    rng = np.random.RandomState(3)  # as theirs
    draw = lambda x: x[torch.from_numpy(rng.choice(len(x), 40, replace=False))]
    ours = [mmd2(draw(a), draw(b)) for _ in range(7)]
    assert np.mean(ours) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    assert np.std(ours) == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-10)


def test_float32_features_are_summed_in_float64(generator):
    """torch-fidelity sums kernels in the features' own precision, so it is given float64 here."""
    a, b = vectors(200, generator, 50).float() / 4, vectors(200, generator, 50).float() / 4
    assert mmd2(a, b) == pytest.approx(kernel_mmd(a.double().numpy(), b.double().numpy()), rel=1e-11)


# ---- what is refused ----


NAN = torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [2.0, torch.inf]] * 2)
GOOD = torch.tensor([[0.0, 1.0], [3.0, 1.0], [2.0, 0.0]] * 2)
NONE = torch.Generator()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(GOOD[:1], GOOD), "a has n=1: a covariance needs at least 2 vectors"),
        (lambda: frechet_distance(GOOD, GOOD[:0]), "b has n=0: a covariance needs at least 2 vectors"),
        (lambda: frechet_distance(Moments.of(GOOD[:1]), GOOD), "at least 2 vectors: these moments are of 1"),
        (lambda: frechet_distance(GOOD, NAN), "b: 4 of 6 vectors hold NaN or infinity"),
        (lambda: frechet_distance(GOOD, torch.ones(5, 3)), "a has 2 dimensions, b 3: both need the same extractor"),
        (lambda: Moments.of(GOOD).update(torch.ones(5, 3)), "the moments has 2 dimensions, features 3"),
        (lambda: Moments.of(GOOD).merge(Moments(3)), "the moments has 2 dimensions, other 3"),
        (lambda: Moments(2).covariance, "these moments are of 0"),
        (lambda: Moments.from_arrays(np.ones(2), np.eye(3), 9), r"mu \(2,\), sigma \(3, 3\)"),
        (lambda: Moments.from_arrays(np.ones(2), np.full((2, 2), np.nan), 9), "NaN or infinity"),
        (lambda: Moments.from_arrays(np.full(2, np.inf), np.eye(2), 9), "NaN or infinity"),
        (lambda: Moments.from_arrays(np.ones(2), np.array([[1, 0.1], [0, 1]]), 9), "not symmetric"),
        (lambda: Moments.from_arrays(np.ones(2), np.eye(2), 1), "n=1: a covariance is of at least 2"),
        (
            lambda: frechet_distance(GOOD, Moments.from_arrays(np.ones(2), np.array([[1.0, 2], [2, 1]]), 9)),
            "the covariance of b is none: it has an eigenvalue of -1",
        ),
        (lambda: inception_score(GOOD), "logits has n=6: 10 splits need at least 10 vectors"),
        (lambda: inception_score(NAN, 2), "logits: 4 of 6 vectors hold NaN"),
        (lambda: inception_score(GOOD, 0), "splits=0"),
        (lambda: kernel_distance(GOOD, GOOD[:4], NONE, 3, 5), "b has n=4: subset_size=5 needs at least 5 vectors"),
        (lambda: kernel_distance(GOOD[:4], GOOD, NONE, 3, 5), "a has n=4: subset_size=5 needs at least 5 vectors"),
        (lambda: kernel_distance(NAN, GOOD, NONE, 3, 5), "a: 4 of 6 vectors hold NaN"),
        (lambda: kernel_distance(GOOD, torch.ones(6, 3), NONE, 3, 5), "a has 2 dimensions, b 3"),
        (lambda: kernel_distance(GOOD, GOOD, NONE, 0, 5), "subsets=0"),
        (lambda: kernel_distance(GOOD, GOOD, NONE, 3, 1), "subset_size=1"),
    ],
)
def test_what_has_no_answer_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
