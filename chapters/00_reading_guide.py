# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,nbgrader,-all
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Reading guide
#
# Someone hands you a few thousand pictures of handwritten digits and asks for one more. Not a copy, not an average: a
# new one, of the same kind. In the language of probability, the pictures are draws from a distribution that nobody can
# write down, and the question is **how to draw from a distribution that is known only through examples**.
#
# Diffusion models answer it with a detour. Destroying a picture is easy: add a little noise, again and again, until
# nothing is left but noise. Each of these small steps can be undone approximately, and the undoing can be learned from
# examples. Draw pure noise, undo all the steps, and a new picture stands there.
#
# This book derives five papers that made the idea work, and builds their methods while deriving them. Every equation is
# proved in words, then tested by a cell of code that fails if the equation is wrong; and the functions that the cells
# test are the functions that train the models. When you have read it you can train such a model on data of your own,
# say in bits how good it is, sample from it in few steps or many, steer it, and read the next paper with a pencil in
# your hand.
#
# This chapter is the way in: one picture of the whole idea, the eight pieces of mathematics that the rest uses, a map
# of the papers, and the table of symbols. You need calculus with partial derivatives, the first course in probability
# (densities, expectation, independence, Bayes' rule), and enough Python to read a loop. What goes beyond that is
# derived here. Reading takes about an hour and a half; the cells run in well under a minute on two processor cores.
#
# ## How to run it
#
# From the folder that you cloned, three commands set up everything they need:
#
# ```
# make demo     # install, train a small model on handwritten digits, write samples to runs/digits/
# make lab      # open these chapters in JupyterLab
# make test     # check every claim: the library, every chapter cell by cell, the book
# ```
#
# They install into the folder `.venv`. With that environment active (`source .venv/bin/activate`, after one of the last
# two), `jupyter-book build book/` makes web pages of the chapters in `book/_build/html/`.
#
# Nothing here needs a graphics card, but on Linux the default installation of PyTorch brings several gigabytes of GPU
# libraries. To leave them out, put the CPU-only build into `.venv` yourself, before the first `make`, which then keeps
# it:
#
# ```
# python3 -m venv .venv
# .venv/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
# ```
#
# ## How to read it, and how to hand in
#
# Each derivation step makes a claim, names the one rule it uses, and is followed by a cell that begins with `# check:`
# and the number of the equation. Change a sign in a check and run it: it should stop with an error. A check that cannot
# fail teaches nothing.
#
# Exercises end the chapter. They depend only on the cells tagged `setup`, so you can run those few and begin. The cells
# carry [nbgrader](https://nbgrader.readthedocs.io) metadata: you write where the cell says so, run the tests below it,
# and hand in the notebook. In this copy the solutions are present, between two marker comments that begin with `###`
# (folded away in the web pages; try first). A teacher puts the chapter into an nbgrader course and runs
# `nbgrader generate_assignment`, which removes whatever stands between the markers, the hidden tests too, and so makes
# the students' copy.

# %% tags=["setup"]
import math

import sympy
import torch
from matplotlib import pyplot as plt
from scipy.integrate import solve_ivp

from minidiff import plots

plots.style()
# double precision: an error in the seventh digit is then a slip, not a rounding
torch.set_default_dtype(torch.float64)
# arrays this small gain nothing from a second thread
torch.set_num_threads(1)


def normal(x, mean, variance):
    """The Gaussian density N(x; mean, variance)."""
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


# %% [markdown]
# ## 0.1 The whole idea in one picture
#
# Take a world so small that everything about it is known: a number $x_0$ drawn from three bumps, a mixture of three
# Gaussians with weights $w_k$, means $m_k$ and variances $v_k$. **Noising** keeps a share of the number and fills up
# with standard Gaussian noise $\varepsilon\sim\mathcal N(0,1)$:
#
# $$ x_t=\sqrt{\bar\alpha}\,x_0+\sqrt{1-\bar\alpha}\,\varepsilon \tag{0.1}\label{eq:0-1} $$
#
# The number $\bar\alpha$ falls from 1 (only data) to 0 (only noise) as the time $t$ goes on; in this chapter
# $\bar\alpha=e^{-t}$, and section 0.7 will say where that comes from. The square roots make the variances of the two
# parts, $\bar\alpha$ and $1-\bar\alpha$, add up to one: data of variance 1 keep variance 1 for ever. They also make
# noising twice the same as noising once. Put $x_t$ through $\eqref{eq:0-1}$ again with a factor $\bar\alpha'$: the
# data's weight is now $\sqrt{\bar\alpha\bar\alpha'}$, and the two independent noises have variance
# $\bar\alpha'(1-\bar\alpha)+(1-\bar\alpha')=1-\bar\alpha\bar\alpha'$. The factors multiply.
#
# What does noising do to the three bumps? **Scaling** a Gaussian by $\sqrt{\bar\alpha}$ scales its mean by
# $\sqrt{\bar\alpha}$ and its variance by $\bar\alpha$; **adding independent Gaussian noise** adds variances. Each bump
# stays a Gaussian. With $\mathcal N(x;\mu,V)$ for the Gaussian density of mean $\mu$ and variance $V$, the density of
# $x_t$ is
#
# $$ q_t(x)=\sum_k w_k\,\mathcal N\big(x;\ \sqrt{\bar\alpha}\,m_k,\ \bar\alpha v_k+1-\bar\alpha\big) \tag{0.2}\label{eq:0-2} $$
#
# One more quantity, and it is the one that this book is about. The **score** is the slope of the log-density,
# $\partial_x\log q_t(x)$: at each place it points to where the density is higher. Since $\partial\log q=\partial q/q$,
# and the derivative of $\mathcal N(x;\mu,V)$ is itself times $(\mu-x)/V$,
#
# $$ \partial_x\log q_t(x)=\sum_k r_k(x)\,\frac{\mu_k-x}{V_k},\qquad r_k(x)=\frac{w_k\,\mathcal N(x;\mu_k,V_k)}{q_t(x)} \tag{0.3}\label{eq:0-3} $$
#
# with $\mu_k,V_k$ the mean and variance of bump $k$ in $\eqref{eq:0-2}$. Each bump pulls towards its own centre, with
# the probability $r_k$ that the point came from it.

# %% tags=["setup"]
weights = torch.tensor([0.30, 0.45, 0.25])
means = torch.tensor([-1.5, 0.2, 1.4])
variances = torch.tensor([0.15, 0.25, 0.10]) ** 2


def bumps(t):
    """Means and variances of the bumps at time t: (0.2) with alpha_bar = exp(-t)."""
    alpha_bar = math.exp(-t)
    return math.sqrt(alpha_bar) * means, alpha_bar * variances + 1 - alpha_bar


def density(x, t):
    mu, V = bumps(t)
    return (weights * normal(x[..., None], mu, V)).sum(-1)


def cdf(x, t):
    """Probability that x_t lies below x."""
    mu, V = bumps(t)
    return (weights * torch.special.ndtr((x[..., None] - mu) / V.sqrt())).sum(-1)


def score(x, t):
    """Equation (0.3); the shares r_k are a softmax: far from all bumps nothing is divided by 0."""
    mu, V = bumps(t)
    pull = (mu - x[..., None]) / V
    r = torch.softmax(weights.log() - 0.5 * V.log() + 0.5 * pull * (x[..., None] - mu), -1)
    return (r * pull).sum(-1)


# %%
# check: 0.1, 0.2, 0.3
generator = torch.Generator().manual_seed(0)
# noise twice, by adding up what each step does
a1, a2 = 0.7, 0.4
x0 = 3.0
mean_once, var_once = math.sqrt(a1) * x0, 1 - a1
mean_twice, var_twice = math.sqrt(a2) * mean_once, a2 * var_once + (1 - a2)
assert math.isclose(mean_twice, math.sqrt(a1 * a2) * x0) and math.isclose(
    var_twice, 1 - a1 * a2
)

# (0.2): no algebra, average over all x_0 on a grid
t = 0.5
grid = torch.linspace(-4, 4, 8001)
x = torch.linspace(-3, 3, 61)
kernel = normal(x[:, None], math.exp(-t / 2) * grid, torch.tensor(1 - math.exp(-t)))
by_quadrature = torch.trapezoid(density(grid, 0.0) * kernel, grid)
torch.testing.assert_close(by_quadrature, density(x, t), rtol=1e-9, atol=1e-12)

# (0.3): let autograd differentiate log q
x.requires_grad_(True)
(slope,) = torch.autograd.grad(density(x, t).log().sum(), x)
torch.testing.assert_close(slope, score(x.detach(), t), rtol=1e-9, atol=1e-9)
print("two noisings make one; mixture and score agree with quadrature and autograd")

# %% [markdown]
# Now run time backwards. Draw points from $\mathcal N(0,1)$, which is what $q_t$ has become at a late time, and let
# each of them move with the velocity
#
# $$ \frac{dx}{dt}=-\tfrac12\big(x+\partial_x\log q_t(x)\big), \qquad t \text{ running from late to } 0. $$
#
# That this velocity is the right one is the one loan this chapter takes; equation (0.19) pays it back in section 0.8.
# Here is what it buys.

# %%
# sqrt(1 - alpha_bar), from almost 1 down to 0
weight_of_noise = torch.linspace(math.sqrt(1 - math.exp(-8)), 0, 801)
# the same moments as times t
times = -torch.log1p(-(weight_of_noise**2))
x = torch.randn(5000, generator=torch.Generator().manual_seed(1))
paths = [x]
for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
    # a small step with the velocity above
    x = x + (t_next - t) * -0.5 * (x + score(x, t))
    paths.append(x)
paths = torch.stack(paths)

grid = torch.linspace(-3, 3, 601)
picture = torch.stack(
    [density(grid, -math.log1p(-w * w)) for w in weight_of_noise.flip(0).tolist()], -1
)
fig, (left, middle, right) = plt.subplots(
    1, 3, figsize=(7.6, 3.1), sharey=True, width_ratios=[3, 3, 1.3]
)
left.imshow(
    picture.clamp(max=1.2), origin="lower", extent=(0, 1, -3, 3), aspect="auto", cmap="Greys"
)
middle.plot(weight_of_noise, paths[:, :60], color=plots.BLUE, lw=0.6, alpha=0.7)
right.hist(
    paths[-1].numpy(),
    bins=90,
    range=(-3, 3),
    density=True,
    orientation="horizontal",
    color=plots.ROSE,
    label="samples",
)
right.plot(density(grid, 0.0), grid, color=plots.INK, lw=1.2, label="truth")
middle.set_xlim(0, 1)
left.set(
    xlabel=r"weight of the noise, $\sqrt{1-\bar\alpha}$",
    ylabel=r"$x$",
    title="Forward: density",
)
middle.set(
    xlabel=r"weight of the noise, $\sqrt{1-\bar\alpha}$", title="Backward: points move left"
)
right.set(xlabel="density", title="Result", ylim=(-3, 3))
right.legend(loc="upper right", fontsize=7, handlelength=1)
fig.suptitle(
    "Noise melts three bumps into one; following the score brings the three bumps back",
    fontsize=10.5,
    fontweight="bold",
)
plt.show()

ordered = paths[-1].sort().values
steps_of_the_sample = torch.arange(1, len(ordered) + 1) / len(ordered)
# Kolmogorov's distance: largest gap of the two cdfs
distance = (cdf(ordered, 0.0) - steps_of_the_sample).abs().max().item()
print(
    f"largest gap between the samples' distribution function and the true one: {distance:.2f}"
)
# 5,000 true draws stay below 0.028 in 999 of 1,000 cases
assert distance < 0.03

# %% [markdown]
# Nothing was learned here: we knew $q_t$ and so its score. With pictures we know neither, and the whole craft is to
# learn the score (or one of its disguises) from examples, at every noise level at once. [Chapter 02](02_ddpm.ipynb)
# begins there. The tools come first.

# %% [markdown]
# ## 0.2 Gaussians: multiply and read off
#
# Almost every density in this book is a Gaussian, and almost every calculation with them is one of two.
#
# **Complete the square.** Multiply two Gaussians in $x$ and look at the exponent as a function of $x$ alone:
#
# $$ -\frac{(x-a)^2}{2A}-\frac{(x-b)^2}{2B}=-\frac12\Big(\frac1A+\frac1B\Big)x^2+\Big(\frac aA+\frac bB\Big)x+\text{const} $$
#
# A quadratic $-\frac12Px^2+Qx$ is $-\frac12P\,(x-Q/P)^2$ plus a constant, which is the exponent of a Gaussian with
# precision (one over the variance) $P$ and mean $Q/P$. So
#
# $$ \begin{aligned} \mathcal N(x;a,A)\,\mathcal N(x;b,B)\ &\propto\ \mathcal N(x;M,V),\cr
#    \frac1V&=\frac1A+\frac1B,\qquad \frac MV=\frac aA+\frac bB \end{aligned} \tag{0.4}\label{eq:0-4} $$
#
# Precisions add, and so do precision-weighted means.
#
# **Bayes' rule for a noisy measurement.** Let $x\sim\mathcal N(m,v)$, and let us see $y=cx+\text{noise}$ with noise
# variance $r$. Then $p(x\mid y)\propto p(x)\,p(y\mid x)$. As a function of $x$, the second factor has exponent
# $-(y-cx)^2/2r=-(x-y/c)^2/(2r/c^2)$: a Gaussian around $y/c$ with variance $r/c^2$. Put both into $\eqref{eq:0-4}$; the
# second line is the first with $V=vr/(c^2v+r)$ multiplied out.
#
# $$ \begin{aligned} p(x\mid y)&=\mathcal N(x;M,V),\quad \frac1V=\frac1v+\frac{c^2}{r},\quad \frac MV=\frac mv+\frac{cy}{r}\cr
#    M&=m+\frac{cv}{c^2v+r}\,(y-cm) \end{aligned} \tag{0.5}\label{eq:0-5} $$
#
# The second line reads well: start from what you expected, and correct it by a fixed share of the surprise.
#
# **Independent variances add.** How likely was $y$ before we looked? It is a sum of two independent Gaussians, and
# integrating $x$ out of the exponential of a quadratic in $x$ and $y$ (complete the square in $x$) leaves the
# exponential of a quadratic in $y$. So $y$ is Gaussian, with the mean and the variance of the sum:
#
# $$ p(y)=\mathcal N(y;\ cm,\ c^2v+r) \tag{0.6}\label{eq:0-6} $$
#
# With vectors whose noise has covariance $r\,\mathbf I$ and whose prior has covariance $v\,\mathbf I$, everything
# factorises and these formulas hold coordinate by coordinate. The book needs little more.
#
# The check asks Bayes' rule itself, on a grid, with no algebra.

# %%
# check: 0.4, 0.5, 0.6
m, v, c, r, y = 0.4, 0.5, 0.8, 0.3, 1.7
grid = torch.linspace(-12, 12, 200_001)


def moments(unnormalised):
    """Total, mean and variance of a density given on the grid."""
    total = torch.trapezoid(unnormalised, grid)
    mean = torch.trapezoid(unnormalised * grid, grid) / total
    return (
        total.item(),
        mean.item(),
        (torch.trapezoid(unnormalised * (grid - mean) ** 2, grid) / total).item(),
    )


_, mean, variance = moments(normal(grid, -1.0, 0.2) * normal(grid, 2.0, 0.7))
assert math.isclose(variance, 1 / (1 / 0.2 + 1 / 0.7)) and math.isclose(
    mean, variance * (-1.0 / 0.2 + 2.0 / 0.7)
)

evidence, mean, variance = moments(normal(grid, m, v) * normal(y, c * grid, r))
V = 1 / (1 / v + c**2 / r)
M = m + c * v / (c**2 * v + r) * (y - c * m)
assert (
    math.isclose(mean, V * (m / v + c * y / r))
    and math.isclose(mean, M)
    and math.isclose(variance, V)
)
assert math.isclose(evidence, normal(torch.tensor(y), c * m, c**2 * v + r).item())
print(
    f"posterior: mean {mean:.4f} = {M:.4f}, variance {variance:.4f} = {V:.4f};"
    f"  evidence {evidence:.4f}"
)

# %% [markdown]
# ## 0.3 Entropy and Kullback–Leibler divergence, in bits
#
# How good is a model $q$ of data that really follow $p$? Use it to compress them, and count.
#
# **Count the strings.** Give each outcome $x$ a word of $\ell(x)$ bits, no word the beginning of another, so that a
# stream of words can be cut apart again. Of all infinite strings of bits, the fraction $2^{-\ell(x)}$ begins with the
# word of $x$, and no string begins with two words, so $\sum_x2^{-\ell(x)}\le1$. A code without waste therefore *is* a
# probability distribution $q(x)=2^{-\ell(x)}$, and the word of $x$ costs $-\log_2q(x)$ bits. Probable outcomes get
# short words. (Lengths are whole numbers; for other $q$ one rounds them up, which costs less than a bit per word, and
# makes one word of many outcomes, so that the bit is shared.)
#
# Use the code of $q$ on outcomes from $p$. The expected cost, after **adding and subtracting** $\log_2p$, is
#
# $$ \mathbb E_p[-\log_2q(x)]=\underbrace{\mathbb E_p[-\log_2p(x)]}_{H(p),\ \text{entropy}}+\underbrace{\mathbb E_p\Big[\log_2\frac{p(x)}{q(x)}\Big]}_{D_{\mathrm{KL}}(p\,\|\,q)} \tag{0.7}\label{eq:0-7} $$
#
# The entropy is the price of the data themselves, and the divergence is what is paid on top for believing $q$. It is
# never negative. **The logarithm lies below its tangent at 1**, $\ln u\le u-1$, with equality only at $u=1$; put
# $u=q/p$ and average:
#
# $$ -D_{\mathrm{KL}}(p\,\|\,q)\,\ln2=\mathbb E_p\Big[\ln\frac{q(x)}{p(x)}\Big]\le\mathbb E_p\Big[\frac{q(x)}{p(x)}\Big]-1\le0 \tag{0.8}\label{eq:0-8} $$
#
# (the last step because $\sum q\le1$ over the places where $p>0$). It is zero only if $q=p$.
#
# **Two Gaussians**, $p=\mathcal N(m_1,v_1)$ and $q=\mathcal N(m_2,v_2)$. Take logarithms of both and average over $p$.
# The mean of $(x-m_1)^2$ is $v_1$; the mean of $(x-m_2)^2$ is $v_1+(m_1-m_2)^2$, spread plus squared offset. Hence, in
# nats (natural logarithms; divide by $\ln 2$ for bits),
#
# $$ D_{\mathrm{KL}}(p\,\|\,q)=\frac12\Big[\ln\frac{v_2}{v_1}+\frac{v_1+(m_1-m_2)^2}{v_2}-1\Big] \tag{0.9}\label{eq:0-9} $$
#
# The same average of $-\ln p$ alone gives the entropy of a Gaussian, $\frac12\ln(2\pi v)+\frac12$, or
#
# $$ H\big(\mathcal N(m,v)\big)=\tfrac12\log_2(2\pi e\,v)\ \text{bits} \tag{0.10}\label{eq:0-10} $$
#
# For a density this is the *differential* entropy. It can be negative (a narrow bump), and section 0.5 says what has to
# be added before it counts real bits. The divergence needs no such care: whatever stretches $p$ stretches $q$ as well,
# and the ratio stays.
#
# When the coordinates are independent, logarithms add, and so do bits: an image of a thousand pixels costs about a
# thousand times as much as one pixel. To compare across sizes we divide by the number of dimensions and speak of **bits
# per dimension**. The raw file of an image with 256 grey levels costs 8, scikit-learn's digits with their 17 levels
# cost $\log_217$, and a model has learned something when it needs fewer.

# %%
# check: 0.7, 0.8, 0.9, 0.10
from minidiff.diffusion import normal_kl

# a code, and with it q = 1/2, 1/4, 1/8, 1/8
words = {"a": "0", "b": "10", "c": "110", "d": "111"}
q = torch.tensor([2.0 ** -len(word) for word in words.values()])
# what the source really does
p = torch.tensor([0.1, 0.2, 0.3, 0.4])
cost = sum(
    probability * len(word)
    for probability, word in zip(p.tolist(), words.values(), strict=True)
)
entropy, divergence = -(p * p.log2()).sum().item(), (p * (p / q).log2()).sum().item()
assert math.isclose(cost, entropy + divergence) and math.isclose(q.sum().item(), 1)
print(
    f"cost {cost:.3f} bits = entropy {entropy:.3f} + divergence {divergence:.3f};"
    f"  17 levels, uncompressed: {math.log2(17):.2f} bits"
)

# (0.8): ten thousand pairs of distributions
p, q = torch.rand(2, 10_000, 6, generator=generator)
p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
assert (p * (p / q).log2()).sum(-1).min() > 0

# (0.9) and (0.10) by quadrature
m1, v1, m2, v2 = 0.3, 0.5, -0.4, 1.2
grid = torch.linspace(-10, 10, 20_001)
p, q = normal(grid, m1, v1), normal(grid, m2, v2)
by_formula = 0.5 * (math.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1)
# takes logarithms of variances
by_library = normal_kl(*torch.tensor([m1, math.log(v1), m2, math.log(v2)])).item()
assert math.isclose(
    torch.trapezoid(p * (p / q).log(), grid).item(), by_formula
) and math.isclose(by_library, by_formula)
assert math.isclose(
    -torch.trapezoid(p * p.log2(), grid).item(), 0.5 * math.log2(2 * math.pi * math.e * v1)
)
print(
    f"a Gaussian of variance 1 has {0.5 * math.log2(2 * math.pi * math.e):.4f} bits,"
    f" of variance 0.01 {0.5 * math.log2(2 * math.pi * math.e * 0.01):.4f}"
)

# %% [markdown]
# ## 0.4 Jensen's inequality and the evidence bound
#
# **A concave curve lies below its tangents.** For positive $u$ with mean $\mathbb E[u]=a$, the tangent of the logarithm
# at $a$ says $\ln u\le\ln a+(u-a)/a$. Average both sides; the last term averages to zero:
#
# $$ \mathbb E[\ln u]\le\ln\mathbb E[u] \tag{0.11}\label{eq:0-11} $$
#
# A model with hidden parts $z$ gives data the probability $p(x)=\int p(x,z)\,dz$, an integral that is rarely doable.
# Take any positive density $q(z)$ that we *can* draw from, and **multiply and divide**:
# $p(x)=\mathbb E_q[p(x,z)/q(z)]$. Jensen moves the logarithm inside, where it turns products into sums:
#
# $$ \begin{aligned} \ln p(x)\ &\ge\ \mathbb E_q\Big[\ln\frac{p(x,z)}{q(z)}\Big]=:\text{bound},\cr
#    \ln p(x)-\text{bound}&=D_{\mathrm{KL}}\big(q(z)\,\|\,p(z\mid x)\big) \end{aligned} \tag{0.12}\label{eq:0-12} $$
#
# The second statement follows from **the product rule** $p(x,z)=p(z\mid x)\,p(x)$ inside the bound: $\ln p(x)$ comes
# out of the average, and what remains is minus the divergence (in nats here). So the bound is tight exactly when $q$ is
# the posterior. In a diffusion model $x$ is the picture, $z$ are all its noisier versions, and $q$ is the noising
# itself: fixed, known, and easy to draw from.

# %%
# check: 0.11, 0.12
# (0.11) on random numbers
u = torch.rand(10_000, 5, generator=generator)
assert (u.log().mean(-1) < u.mean(-1).log()).all()

# (0.12) in the model of section 0.2, with z ~ N(m, v) hidden and y = c z + noise seen; q is any Gaussian
# exact, by (0.6)
log_evidence = normal(torch.tensor(y), c * m, c**2 * v + r).log().item()
grid = torch.linspace(-9, 9, 20_001)
for m_q, v_q in [(0.0, 1.0), (1.0, 0.4), (M, V)]:
    q = normal(grid, m_q, v_q)
    bound = torch.trapezoid(
        q * (normal(grid, m, v).log() + normal(y, c * grid, r).log() - q.log()), grid
    ).item()
    # (0.9) between q and the posterior of (0.5)
    gap = 0.5 * (math.log(V / v_q) + (v_q + (m_q - M) ** 2) / V - 1)
    assert math.isclose(bound + gap, log_evidence) and bound <= log_evidence + 1e-12
    print(
        f"q = N({m_q:.2f}, {v_q:.2f}):  bound {bound:.4f}"
        f" + gap {gap:.4f} = {bound + gap:.4f} nats"
    )

# %% [markdown]
# ## 0.5 Change of variables, and why a density is not a probability
#
# Let $y=g(x)$ with $g$ smooth and one-to-one. **Probability is conserved**: what lies in a small interval $dx$ lies
# afterwards in its image, of length $|g'(x)|\,dx$. So
#
# $$ p_Y(y)=\frac{p_X(x)}{|g'(x)|},\quad\text{in $d$ dimensions}\quad p_Y(y)=\frac{p_X(x)}{|\det\partial g/\partial x|} \tag{0.13}\label{eq:0-13} $$
#
# because a small cube is mapped to a small parallelepiped whose volume is the determinant times the cube's.
#
# The consequence is easily overlooked: a density depends on the unit. Measure in centimetres instead of metres and
# every density falls by a factor of 100, and "$-\log_2$ density" rises by $\log_2100$ per dimension. Such a number is
# not a count of bits. Pixels, though, are integers $k=0,\dots,L-1$, and integers have honest probabilities. In this
# book they are scaled to $x_k=2k/(L-1)-1$ in $[-1,1]$, a spacing of $\Delta=2/(L-1)$, and a density gives level $k$ the
# probability of its bin, $P(k)=\int_{x_k-\Delta/2}^{x_k+\Delta/2}p(x)\,dx$, half a bin to each side.
#
# Where the integral is out of reach, **dequantise**: add uniform noise $u\in[-\frac12,\frac12]$ to the level, and
# evaluate the density there. By **Jensen**,
# $\mathbb E_u\log_2 p(x_k+\Delta u)\le\log_2\mathbb E_u\,p(x_k+\Delta u)=\log_2\big(P(k)/\Delta\big)$. With
# $\log_2(1/\Delta)=\log_2\frac{L-1}2$ and for $D$ pixels at once, in bits per dimension,
#
# $$ -\frac1D\log_2P(k)\ \le\ -\frac1D\,\mathbb E_u\log_2p(x_k+\Delta u)+\log_2\frac{L-1}2 \tag{0.14}\label{eq:0-14} $$
#
# The last term is the price of the unit; without it, numbers for differently scaled data cannot be compared. How much
# does the bound give away? **Expand the exponential** in $\ln\mathbb E\,e^Y$ for a $Y=\ln p$ that varies little: the
# result is $\mathbb E\,Y+\frac12\mathrm{Var}\,Y+\dots$, so the gap is half the variance. Where $\ln p$ has slope $\ell$
# across the bin, its variance over the uniform $u$ is $\ell^2\Delta^2/12$. The gap is about $\ell^2\Delta^2/24$ nats:
# twice as many levels, a quarter of the gap.

# %%
# check: 0.13, 0.14
# y = tanh(x) with x standard normal
grid = torch.linspace(-0.9, 0.8, 20_001)
mass = torch.trapezoid(normal(torch.atanh(grid), 0, 1) / (1 - grid**2), grid).item()
lower, upper = torch.special.ndtr(torch.atanh(grid[[0, -1]])).tolist()
assert math.isclose(mass, upper - lower, rel_tol=1e-7)
# two dimensions: y = A x, covariance A A^T
A = torch.tensor([[1.2, 0.5], [-0.3, 0.8]])
z = torch.tensor([0.4, -1.1])
log_py = torch.distributions.MultivariateNormal(torch.zeros(2), A @ A.T).log_prob(A @ z)
torch.testing.assert_close(log_py, normal(z, 0, 1).log().sum() - A.det().abs().log())


def dequantisation_gap(levels, k, mean=0.1, std=0.3):
    """True bits of level k, and what the bound (0.14) gives away, under a Gaussian."""
    bin_width = 2 / (levels - 1)
    x = 2 * k / (levels - 1) - 1
    edges = torch.tensor([x - bin_width / 2, x + bin_width / 2])
    bits = -torch.special.ndtr((edges - mean) / std).diff().log2().item()
    u = torch.linspace(-0.5, 0.5, 2001)
    bound = -torch.trapezoid(
        normal(x + bin_width * u, mean, std**2).log2(), u
    ).item() + math.log2((levels - 1) / 2)
    return bits, bound - bits


# the same grey, x = 0.5, in finer and finer levels
for levels, k in [(17, 12), (33, 24), (65, 48)]:
    bits, gap = dequantisation_gap(levels, k)
    print(f"{levels} levels: {bits:.4f} bits, bound {gap:.5f} above")
    # slope of ln p at x = 0.5
    ell, bin_width = -(0.5 - 0.1) / 0.3**2, 2 / (levels - 1)
    assert 0 < gap and abs(gap * math.log(2) / (ell**2 * bin_width**2 / 24) - 1) < 0.01
print(
    f"price of the unit: 256 levels {math.log2(255 / 2):.4f}, "
    f"17 levels {math.log2(16 / 2):.4f} bits per dimension"
)

# %% [markdown]
# ## 0.6 Detailed balance
#
# A Markov chain moves from $x$ to $x'$ with density $\mathcal T(x'\mid x)$. When does a density $\pi$ stay as it is, so
# that $\int\pi(x)\,\mathcal T(x'\mid x)\,dx=\pi(x')$? It suffices that between any two places as much flows forth as
# back:
#
# $$ \begin{aligned} &\pi(x)\,\mathcal T(x'\mid x)=\pi(x')\,\mathcal T(x\mid x')\quad\text{for all }x,x'\cr
#    \Longrightarrow\quad&\int\pi(x)\,\mathcal T(x'\mid x)\,dx=\pi(x') \end{aligned} \tag{0.15}\label{eq:0-15} $$
#
# **Integrate over** $x$: on the right side $\mathcal T(x\mid x')$ integrates to one. Detailed balance says more than
# stationarity. By Bayes' rule the backward kernel of the stationary chain is $\pi(x)\,\mathcal T(x'\mid x)/\pi(x')$,
# and $\eqref{eq:0-15}$ says that this is $\mathcal T(x\mid x')$: a film of the chain looks the same run backwards.
# (Three states visited in a circle, 1 → 2 → 3 → 1, keep the uniform distribution without detailed balance; that film
# has a direction.)
#
# Two chains matter to us. The **Gaussian** one shrinks and adds noise,
# $\mathcal T(x'\mid x)=\mathcal N(x';\sqrt{1-\beta}\,x,\beta)$, with $\pi=\mathcal N(0,1)$. The exponent of
# $\pi(x)\mathcal T(x'\mid x)$ is, over a common denominator,
#
# $$ -\frac{x^2}2-\frac{(x'-\sqrt{1-\beta}\,x)^2}{2\beta}=-\frac{x^2-2\sqrt{1-\beta}\,x\,x'+x'^2}{2\beta}, $$
#
# symmetric in $x$ and $x'$, which is detailed balance. The **Bernoulli** one keeps a bit with probability $1-\beta$ and
# otherwise throws a new one that is 1 with probability $\mu$. From 0 to 1 flows $(1-\mu)\cdot\beta\mu$, and from 1 to 0
# flows $\mu\cdot\beta(1-\mu)$: the same. Both forget their start step by step: each multiplies the Gaussian's mean by
# $\sqrt{1-\beta}$, and the bit's distance from $\mu$ by $1-\beta$.

# %%
# check: 0.15
beta, mu = 0.2, 0.3
grid = torch.linspace(-9, 9, 1801)
# kernel[i, j] = T(to j | from i)
kernel = normal(grid, math.sqrt(1 - beta) * grid[:, None], beta)
flow = normal(grid, 0, 1)[:, None] * kernel
# as much forth as back
torch.testing.assert_close(flow, flow.T)
inner = grid.abs() < 5
torch.testing.assert_close(
    torch.trapezoid(flow, grid, dim=0)[inner], normal(grid, 0, 1)[inner]
)

bit = torch.tensor([[1 - beta * mu, beta * mu], [beta * (1 - mu), 1 - beta * (1 - mu)]])
pi = torch.tensor([1 - mu, mu])
torch.testing.assert_close(pi[:, None] * bit, (pi[:, None] * bit).T)
torch.testing.assert_close(pi @ bit, pi)
# surely 1; after five steps closer to mu by (1 - beta)^5
start = torch.tensor([0.0, 1.0])
# the Gaussian's mean, one step from grid[1000]
mean_after = math.sqrt(1 - beta) * grid[1000]
torch.testing.assert_close(torch.trapezoid(grid * kernel[1000], grid), mean_after)
assert math.isclose(
    (start @ torch.linalg.matrix_power(bit, 5))[1].item() - mu, (1 - beta) ** 5 * (1 - mu)
)

# stationary, but with a direction
circle = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
torch.testing.assert_close(torch.full((3,), 1 / 3) @ circle, torch.full((3,), 1 / 3))
assert not torch.equal(circle, circle.T)
print("both chains balance in detail; the circle is stationary and does not")

# %% [markdown]
# ## 0.7 Noise in continuous time: Itô and Fokker–Planck
#
# Let the Gaussian chain take many tiny steps, $\beta\,dt$ each. **Expand the square root**,
# $\sqrt{1-\beta\,dt}=1-\frac12\beta\,dt+O(dt^2)$, and write the noise as an increment $dw\sim\mathcal N(0,dt)$ of
# Brownian motion, independent of all earlier ones. The step becomes $dx=-\frac12\beta x\,dt+\sqrt\beta\,dw$: a drift
# home and a random kick, the **Ornstein–Uhlenbeck** process. In general a *stochastic differential equation* has a
# drift $f$ and a noise strength $g$,
#
# $$ dx=f(x,t)\,dt+g(t)\,dw,\quad\text{here }f=-\tfrac12\beta x,\ g=\sqrt\beta \tag{0.16}\label{eq:0-16} $$
#
# and means what a computer does with it: take small steps, draw $dw$ afresh each time, let $dt\to0$.
#
# **Itô's formula: keep what is of order** $dt$. How does a smooth function $\varphi(x)$ change along the path? Taylor's
# series gives $d\varphi=\varphi'\,dx+\frac12\varphi''\,dx^2+\dots$ In ordinary calculus the square is negligible. Here
# $dx^2=g^2dw^2$ plus terms of order $dt^{3/2}$, and $dw^2$ has mean $dt$: the same order as the drift. Its fluctuation
# does not matter, because over $n$ steps of $dt=t/n$ the sum of all $dw^2$ has mean $t$ and variance
# $n\cdot2\,dt^2=2t^2/n\to0$. (The factor $\frac12\varphi''g^2$ before each $dw^2$ is settled before that $dw$ is drawn,
# and changes nothing in this argument.) So $dw^2$ may be replaced by $dt$:
#
# $$ d\varphi=\big(f\varphi'+\tfrac12g^2\varphi''\big)\,dt+g\,\varphi'\,dw \tag{0.17}\label{eq:0-17} $$
#
# The smallest example shows that the extra term is real. For Brownian motion itself ($f=0$, $g=1$) and $\varphi=w^2$ it
# says $d(w^2)=dt+2w\,dw$; ordinary calculus would say $2w\,dw$. Add up both along simulated paths and compare with
# $w^2$ at the end.

# %%
# check: 0.16, 0.17
# (0.16): n steps over unit time, beta = 2, from x = 1
for n in [100, 1000]:
    # (mean, variance), stepped exactly
    dt, chain, sde = 1 / n, (1.0, 0.0), (1.0, 0.0)
    for _ in range(n):
        chain = math.sqrt(1 - 2 * dt) * chain[0], (1 - 2 * dt) * chain[1] + 2 * dt
        sde = (
            sde[0] - 0.5 * 2 * sde[0] * dt,
            (1 - 0.5 * 2 * dt) ** 2 * sde[1] + math.sqrt(2) ** 2 * dt,
        )
    print(
        f"{n:4d} steps: mean {chain[0]:.4f} (chain) {sde[0]:.4f} (drift and kick);"
        f"  variance {chain[1]:.4f} and {sde[1]:.4f}"
    )
    assert abs(chain[0] - sde[0]) < 1 / n and abs(chain[1] - sde[1]) < 1 / n

# (0.17): 4,000 paths to time 1 in n steps
for n in [10, 100, 1000]:
    dw = torch.randn(4000, n, generator=generator) / math.sqrt(n)
    w = dw.cumsum(-1)
    # where the path stood when the step was drawn
    before = w - dw
    ordinary = (w[:, -1] ** 2 - (2 * before * dw).sum(-1)).square().mean().sqrt().item()
    ito = (w[:, -1] ** 2 - (2 * before * dw).sum(-1) - 1).square().mean().sqrt().item()
    print(
        f"{n:4d} steps: root-mean-square error, Ito {ito:.2f}, ordinary calculus {ordinary:.1f}"
    )
    # as predicted: standard deviation sqrt(2 / n)
    assert abs(ito / math.sqrt(2 / n) - 1) < 0.08 and ordinary > 0.95

# drift and all: f = -x / 2, g = 1, phi = x^3
n, x = 2000, torch.ones(4000)
with_ito, without = x**3, x**3
for _ in range(n):
    dw = torch.randn(4000, generator=generator) / math.sqrt(n)
    with_ito = with_ito + (-0.5 * x * 3 * x**2 + 0.5 * 6 * x) / n + 3 * x**2 * dw
    without = without + -0.5 * x * 3 * x**2 / n + 3 * x**2 * dw
    x = x - 0.5 * x / n + dw
ito, ordinary = ((phi - x**3).square().mean().sqrt().item() for phi in (with_ito, without))
print(
    f"x^3 along Ornstein-Uhlenbeck paths: error {ito:.1f} with the term g^2 phi''/2,"
    f" {ordinary:.1f} without"
)
assert ito < 0.3 < 1.5 < ordinary

# %% [markdown]
# **From paths to densities: test with a function.** Let $q_t$ be the density of $x_t$, and $\varphi$ any smooth
# function that is zero outside some interval. Take the mean of $\eqref{eq:0-17}$; the noise term vanishes, because $dw$
# is independent of where the path stands:
#
# $$ \frac{d}{dt}\int\varphi\,q_t\,dx=\int\big(f\varphi'+\tfrac12g^2\varphi''\big)\,q_t\,dx=\int\varphi\,\Big(-\partial_x(f\,q_t)+\tfrac12g^2\,\partial_x^2q_t\Big)\,dx. $$
#
# The second equality is **integration by parts**, once for $\varphi'$ and twice for $\varphi''$; nothing remains at the
# ends, where $\varphi=0$. Since this holds for *every* $\varphi$, the functions that multiply it are equal. That is the
# **Fokker–Planck equation**:
#
# $$ \partial_tq_t=-\partial_x\big(f\,q_t\big)+\tfrac12g^2\,\partial_x^2q_t \tag{0.18}\label{eq:0-18} $$
#
# The first term carries the density along with the drift, the second smears it out as heat does. In $d$ dimensions,
# read $\nabla\!\cdot(f q_t)$ and the Laplacian.
#
# The Ornstein–Uhlenbeck process can be solved outright. **Multiply by the integrating factor** $e^{\beta t/2}$: since
# $d\big(e^{\beta t/2}x\big)=e^{\beta t/2}\big(dx+\frac12\beta x\,dt\big)=e^{\beta t/2}\sqrt\beta\,dw$, adding up gives
# $x_t=e^{-\beta t/2}x_0$ plus a sum of independent Gaussian kicks, each shrunk by the time since it fell. Their
# variances add to $\int_0^t\beta\,e^{-\beta(t-s)}ds=1-e^{-\beta t}$. This is $\eqref{eq:0-1}$ with
# $\bar\alpha=e^{-\beta t}$, or $\bar\alpha=\exp(-\int\beta\,dt)$ when $\beta$ varies: the promise of section 0.1, where
# $\beta=1$.
#
# The check lets sympy differentiate that solution for a Gaussian start, and a simulation meets the mixture.

# %%
# check: 0.18
X, tau, m_0 = sympy.symbols("x t m", real=True)
v_0, B = sympy.symbols("v beta", positive=True)
mean_t, var_t = (
    m_0 * sympy.exp(-B * tau / 2),
    v_0 * sympy.exp(-B * tau) + 1 - sympy.exp(-B * tau),
)
q_t = sympy.exp(-((X - mean_t) ** 2) / (2 * var_t)) / sympy.sqrt(2 * sympy.pi * var_t)
residual = (
    sympy.diff(q_t, tau) + sympy.diff(-B * X / 2 * q_t, X) - B / 2 * sympy.diff(q_t, X, 2)
)
assert sympy.simplify(residual / q_t) == 0

# the mixture of section 0.1, beta = 1, as a computer steps it
n, dt = 20_000, 0.005
component = torch.multinomial(weights, n, replacement=True, generator=generator)
x = means[component] + variances[component].sqrt() * torch.randn(n, generator=generator)
grid = torch.linspace(-3.5, 3.5, 401)
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6), sharey=True)
for ax, (t, steps) in zip(axes, [(0.05, 10), (0.3, 50), (2.0, 340)], strict=True):
    for _ in range(steps):
        x = x - 0.5 * x * dt + math.sqrt(dt) * torch.randn(n, generator=generator)
    gap = (cdf(x.sort().values, t) - (torch.arange(n) + 0.5) / n).abs().max().item()
    # 20,000 draws stay below 0.014 in 999 of 1,000 cases
    assert gap < 0.015
    ax.hist(
        x.numpy(),
        bins=70,
        range=(-3.5, 3.5),
        density=True,
        color=plots.ROSE,
        label="simulated paths",
    )
    ax.plot(grid, density(grid, t), color=plots.INK, label="Fokker–Planck")
    ax.set(xlabel="$x$", title=f"$t={t}$")
axes[0].set(ylabel="density")
axes[2].legend(fontsize=7.5)
fig.suptitle(
    "Twenty thousand random paths fill the density that the equation predicts",
    fontsize=10.5,
    fontweight="bold",
)
plt.show()

# %% [markdown]
# ## 0.8 The probability-flow equation
#
# Here the loan is paid back. **Write the heat term as a flow**: $\partial_xq=q\,\partial_x\log q$, so
# $\frac12g^2\partial_x^2q=\partial_x\big(\tfrac12g^2\,q\,\partial_x\log q\big)$. Put this into $\eqref{eq:0-18}$:
#
# $$ \partial_tq_t=-\partial_x\big(\nu\,q_t\big),\qquad\frac{dx}{dt}=\nu(x,t)=f-\tfrac12g^2\,\partial_x\log q_t(x) \tag{0.19}\label{eq:0-19} $$
#
# The left equation is Fokker–Planck with drift $\nu$ and *no noise at all*. So points that move along the ordinary
# differential equation on the right have, at every time, the same density as the random process. Single paths differ,
# the crowd does not; and an ordinary differential equation can be run backwards. With $f=-\frac12x$ and $g=1$ its
# velocity is the one of section 0.1.
#
# On a line there is a sharp test. Paths of an ordinary differential equation cannot cross, so the share of points to
# the left of a given one never changes: $F_t(x(t))$, with $F_t$ the distribution function of $q_t$, must stay constant
# along every path. We give the equation to an adaptive solver that knows nothing of where it came from.

# %%
# check: 0.19
levels_of_F = torch.linspace(0.05, 0.95, 19)
# where q_t is almost N(0, 1)
start, t_late = torch.special.ndtri(levels_of_F), 6.0
path = solve_ivp(
    lambda t, x: (-0.5 * (torch.from_numpy(x) + score(torch.from_numpy(x), t))).numpy(),
    (t_late, 0.0),
    start.numpy(),
    rtol=1e-10,
    atol=1e-12,
    t_eval=[6.0, 2.0, 0.5, 0.0],
)
F = torch.stack([cdf(torch.from_numpy(x), t) for t, x in zip(path.t, path.y.T, strict=True)])
drift_of_F = (F - F[0]).abs().max().item()
assert drift_of_F < 1e-7
print("F along three of the paths, at t = 6, 2, 0.5, 0:")
for k in [2, 9, 16]:
    print("  ", "  ".join(f"{value:.5f}" for value in F[:, k].tolist()))

# %% [markdown]
# ## 0.9 Order of a solver
#
# To sample is to follow $\dot x=F(x,t)$ with finite steps $h$, and every step costs one or more evaluations of a large
# network. What does a step lose? **Taylor's series** of the true path, with $\ddot x=\partial_tF+F\,\partial_xF$ by the
# chain rule, is
#
# $$ x(t+h)=x+hF+\tfrac12h^2\big(\partial_tF+F\,\partial_xF\big)+O(h^3). $$
#
# **Euler's method** keeps $x+hF$ and loses a term of order $h^2$. **Heun's method** goes there tentatively, looks at
# the slope it finds, and uses the average of both slopes. The second slope is
# $F(x+hF,t+h)=F+h(\partial_tF+F\,\partial_xF)+O(h^2)$, so
#
# $$ \begin{aligned} \text{Euler:}\quad x_{\text{new}}&=x+hF(x,t)\cr
#    \text{Heun:}\quad x_{\text{new}}&=x+\tfrac h2\big[F(x,t)+F(x+hF(x,t),\,t+h)\big] \end{aligned} \tag{0.20}\label{eq:0-20} $$
#
# Compare with Taylor's series: Euler is right up to $h$ and loses $O(h^2)$ in a step, Heun is right up to $h^2$ and
# loses $O(h^3)$.
#
# **Add up the steps.** Let one step lose at most $Ch^{p+1}$, and let $|\partial_xF|\le\Lambda$. A step stretches an
# error that is already there by at most $1+\Lambda h$ (Euler) or $1+\Lambda h+\frac12\Lambda^2h^2$ (Heun), in both
# cases less than $e^{\Lambda h}$. So over a travelled time $t$ each loss grows by at most $e^{\Lambda t}$, and since
# there are $t/h$ of them, the total is at most
#
# $$ \frac th\cdot Ch^{p+1}\cdot e^{\Lambda t}=C\,t\,e^{\Lambda t}\,h^p. \tag{0.21}\label{eq:0-21} $$
#
# The power $p$ is the **order**: 1 for Euler, 2 for Heun. Half the step, half the error; or a quarter.
#
# The test is the probability flow of Gaussian data $\mathcal N(0,v)$. There $q_t=\mathcal N(0,V_t)$ with
# $V_t=1+(v-1)e^{-t}$, the score is $-x/V_t$, and $\eqref{eq:0-19}$ reads $\dot x=\frac12(1/V_t-1)\,x$. Since
# $\dot V_t=1-V_t$, its solution is $x(t)\propto\sqrt{V_t}$. Points simply keep their place in units of the standard
# deviation.


# %%
# check: 0.20, 0.21
def V_t(t, v=0.25):
    return 1 + (v - 1) * math.exp(-t)


def slope(x, t):
    return 0.5 * (1 / V_t(t) - 1) * x


def euler_step(x, t, h):
    return x + h * slope(x, t)


def heun_step(x, t, h):
    first = slope(x, t)
    return x + h / 2 * (first + slope(x + h * first, t + h))


def error(step, t_start, t_end, n):
    # start one standard deviation out
    x, h = math.sqrt(V_t(t_start)), (t_end - t_start) / n
    for i in range(n):
        x = step(x, t_start + i * h, h)
    # the truth: still one standard deviation out
    return abs(x - math.sqrt(V_t(t_end)))


def largest_loss(step, n):
    """What one step loses at most when it starts on the true path from t = 4 to t = 0."""
    h = -4.0 / n
    return max(
        abs(step(math.sqrt(V_t(4 + i * h)), 4 + i * h, h) - math.sqrt(V_t(4 + (i + 1) * h)))
        for i in range(n)
    )


steps = [2**k for k in range(3, 12)]
fig, ax = plt.subplots(figsize=(5.6, 3.0))
for name, step, cost, p, colour, marker in [
    ("Euler", euler_step, 1, 1, plots.ORANGE, "o"),
    ("Heun", heun_step, 2, 2, plots.BLUE, "s"),
]:
    # from noise at t = 4 back to data at t = 0
    total = [error(step, 4.0, 0.0, n) for n in steps]
    local = [largest_loss(step, n) for n in (1000, 2000)]
    order = math.log2(total[-2] / total[-1])
    print(
        f"{name}: one step of half the length loses {local[0] / local[1]:.1f} times less;"
        f" measured order {order:.2f}"
    )
    assert abs(math.log2(local[0] / local[1]) - (p + 1)) < 0.03 and abs(order - p) < 0.03
    # e^(Lambda t): |dF/dx| is largest at t = 0
    stretch = math.exp(0.5 * (1 / 0.25 - 1) * 4)
    assert all(
        error(step, 4.0, 0.0, n) <= n * largest_loss(step, n) * stretch for n in (8, 64, 512)
    )
    ax.loglog(
        [cost * n for n in steps],
        total,
        color=colour,
        marker=marker,
        ms=4,
        label=f"{name}, slope −{p}",
    )
ax.set(
    xlabel="evaluations of the velocity",
    ylabel="error at $t=0$",
    title="Twice the work halves Euler's error and quarters Heun's",
)
ax.legend()
plt.show()

# %% [markdown]
# Heun pays two evaluations a step and is still far ahead, as long as the path is smooth enough for Taylor's series to
# speak. That reservation returns with trained networks, in the chapter on EDM.
#
# ## 0.10 The map
#
# Five papers carry the book, and two more are bridges between them.
#
# | paper | its question | what it adds | chapter | needs | what it leaves open |
# |---|---|---|---|---|---|
# | **SD**: Sohl-Dickstein et al. 2015 | Can a model be both flexible and easy to draw from? | noising as a Markov chain, its learned reversal, a bound on the likelihood; Gaussian and binary data; multiplying with a second distribution | [01](01_nonequilibrium_thermodynamics.ipynb) | 00 | samples far from natural images |
# | **DDPM**: Ho, Jain, Abbeel 2020 | Can this make good pictures? | predict the noise; a simple weighted loss; the tie to score matching; progressive coding | [02](02_ddpm.ipynb) | 00 | a thousand network calls a sample; fixed variances; a modest likelihood |
# | **DDIM**: Song, Meng, Ermon 2020 (bridge) | Must the way back be random, and long? | a family of processes with the same training; deterministic sampling in few steps | [03](03_ddim_and_sdes.ipynb) | 02 | why it works in few steps |
# | **SDE**: Song et al. 2021 (bridge) | What is the limit of many small steps? | stochastic differential equations, their reversal, the probability flow, exact likelihoods | [03](03_ddim_and_sdes.ipynb) | 02 | which solver, which schedule |
# | **IDDPM**: Nichol, Dhariwal 2021 | Where are the bits lost? | cosine schedule, learned variances, importance-sampled times | [04](04_improved_ddpm.ipynb) | 02 | quality against GANs on hard data |
# | **ADM**: Dhariwal, Nichol 2021 | Can diffusion beat GANs? | a better network; a classifier that steers the sampling | [05](05_guided_diffusion.ipynb) | 01, 03, 04 | cost; schedule, network scaling and solver still entangled |
# | **EDM**: Karras et al. 2022 | Which choices matter, one at a time? | noise level as the coordinate, preconditioning, Heun's method; earlier models as columns of one table | [06](06_edm.ipynb) | 03, 04 | scale; the later literature |
#
# Chapter [07](07_full_scale.ipynb) runs the papers' own models at their own size. The straight road to a working sampler is 00 → 02.
# The road to EDM is 00 → 02 → 03 → 06, with a side glance at 04. Chapter 01 may be read before or after 02: it comes
# first in time, and its way of steering returns in 05.
#
# ## 0.11 The symbols of the whole book
#
# Papers disagree about letters. This is what the book writes; each chapter opens with a short table from its paper's
# letters to these.
#
# | symbol | in code | meaning |
# |---|---|---|
# | $x_0,\ x_t,\ x_T$ | `x0`, `xt` | data, data noised up to time $t$, almost pure noise ($y$ for data in EDM) |
# | $t=1,\dots,T$ | `t` | step of a discrete chain; a real number in continuous time |
# | $\varepsilon$ | `noise` | the standard Gaussian noise inside $x_t$ |
# | $\beta_t,\ \alpha_t=1-\beta_t$ | `beta`, `alpha` | noise variance added in step $t$; share of variance kept |
# | $\bar\alpha_t=\prod_{s\le t}\alpha_s$ | `alpha_bar` | share of variance kept since the start, $\bar\alpha_0=1$; **DDIM calls it** $\alpha_t$ |
# | $\tilde\mu_t,\ \tilde\beta_t$ | `mu_tilde`, `beta_tilde` | mean and variance of $x_{t-1}$ given $x_t$ and $x_0$ |
# | $q,\ p_\theta$ | | the fixed noising process; the learned reverse process |
# | $\sigma_t$ (with index) | | standard deviation of one reverse step, in DDPM, DDIM and their heirs |
# | $\sigma,\ \sigma(t)$ | `sigma` | **noise level** relative to clean data, in EDM: $x=s\,(x_0+\sigma\varepsilon)$ |
# | $s(t)$ | `s` | scale of the data inside $x$ |
# | $\mathrm{SNR}=\bar\alpha_t/(1-\bar\alpha_t)$ | `snr` | signal-to-noise ratio of variances |
# | $\nabla_x\log q_t(x)$ | `score` | the score |
# | $\varepsilon_\theta,\ \hat x_0,\ D(x;\sigma)$ | `eps`, `x0_hat`, `denoise` | the network's estimate of the noise; of the data; the same as a function of $x$ and $\sigma$ |
# | $\mathrm v=\sqrt{\bar\alpha_t}\,\varepsilon-\sqrt{1-\bar\alpha_t}\,x_0$ | `v` | a third target for a network (in IDDPM, $v$ is the learned mix of two variances) |
# | $L_0,\dots,L_T,\ L_{\text{vlb}},\ L_{\text{simple}}$ | | terms of the bound, their sum, and the unweighted loss |
# | $F_\theta,\ c_{\text{skip}},c_{\text{out}},c_{\text{in}},c_{\text{noise}}$ | the same | EDM's raw network and the scalings around it |
# | $\lambda(\sigma)$ | `weight` | weight of a noise level in the loss |
# | $\eta$; $\gamma_i,S_{\text{churn}},S_{\text{noise}},\dots$ | `eta`, `S_churn` | how much fresh noise DDIM, and EDM's sampler, put in on the way back |
# | guidance scale | `scale` | factor on a classifier's gradient; ADM calls it $s$ |
# | $\pi,\ r(x)$ | | stationary distribution of the noising (and 3.14…, where it stands beside a 2); SD's second distribution |
# | $f,\ g,\ w$ | `f`, `g` | drift, noise strength and Brownian motion of a stochastic differential equation |
# | $L$ levels, $D$ dimensions | `levels` | grey levels of an image (256; 17 for scikit-learn's digits); number of pixel values |
#
# **Where counting starts.** Papers count steps $t=1,\dots,T$. Chapters follow them with arrays that have one entry more
# and start at $\bar\alpha_0=1$, so that `alpha_bar[t - 1]` is right even at $t=1$. The library counts $0,\dots,T-1$ as
# the papers' own code does; its `t` is the chapter's `t - 1`. The check below meets both.
#
# **The bridge.** A point of DDPM and a point of EDM are the same point in two scales. **Take out the factor**
# $\sqrt{\bar\alpha_t}$ from $\eqref{eq:0-1}$:
#
# $$ \begin{aligned} x_t&=s\,(x_0+\sigma\varepsilon),\quad s=\sqrt{\bar\alpha_t},\quad\sigma=\sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}},\cr
#    \bar\alpha_t&=\frac1{1+\sigma^2},\qquad\mathrm{SNR}=\frac{\bar\alpha_t}{1-\bar\alpha_t}=\frac1{\sigma^2} \end{aligned} \tag{0.22}\label{eq:0-22} $$
#
# Scores change with the scale. By the **change of variables** $\eqref{eq:0-13}$, $q_t(x)=s^{-d}\,p(x/s;\sigma)$, where
# $p(\cdot\,;\sigma)$ is the density of $x_0+\sigma\varepsilon$. Take the logarithm and **differentiate by the chain
# rule**:
#
# $$ \nabla_x\log q_t(x)=\frac1s\,\nabla\log p\Big(\frac xs;\sigma\Big) \tag{0.23}\label{eq:0-23} $$

# %%
# check: 0.22, 0.23
from minidiff.diffusion import GaussianDiffusion, linear_betas

T = 1000
# DDPM's schedule; beta[t] for t = 0..T
beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])
# alpha_bar[0] = 1
alpha_bar = torch.cumprod(1 - beta, 0)
s, sigma = alpha_bar.sqrt(), ((1 - alpha_bar) / alpha_bar).sqrt()
torch.testing.assert_close(1 / (1 + sigma**2), alpha_bar)
torch.testing.assert_close((alpha_bar / (1 - alpha_bar))[1:], 1 / sigma[1:] ** 2)
# counts from 0: its entry t - 1 is our entry t
library = GaussianDiffusion(linear_betas(T))
torch.testing.assert_close(library.alpha_bar, alpha_bar[1:])
torch.testing.assert_close(library.sigma, sigma[1:])
x0, eps = torch.randn(2, T + 1, generator=generator)
torch.testing.assert_close(
    s * (x0 + sigma * eps), alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
)
for t in (1, 500, 1000):
    print(
        f"t = {t:4d}:  alpha_bar {alpha_bar[t]:.3e}   sigma {sigma[t]:8.4f}"
        f"   SNR {1 / sigma[t] ** 2:.3e}"
    )

# (0.23) on the mixture; EDM's density p is bumps widened by sigma^2
t = 0.8
s, sigma = math.exp(-t / 2), math.sqrt(math.exp(t) - 1)
z = torch.linspace(-3, 3, 61, requires_grad=True)
log_p = (weights * normal(z[:, None], means, variances + sigma**2)).sum(-1).log()
(score_edm,) = torch.autograd.grad(log_p.sum(), z)
torch.testing.assert_close(score(s * z.detach(), t), score_edm / s)

# %% [markdown]
# ## 0.12 Exercises
#
# Two on paper, three to code, one experiment. Run the cells tagged `setup` first (the imports, and the mixture of
# section 0.1); nothing else is needed.
#
# ### Exercise 0.1 (paper, 3 points): the best single Gaussian
#
# Data follow a density $p$ with mean $\mu$ and variance $\varsigma^2$. Which $m$ and $v$ make
# $D_{\mathrm{KL}}\big(p\,\|\,\mathcal N(m,v)\big)$ smallest, and how small does it get? Conclude that among all
# densities of a given variance the Gaussian has the largest entropy.

# %% [markdown] nbgrader={"grade": true, "grade_id": "best_gaussian", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# In nats,
# $D_{\mathrm{KL}}=-H(p)+\mathbb E_p\big[\tfrac12\ln2\pi v+\tfrac{(x-m)^2}{2v}\big]=-H(p)+\tfrac12\ln2\pi v+\tfrac{\varsigma^2+(\mu-m)^2}{2v}$.
#
# For any $v$ the best $m$ is $\mu$. Then the derivative with respect to $v$ is $\tfrac1{2v}-\tfrac{\varsigma^2}{2v^2}$,
# negative for $v<\varsigma^2$ and positive for $v>\varsigma^2$: the best $v$ is $\varsigma^2$. Matching two moments is
# all a Gaussian can do.
#
# The smallest value is $\tfrac12\ln(2\pi e\,\varsigma^2)-H(p)$, the entropy of the matching Gaussian minus that of $p$.
# By (0.8) it is not negative, so $H(p)\le\tfrac12\ln(2\pi e\,\varsigma^2)$, with equality only if $p$ is that Gaussian.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# ### Exercise 0.2 (paper, 4 points): a family of ways back
#
# Let $q_t$ be the density of $dx=f\,dt+g\,dw$ for $0\le t\le T$, and let $\tau=T-t$ be the time that runs backwards.
# Show that for every $\lambda\ge0$ the process
#
# $$ dx=\Big[-f+\tfrac12(1+\lambda^2)\,g^2\,\partial_x\log q_t\Big]d\tau+\lambda\,g\,dw, $$
#
# started from $q_T$ at $\tau=0$, has the density $q_{T-\tau}$ at every $\tau$. Which $\lambda$ is section 0.8?

# %% [markdown] nbgrader={"grade": true, "grade_id": "ways_back", "locked": false, "points": 4, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# Write $p_\tau=q_{T-\tau}$. Turning the clock round changes the sign of (0.18):
# $\partial_\tau p_\tau=\partial_x(f\,p_\tau)-\tfrac12g^2\,\partial_x^2p_\tau$.
#
# The Fokker–Planck equation of the proposed process, applied to $p_\tau$ and with $p\,\partial_x\log p=\partial_xp$,
# has the right-hand side
#
# $$ \begin{aligned} &-\partial_x\Big(\big[-f+\tfrac12(1+\lambda^2)g^2\,\partial_x\log p_\tau\big]p_\tau\Big)+\tfrac12\lambda^2g^2\,\partial_x^2p_\tau\cr
#    &\qquad=\partial_x(f\,p_\tau)-\tfrac12(1+\lambda^2)g^2\,\partial_x^2p_\tau+\tfrac12\lambda^2g^2\,\partial_x^2p_\tau. \end{aligned} $$
#
# The terms with $\lambda^2$ cancel, and what remains is the line above. So $p_\tau$ solves the equation and has the
# right start. (That the equation has no second solution with this start is the theorem one leans on; it holds for
# drifts as tame as these.) With $\lambda=0$ there is no noise: the probability flow. With $\lambda=1$ it is the reverse
# process of the SDE paper.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# ### Exercise 0.3 (code, 2 points): Bayes for a noisy measurement
#
# Let $x\sim\mathcal N(m,v)$ and $y=cx+\text{noise}$ of variance $r$. Return the mean and the variance of $x$ given $y$,
# and $\ln p(y)$. All arguments are tensors of one shape. Your function must also be right at $c=0$ (the measurement
# says nothing) and at $r=0$ (it says everything, if $c\ne0$).


# %% nbgrader={"grade": false, "grade_id": "gaussian_bayes", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def gaussian_bayes(m, v, c, r, y):
    """Mean and variance of p(x | y), and ln p(y) in nats."""
    ### BEGIN SOLUTION
    # variance of y
    total = c**2 * v + r
    gain = c * v / total
    mean = m + gain * (y - c * m)
    variance = v * r / total
    log_evidence = -0.5 * ((2 * math.pi * total).log() + (y - c * m) ** 2 / total)
    return mean, variance, log_evidence
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "test_gaussian_bayes", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
mean, variance, log_evidence = gaussian_bayes(*torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0]))
torch.testing.assert_close(torch.stack([mean, variance]), torch.tensor([1.0, 0.5]))
### BEGIN HIDDEN TESTS
m, v, c, r, y = torch.tensor(
    [[0.4, -1.0, 0.3], [0.5, 2.0, 0.7], [0.8, -1.5, 0.1], [0.3, 0.2, 1.9], [1.7, 0.6, -0.8]]
)
mean, variance, log_evidence = gaussian_bayes(m, v, c, r, y)
grid = torch.linspace(-15, 15, 60_001)[:, None]
joint = normal(grid, m, v) * normal(y, c * grid, r)
total = torch.trapezoid(joint, grid, dim=0)
# the mean, against an integral on a grid
torch.testing.assert_close(mean, torch.trapezoid(joint * grid, grid, dim=0) / total)
# the variance, likewise
torch.testing.assert_close(
    variance, torch.trapezoid(joint * (grid - mean) ** 2, grid, dim=0) / total
)
# the evidence, in nats
torch.testing.assert_close(log_evidence, total.log())
# c = 0: y says nothing
mean, variance, log_evidence = gaussian_bayes(*torch.tensor([0.4, 0.5, 0.0, 0.3, 1.7]))
torch.testing.assert_close(torch.stack([mean, variance]), torch.tensor([0.4, 0.5]))
# r = 0: y says everything
mean, variance, log_evidence = gaussian_bayes(*torch.tensor([0.4, 0.5, 2.0, 0.0, 1.7]))
torch.testing.assert_close(torch.stack([mean, variance]), torch.tensor([0.85, 0.0]))
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise 0.4 (code, 3 points): honest bits
#
# Pixels are integers $k\in\{0,\dots,L-1\}$, scaled to $[-1,1]$ as in section 0.5. A model gives each pixel an
# independent Gaussian. Return the bits per dimension of each image, from bin probabilities. So that they add to one,
# the first bin reaches down to $-\infty$ and the last up to $+\infty$.


# %% nbgrader={"grade": false, "grade_id": "bits_per_dim", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def bits_per_dim(k, mean, std, levels):
    """k: integers (batch, dims); mean, std: tensors that broadcast to it.  Returns (batch,)."""
    ### BEGIN SOLUTION
    x = 2 * k / (levels - 1) - 1
    half = 1 / (levels - 1)
    below = torch.where(k == 0, -math.inf, (x - half - mean) / std)
    above = torch.where(k == levels - 1, math.inf, (x + half - mean) / std)
    probability = torch.special.ndtr(above) - torch.special.ndtr(below)
    return -probability.log2().mean(-1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "test_bits_per_dim", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# two levels, split at 0
bits = bits_per_dim(torch.tensor([[0, 1]]), torch.tensor(0.0), torch.tensor(1.0), levels=2)
torch.testing.assert_close(bits, torch.tensor([1.0]))
### BEGIN HIDDEN TESTS
for levels in (17, 256):
    # every level once, as images of one pixel
    k = torch.arange(levels)[:, None]
    for mean, std in [(0.2, 0.3), (-0.9, 0.15), (1.3, 0.5)]:
        bits = bits_per_dim(k, torch.tensor(mean), torch.tensor(std), levels)
        # all levels together have probability 1
        torch.testing.assert_close((2.0**-bits).sum(), torch.tensor(1.0))
        inside = torch.linspace(
            2 * 5 / (levels - 1) - 1 - 1 / (levels - 1),
            2 * 5 / (levels - 1) - 1 + 1 / (levels - 1),
            2001,
        )
        # a level inside, against an integral of the density
        torch.testing.assert_close(
            2.0 ** -bits[5],
            torch.trapezoid(normal(inside, mean, std**2), inside),
            rtol=1e-5,
            atol=1e-14,
        )
k = torch.tensor([[3, 8, 16], [0, 4, 9]])
mean, std = torch.tensor([0.1, 0.0, 0.5]), torch.tensor([0.5, 0.4, 0.6])
together = bits_per_dim(k, mean, std, 17)
apart = torch.stack([bits_per_dim(k[:, [i]], mean[i], std[i], 17) for i in range(3)])
# one number for each image
assert together.shape == (2,)
# the mean over its pixels
torch.testing.assert_close(together, apart.mean(0))
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise 0.5 (code, 3 points): Heun's method
#
# Follow $\dot x=F(x,t)$ through a list of times $t_0,t_1,\dots,t_N$, which may be unevenly spaced and may run
# backwards. Return $x$ at $t_N$. Evaluate the velocity exactly twice per step.


# %% nbgrader={"grade": false, "grade_id": "heun", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def heun(velocity, x, times):
    """velocity(x, t) -> dx/dt; x: any shape; times: list of N + 1 numbers."""
    ### BEGIN SOLUTION
    for i in range(len(times) - 1):
        t, t_next = times[i], times[i + 1]
        h = t_next - t
        first = velocity(x, t)
        second = velocity(x + h * first, t_next)
        x = x + h / 2 * (first + second)
    return x
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "test_heun", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# x = t^2: Heun is exact
x = heun(lambda x, t: 2.0 * t + 0.0 * x, torch.zeros(3), [0.0, 0.5, 2.0])
torch.testing.assert_close(x, torch.full((3,), 4.0))


### BEGIN HIDDEN TESTS
def growing(x, t):
    calls.append(t)
    # exact solution x(t) = exp(sin t)
    return math.cos(t) * x


calls, errors = [], []
for n in (100, 200):
    backwards = [2.0 * (1 - (i / n) ** 1.5) for i in range(n + 1)]
    start = torch.tensor([math.exp(math.sin(2.0))])
    errors.append((heun(growing, start, backwards) - 1).abs().item())
    # the caller's tensor is untouched
    torch.testing.assert_close(start, torch.tensor([math.exp(math.sin(2.0))]))
# two evaluations in each step
assert len(calls) == 2 * (100 + 200)
# both ends, not the middle
torch.testing.assert_close(
    heun(lambda x, t: t**2 + 0.0 * x, torch.zeros(1), [0.0, 1.0]), torch.tensor([0.5])
)
# order two
assert 3.7 < errors[0] / errors[1] < 4.3
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise 0.6 (experiment, 5 points): is noise on the way back good or bad?
#
# Exercise 0.2 gave a way back for every $\lambda$. Try it on the mixture with the exact `score`: start 20,000 points
# from $\mathcal N(0,1)$ at $t=8$ and go back in $N$ Euler steps that are equal in $\sqrt{1-\bar\alpha}$ (as in section
# 0.1), with noise $\lambda\sqrt h\,z$, $z\sim\mathcal N(0,1)$, in a step of length $h$. Report the largest gap between
# the samples' distribution function and `cdf` for $\lambda=0,1,2$ and $N=10,40,160$. Then spoil the score: multiply it
# by 0.9 wherever it is used, as a badly trained network might. Which $\lambda$ is best with few steps and the exact
# score? Which is best with many steps and the spoiled one? Explain both. (For the second: which density does the part
# with $\lambda$ alone leave unchanged?)


# %% nbgrader={"grade": true, "grade_id": "noise_on_the_way_back", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell", "nbval-ignore-output"]
### BEGIN SOLUTION
def way_back(lam, n, spoil):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(20_000, generator=g)
    times = -torch.log1p(-(torch.linspace(math.sqrt(1 - math.exp(-8)), 0, n + 1) ** 2))
    for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        h = t - t_next
        x = (
            x
            + h * 0.5 * (x + (1 + lam**2) * spoil * score(x, t))
            + lam * math.sqrt(h) * torch.randn(x.shape, generator=g)
        )
    return (
        (cdf(x.sort().values, 0.0) - (torch.arange(len(x)) + 0.5) / len(x)).abs().max().item()
    )


result = {}
for spoil in (1.0, 0.9):
    for n in (10, 40, 160):
        for lam in (0, 1, 2):
            result[spoil, n, lam] = way_back(lam, n, spoil)
        print(
            f"score x {spoil}, {n:3d} steps:  "
            + "   ".join(f"lambda {lam}: {result[spoil, n, lam]:.3f}" for lam in (0, 1, 2))
        )
assert (
    result[1.0, 10, 0] < 0.75 * result[1.0, 10, 1]
    and result[1.0, 10, 0] < 0.75 * result[1.0, 10, 2]
)
assert max(result[1.0, 160, lam] for lam in (0, 1, 2)) < 0.02
assert result[0.9, 160, 2] < 0.75 * result[0.9, 160, 1] < 0.75**2 * result[0.9, 160, 0]
### END SOLUTION

# %% [markdown] nbgrader={"grade": true, "grade_id": "noise_on_the_way_back_why", "locked": false, "points": 2, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# With the exact score and few steps $\lambda=0$ is best: every way back has the same densities in the limit, but the
# drift contains $1+\lambda^2$ scores, so a larger $\lambda$ moves faster and an Euler step of the same length misses by
# more. With many steps all of them meet the truth to within the randomness of the sample.
#
# With the spoiled score and many steps the largest $\lambda$ is best. Split the motion in two: the probability flow,
# and the pair $\tfrac12\lambda^2g^2\,\partial_x\log q\,d\tau+\lambda g\,dw$. By (0.18) the pair alone leaves $q$
# unchanged, and with a score of $0.9\,\partial_x\log q$ it leaves $q^{0.9}$ (normalised) unchanged, a slightly widened
# $q$. So it pulls the points towards nearly the right density at every moment and forgets what went wrong earlier,
# whereas the errors of the flow without noise add up to the end. Noise costs steps and repairs errors; EDM will weigh
# the two.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# ## 0.13 Summary
#
# Noising turns any distribution into very nearly a Gaussian, in a way that is known exactly, and knowing the score at
# every noise level is enough to run it backwards, with noise or without. The tools are few: multiply Gaussians, count
# bits with Kullback–Leibler divergences, move a logarithm through a mean with Jensen, test a density with a smooth
# function, compare a step with Taylor's series. What is missing is the score of data that we know only through
# examples, and learning it is the subject of [chapter 02](02_ddpm.ipynb).
#
# | tool | where it returns |
# |---|---|
# | noising (0.1), Gaussians (0.4)–(0.6) | DDPM's equations 2, 4, 6 and 7 |
# | divergences and bits (0.7)–(0.10), the evidence bound (0.12) | DDPM's 3 and 5; the bound of SD |
# | bins and units (0.14) | DDPM's 13, and every number in bits per dimension |
# | detailed balance (0.15) | SD's 1, and its first reverse step |
# | Fokker–Planck and the probability flow (0.18), (0.19) | SDE's 13, EDM's 1 and 4 |
# | order (0.20), (0.21) | EDM's Algorithm 1 |
# | the bridge (0.22), (0.23) | DDIM's 13 and 14, all of EDM |
#
# **References.** SD: Sohl-Dickstein, Weiss, Maheswaranathan, Ganguli, *Deep unsupervised learning using nonequilibrium
# thermodynamics*, 2015, [arXiv:1503.03585](https://arxiv.org/abs/1503.03585). DDPM: Ho, Jain, Abbeel, *Denoising
# diffusion probabilistic models*, 2020, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239). DDIM: Song, Meng, Ermon,
# *Denoising diffusion implicit models*, 2020, [arXiv:2010.02502](https://arxiv.org/abs/2010.02502). SDE: Song,
# Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, *Score-based generative modeling through stochastic differential
# equations*, 2021, [arXiv:2011.13456](https://arxiv.org/abs/2011.13456). IDDPM: Nichol, Dhariwal, *Improved denoising
# diffusion probabilistic models*, 2021, [arXiv:2102.09672](https://arxiv.org/abs/2102.09672). ADM: Dhariwal, Nichol,
# *Diffusion models beat GANs on image synthesis*, 2021, [arXiv:2105.05233](https://arxiv.org/abs/2105.05233). EDM:
# Karras, Aittala, Aila, Laine, *Elucidating the design space of diffusion-based generative models*, 2022,
# [arXiv:2206.00364](https://arxiv.org/abs/2206.00364).
