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
# # 02 · Denoising diffusion probabilistic models
#
# In 2015 a chain of small noisy steps had been shown to be a generative model that can be trained, and for five years
# few people used it: the pictures it drew were poor. In 2020 Ho, Jain and Abbeel changed three choices of the method,
# took a modern network, and left the mathematics alone. On CIFAR-10 their pictures became the best that any
# unconditional model had drawn. **Which choices, and why do they matter so much?**
#
# At the end of this chapter you will have derived every numbered equation of their paper and tested each with a cell
# that would fail were it wrong. You will have trained the model, drawn digits from it, counted the bits it needs for
# digits it has never seen, and found out which of its thousand steps these bits are spent on.
#
# You need chapter 00: conditioning of Gaussians, Kullback–Leibler divergence, bits. The cells run in under three
# minutes on two processor cores; reading takes an afternoon. The letters are those of the paper; its bold
# $\boldsymbol\epsilon$ is the $\varepsilon$ of chapter 00:
#
# | paper | meaning | here, in code |
# |---|---|---|
# | $\mathbf x_0$, $\mathbf x_t$ | data; data after $t$ steps of noise, $t=1\dots T$ | `x0`, `xt` |
# | $\beta_t$, $\alpha_t=1-\beta_t$, $\bar\alpha_t=\prod_{s\le t}\alpha_s$ | variance added by a step; what a step keeps; what $t$ steps keep | `beta[t]`, `alpha[t]`, `alpha_bar[t]` |
# | $q$, $p_\theta$ | the forward chain, fixed; the reverse chain, learned | `q_sample`, `reverse` |
# | $\boldsymbol\epsilon$, $\boldsymbol\epsilon_\theta(\mathbf x_t,t)$ | the noise that was added; the network's guess of it | `noise`, `net(xt, t)` |
# | $\hat{\mathbf x}_0$ | what the network's guess says of the data | `x0_hat` |
# | $L$; $L_T$, $L_{t-1}$, $L_0$ | the bound on $-\log p_\theta(\mathbf x_0)$; its terms | `bound`, `bound_term` |
# | $\tilde{\boldsymbol\mu}_t$, $\tilde\beta_t$ | mean and variance of $q(\mathbf x_{t-1}\mid\mathbf x_t,\mathbf x_0)$ | `mean`, `beta_tilde[t]` |
# | $\boldsymbol\mu_\theta$, $\sigma_t^2$ | mean and variance of $p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)$ | `process.reverse(net, xt, t)` |
#
# One convention will bite you if it is not said aloud. The paper counts steps $t=1\dots T$, and so does this chapter:
# its arrays have an entry 0 with $\bar\alpha_0=1$, no noise yet, so that `alpha_bar[t - 1]` is always right. The
# library counts $0\dots T-1$, as all official code does: its `t = 0` is one step of noise. Wherever the two meet you
# will read `t - 1`.

# %% tags=["setup"]
import itertools
import json
import math
from pathlib import Path

import torch
from matplotlib import pyplot as plt

import minidiff as md
from minidiff import plots

plots.style()
# these toys are too small to be shared between cores
torch.set_num_threads(1)
# derivations are checked in double precision
double = torch.float64

T = 1000
# beta[0] = 0, then β_1 … β_T as the paper counts
beta = torch.cat([torch.zeros(1, dtype=double), md.linear_betas(T)])
alpha = 1 - beta
alpha_bar = torch.cumprod(alpha, 0)  # alpha_bar[0] = 1
beta_tilde = beta.clone()
beta_tilde[1:] = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta[1:]
# the library's process, for the 17 grey levels of the digits
process = md.GaussianDiffusion(md.linear_betas(T), levels=17)


def rng(seed):
    """A fresh source of randomness: the same seed gives the same numbers in every run."""
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## 2.1 The gap
#
# The framework of 2015 ([chapter 01](01_nonequilibrium_thermodynamics.ipynb)) leaves three things open. The reverse
# step is a Gaussian whose mean a network predicts: should the network give that mean itself, or something from which
# the mean follows? Its variance: learned, or fixed, and to what? And the training loss is a sum over steps: should
# every term keep the weight that the likelihood gives it?
#
# Before any theory, look at what depends on it. Two networks, equal to the last weight at the start, saw the same
# digits for the same number of steps. The first was asked for the mean, and was trained on the bound, which is what
# the framework suggests. The second was asked for the noise, and every step counted the same, which is what this
# chapter will arrive at. (The runs take longer than a chapter may; the script `chapters/results/ddpm_ablation.py`
# repeats them. Section 2.14 shows its whole table.)

# %%
ablation = json.loads(Path("results/ddpm_ablation.json").read_text())


def drawn(row):
    """The samples stored with a row of the ablation, as images in [-1, 1]."""
    pixels = torch.tensor(ablation["rows"][row]["samples"], dtype=torch.uint8).reshape(
        -1, 1, 8, 8
    )
    return md.encode(pixels, levels=17)


fig, axes = plt.subplots(1, 2, figsize=(6.4, 1.75))
plots.show_grid(
    drawn("mean, bound, fixed variance"),
    columns=8,
    title="asked for the mean",
    ax=axes[0],
)
plots.show_grid(drawn("eps, simple"), columns=8, title="asked for the noise", ax=axes[1])
plt.suptitle(
    "Same network, same digits, same effort: question and loss decide",
    fontsize=10.5,
    fontweight="bold",
)
plt.show()

# %% [markdown]
# ## 2.2 Forward: adding noise
#
# One step shrinks the data a little and adds a little Gaussian noise:
#
# $$ q(\mathbf x_t\mid\mathbf x_{t-1})=\mathcal N\big(\mathbf x_t;\ \sqrt{1-\beta_t}\,\mathbf x_{t-1},\ \beta_t\mathbf I\big) \tag{DDPM 2}\label{eq:ddpm-2} $$
#
# *Also IDDPM 1–2, ADM 15.*
#
# Why shrink at all, and why by a square root? Because then the size of the data never runs away. If $\mathbf x_{t-1}$
# has variance 1, then **independent variances add**, and $\mathbf x_t$ has variance $(1-\beta_t)\cdot1+\beta_t=1$.
# Without the root, or without the shrinking, the network would have to cope with inputs whose scale changes from step
# to step. So the check of this definition is its purpose: through a thousand steps the variance of unit-variance data
# stays exactly 1, and data of any other variance move towards 1.

# %%
# check: DDPM 2, IDDPM 1–2, ADM 15
# three data sets of different spread
variance = torch.tensor([1.0, 0.25, 9.0], dtype=double)
for t in range(1, T + 1):
    # Var[√(1−β) x + √β ε], the two being independent
    variance = (1 - beta[t]) * variance + beta[t]
print("variance after 1000 steps:", [f"{v:.5f}" for v in variance])
assert abs(variance[0] - 1) < 1e-12 and (variance - 1).abs().max() < 1e-3

# the library's single step, on many numbers
sample = md.GaussianDiffusion(torch.full((2,), 0.3, dtype=double)).q_sample(
    torch.full((400_000, 1), 0.5, dtype=double),
    torch.zeros(400_000, dtype=torch.long),
    torch.randn(400_000, 1, generator=rng(0), dtype=double),
)
# four standard errors
assert abs(sample.mean() - 0.7**0.5 * 0.5) < 4 * (0.3 / 400_000) ** 0.5
assert abs(sample.var() - 0.3) < 4 * 0.3 * (2 / 400_000) ** 0.5

# %% [markdown]
# A thousand steps for every training example would be slow. They are not needed: the composition of the first two
# steps is
#
# $$\begin{aligned}
# \mathbf x_2&=\sqrt{\alpha_2}\big(\sqrt{\alpha_1}\,\mathbf x_0+\sqrt{\beta_1}\,\boldsymbol\epsilon_1\big)+\sqrt{\beta_2}\,\boldsymbol\epsilon_2\\
# &=\sqrt{\alpha_1\alpha_2}\,\mathbf x_0+\underbrace{\sqrt{\alpha_2\beta_1}\,\boldsymbol\epsilon_1+\sqrt{\beta_2}\,\boldsymbol\epsilon_2}_{\text{variance }\ \alpha_2(1-\alpha_1)+1-\alpha_2\ =\ 1-\alpha_1\alpha_2}
# \end{aligned}$$
#
# **A sum of independent Gaussians is a Gaussian whose variance is the sum**, and the sum comes out as one minus the
# product of the gains. That pattern repeats: if it holds after $t-1$ steps with $\bar\alpha_{t-1}$, one more step
# multiplies the gain by $\alpha_t$ and turns the variance into $\alpha_t(1-\bar\alpha_{t-1})+\beta_t=1-\bar\alpha_t$.
# By **induction**,
#
# $$ q(\mathbf x_t\mid\mathbf x_0)=\mathcal N\big(\mathbf x_t;\ \sqrt{\bar\alpha_t}\,\mathbf x_0,\ (1-\bar\alpha_t)\mathbf I\big),
#    \qquad \bar\alpha_t=\prod_{s=1}^t\alpha_s \tag{DDPM 4}\label{eq:ddpm-4} $$
#
# *Also IDDPM 8–9, ADM 16–17.*
#
# so $t$ steps cost as much as one:
# $\mathbf x_t=\sqrt{\bar\alpha_t}\,\mathbf x_0+\sqrt{1-\bar\alpha_t}\,\boldsymbol\epsilon$. The check lets the single
# steps $\eqref{eq:ddpm-2}$ run and compares with the formula at every $t$. It follows mean and variance, which for a
# Gaussian is everything.

# %%
# check: DDPM 4, IDDPM 8–9, ADM 16–17
gain, spread = torch.ones((), dtype=double), torch.zeros((), dtype=double)  # of x_t given x_0
for t in range(1, T + 1):
    gain, spread = (1 - beta[t]).sqrt() * gain, (1 - beta[t]) * spread + beta[t]
    torch.testing.assert_close(gain, alpha_bar[t].sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(spread, 1 - alpha_bar[t], rtol=1e-12, atol=0)
print(
    f"of x_0 there is left: {alpha_bar[500].sqrt():.4f} after 500 steps, "
    f"{alpha_bar[1000].sqrt():.4f} after 1000"
)

# %% [markdown]
# The library holds the same table and the same line of code. That it is what we derived is not a matter of trust:

# %%
digits, held_out = md.digits("train"), md.digits("test")
x0 = digits.x[:5].double()
noise = torch.randn(x0.shape, generator=rng(1), dtype=double)
for t in (1, 10, 500, 1000):
    naive = alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * noise
    torch.testing.assert_close(
        process.q_sample(x0, torch.full((5,), t - 1), noise), naive, rtol=1e-12, atol=1e-12
    )

shown = (0, 1, 25, 50, 100, 200, 300, 500, 750, 1000)
chain = [alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * noise for t in shown]
plots.show_grid(
    torch.stack(chain, 1).flatten(0, 1),
    columns=len(shown),
    title="A digit is legible to step 200, a shadow at 500, gone at 1000",
    column_labels=[f"t = {t}" for t in shown],
)
plt.show()
print(
    f"{len(digits)} digits to train on, {len(held_out)} held out; "
    "8×8 pixels of 17 grey levels, from -1 to 1"
)

# %% [markdown]
# ## 2.3 Reverse: a chain with learned steps
#
# To draw a digit we want to walk the other way: start from noise, $p(\mathbf x_T)=\mathcal N(\mathbf 0,\mathbf I)$,
# and undo one step after another. Let each undoing be a Gaussian whose mean a network computes:
#
# $$\begin{aligned}
# p_\theta(\mathbf x_{0:T})&=p(\mathbf x_T)\prod_{t=1}^T p_\theta(\mathbf x_{t-1}\mid\mathbf x_t),\\
# p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)&=\mathcal N\big(\mathbf x_{t-1};\ \boldsymbol\mu_\theta(\mathbf x_t,t),\ \boldsymbol\Sigma_\theta(\mathbf x_t,t)\big)
# \end{aligned}\tag{DDPM 1}\label{eq:ddpm-1}$$
#
# *Also IDDPM 3, ADM 21.*
#
# Why may it be a Gaussian? By Bayes, the exact undoing $q(\mathbf x_{t-1}\mid\mathbf x_t)$ is
# $q(\mathbf x_t\mid\mathbf x_{t-1})\,q(\mathbf x_{t-1})/q(\mathbf x_t)$. Read as a function of $\mathbf x_{t-1}$, the
# first factor is a Gaussian of the tiny width $\sqrt{\beta_t}$. Across that width the density $q(\mathbf x_{t-1})$
# hardly changes, and its logarithm can be replaced by a straight line; a Gaussian times the exponential of a straight
# line is a shifted Gaussian. The smaller the step, the better this is, which is the reason for a thousand of them.
# (In the very first steps the density of pixels is a comb of 17 spikes, and this fails; section 2.15 counts what it
# costs.)
#
# The definition $\eqref{eq:ddpm-1}$ has a consequence that we can test without training anything. Where the data are
# Gaussian, $x_0\sim\mathcal N(m,s^2)$, the undoing is Gaussian for any step size, and conditioning (chapter 00) gives
# its mean and variance. A chain built of these exact steps must lead from noise to the data, that is, end at mean $m$
# and variance $s^2$.

# %%
# check: DDPM 1, IDDPM 3, ADM 21
m, s2 = 0.4, 0.09  # the data: N(0.4, 0.3²)
mean, var = torch.zeros((), dtype=double), torch.ones((), dtype=double)  # x_T ~ N(0, 1)
for t in range(T, 0, -1):
    # of x_{t-1} under q
    mean_prev, var_prev = (
        alpha_bar[t - 1].sqrt() * m,
        alpha_bar[t - 1] * s2 + 1 - alpha_bar[t - 1],
    )
    var_t = alpha[t] * var_prev + beta[t]  # of x_t under q
    # slope of the regression of x_{t-1} on x_t
    k = alpha[t].sqrt() * var_prev / var_t
    # through the step: x_{t-1} = mean_prev + k (x_t − …) + noise
    mean = mean_prev + k * (mean - alpha[t].sqrt() * mean_prev)
    # the noise has variance var_prev − k² var_t
    var = k**2 * var + var_prev - k**2 * var_t
print(f"the chain ends at mean {mean:.5f} (data {m}), variance {var:.6f} (data {s2})")
# not exact: x_T still remembers √ᾱ_T = 0.0064 of the data
assert abs(mean - m) < 1e-3 and abs(var - s2) < 1e-4

# %% [markdown]
# For real data the exact steps are unknown, and a network has to learn them. From what?
#
# ## 2.4 The bound
#
# A good model gives the data a high probability, so we would minimise $-\log p_\theta(\mathbf x_0)$. It cannot be
# computed, since it is an integral over all paths $\mathbf x_{1:T}$ that could have led to $\mathbf x_0$. But forward
# paths are easy to draw, so we **multiply and divide** by their probability and read the integral as an expectation:
#
# $$\begin{aligned}
# -\log p_\theta(\mathbf x_0)&=-\log\int p_\theta(\mathbf x_{0:T})\,d\mathbf x_{1:T}\\
# &=-\log\mathbb E_{q(\mathbf x_{1:T}\mid\mathbf x_0)}\!\left[\frac{p_\theta(\mathbf x_{0:T})}{q(\mathbf x_{1:T}\mid\mathbf x_0)}\right]
# \end{aligned}$$
#
# **Jensen's inequality**: the logarithm is concave, so the logarithm of a mean is at least the mean of the
# logarithms. Put in the factors of both chains, average over the data, and call the right side $L$:
#
# $$\begin{aligned}
# &\mathbb E\big[-\log p_\theta(\mathbf x_0)\big]
# \le\mathbb E_q\!\left[-\log\frac{p_\theta(\mathbf x_{0:T})}{q(\mathbf x_{1:T}\mid\mathbf x_0)}\right]\\
# &\quad=\mathbb E_q\!\left[-\log p(\mathbf x_T)-\sum_{t\ge1}\log\frac{p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)}{q(\mathbf x_t\mid\mathbf x_{t-1})}\right]=:L
# \end{aligned}\tag{DDPM 3}\label{eq:ddpm-3}$$
#
# Nothing in this used Gaussians. It holds for any two chains, and so we can test it, and all of its rearrangements,
# in a world where expectations are sums that a computer can write out: a chain over **five states**, three steps
# long. It has $5^4=625$ paths. Let the forward steps and the reverse steps be arbitrary tables of probabilities,
# drawn at random; the reverse chain knows nothing of the forward one, and the statements must hold all the same.

# %%
states, steps = 5, 3
g = rng(2)


def table(*shape):
    """Random probabilities along the last axis."""
    return torch.softmax(torch.randn(*shape, generator=g, dtype=double), -1)


data = table(states)  # q(x_0)
# forward[t][a, b] = q(x_t = b | x_{t-1} = a)
forward = [None] + [table(states, states) for _ in range(steps)]
prior = table(states)  # p(x_T)
# back[t][b, a] = p_θ(x_{t-1} = a | x_t = b)
back = [None] + [table(states, states) for _ in range(steps)]

paths = list(itertools.product(range(states), repeat=steps + 1))  # all (x_0, x_1, x_2, x_3)
q_path = torch.stack(
    [
        data[x[0]] * math.prod(forward[t][x[t - 1], x[t]] for t in range(1, steps + 1))
        for x in paths
    ]
)
p_path = torch.stack(
    [
        prior[x[-1]] * math.prod(back[t][x[t], x[t - 1]] for t in range(1, steps + 1))
        for x in paths
    ]
)


def expect(f):
    """E_q[f(path)], summed over all 625 paths."""
    return sum(q * f(x) for q, x in zip(q_path, paths, strict=True))


L = expect(
    lambda x: (
        -prior[x[-1]].log()
        - sum(
            (back[t][x[t], x[t - 1]] / forward[t][x[t - 1], x[t]]).log()
            for t in range(1, steps + 1)
        )
    )
)
p_x0 = torch.stack(
    [sum(p for p, x in zip(p_path, paths, strict=True) if x[0] == a) for a in range(states)]
)
print(
    f"625 paths, total probability {q_path.sum():.12f};   "
    f"E[-log p(x_0)] = {-(data * p_x0.log()).sum():.4f} nats   L = {L:.4f} nats"
)

# %% [markdown]
# For each single $x_0$ the inequality has to hold too. And the average $L$ has a smallest value, the entropy of the
# data, which exactly one reverse chain reaches: the forward chain undone, started from $q(\mathbf x_T)$. Both are
# worth asserting: an inequality alone would also hold with a term too many.

# %%
# check: DDPM 3
# log p(x_{0:T}) / q(x_{1:T} | x_0) of each path
log_ratio = (p_path / (q_path / data[[x[0] for x in paths]])).log()
for a in range(states):
    here = torch.tensor([x[0] == a for x in paths])
    bound = -(q_path[here] / data[a] * log_ratio[here]).sum()
    assert -p_x0[a].log() < bound
torch.testing.assert_close(expect(lambda x: -log_ratio[paths.index(x)]), L)

marginal = [data]  # q(x_t)
for t in range(1, steps + 1):
    marginal.append(marginal[-1] @ forward[t])
# q(x_{t-1} | x_t), Bayes
undo = [None] + [
    (forward[t] * marginal[t - 1][:, None] / marginal[t]).T for t in range(1, steps + 1)
]
tight = expect(
    lambda x: (
        -marginal[-1][x[-1]].log()
        - sum(
            (undo[t][x[t], x[t - 1]] / forward[t][x[t - 1], x[t]]).log()
            for t in range(1, steps + 1)
        )
    )
)
# the bound is the entropy of the data: nothing is lost
torch.testing.assert_close(tight, -(data * data.log()).sum())
print(f"with the exact undoing L = {tight:.6f} = H(x_0) nats")

# %% [markdown]
# In this form $L$ is hard to learn from: each term compares a reverse step with a forward step, two things that point
# in opposite directions, and a Monte Carlo estimate of their difference is noisy. The paper's Appendix A turns it
# around. Six lines, one rule each. **Write the bound with whole paths**, then **take the logarithm of the products
# apart**:
#
# $$\begin{aligned}
# L&=\mathbb E_q\!\left[-\log\frac{p_\theta(\mathbf x_{0:T})}{q(\mathbf x_{1:T}\mid\mathbf x_0)}\right]\\
# &=\mathbb E_q\!\left[-\log p(\mathbf x_T)-\sum_{t\ge1}\log\frac{p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)}{q(\mathbf x_t\mid\mathbf x_{t-1})}\right]
# \end{aligned}\tag{DDPM 17–18}$$
#
# **Split off the first step**, $t=1$, which will need no turning:
#
# $$\begin{aligned}
# L=\mathbb E_q\bigg[-\log p(\mathbf x_T)&-\sum_{t>1}\log\frac{p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)}{q(\mathbf x_t\mid\mathbf x_{t-1})}\\
# &-\log\frac{p_\theta(\mathbf x_0\mid\mathbf x_1)}{q(\mathbf x_1\mid\mathbf x_0)}\bigg]
# \end{aligned}\tag{DDPM 19}$$
#
# Now the idea. The chain is Markov, so
# $q(\mathbf x_t\mid\mathbf x_{t-1})=q(\mathbf x_t\mid\mathbf x_{t-1},\mathbf x_0)$: telling it where it started
# changes nothing. But with $\mathbf x_0$ in the condition, **Bayes' rule** turns the step around into something that
# can be computed:
# $q(\mathbf x_t\mid\mathbf x_{t-1},\mathbf x_0)=q(\mathbf x_{t-1}\mid\mathbf x_t,\mathbf x_0)\,q(\mathbf x_t\mid\mathbf x_0)\,/\,q(\mathbf x_{t-1}\mid\mathbf x_0)$.
# Hence
#
# $$\begin{aligned}
# L=\mathbb E_q\bigg[&-\log p(\mathbf x_T)\\
# &-\sum_{t>1}\log\left(\frac{p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)}{q(\mathbf x_{t-1}\mid\mathbf x_t,\mathbf x_0)}\cdot\frac{q(\mathbf x_{t-1}\mid\mathbf x_0)}{q(\mathbf x_t\mid\mathbf x_0)}\right)\\
# &-\log\frac{p_\theta(\mathbf x_0\mid\mathbf x_1)}{q(\mathbf x_1\mid\mathbf x_0)}\bigg]
# \end{aligned}\tag{DDPM 20}$$
#
# The second fractions **telescope**: in their product each $q(\mathbf x_t\mid\mathbf x_0)$ stands once above and once
# below, until only $q(\mathbf x_1\mid\mathbf x_0)/q(\mathbf x_T\mid\mathbf x_0)$ is left. Its numerator cancels the
# denominator of the last term:
#
# $$\begin{aligned}
# L=\mathbb E_q\bigg[-\log\frac{p(\mathbf x_T)}{q(\mathbf x_T\mid\mathbf x_0)}&-\sum_{t>1}\log\frac{p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)}{q(\mathbf x_{t-1}\mid\mathbf x_t,\mathbf x_0)}\\
# &-\log p_\theta(\mathbf x_0\mid\mathbf x_1)\bigg]
# \end{aligned}\tag{DDPM 21}$$
#
# **Recognise the Kullback–Leibler divergences**: the expectation over $\mathbf x_{t-1}$, for given $\mathbf x_t$ and
# $\mathbf x_0$, of the logarithm of $q/p_\theta$ is $D_{\mathrm{KL}}(q\,\|\,p_\theta)$.
#
# $$\begin{aligned}
# L&=\mathbb E_q\Big[L_T+\sum_{t>1}L_{t-1}+L_0\Big],\\
# L_T&=D_{\mathrm{KL}}\big(q(\mathbf x_T\mid\mathbf x_0)\,\big\|\,p(\mathbf x_T)\big),\\
# L_{t-1}&=D_{\mathrm{KL}}\big(q(\mathbf x_{t-1}\mid\mathbf x_t,\mathbf x_0)\\
# &\qquad\qquad\big\|\,p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)\big),\\
# L_0&=-\log p_\theta(\mathbf x_0\mid\mathbf x_1)
# \end{aligned}\tag{DDPM 5, DDPM 22}\label{eq:ddpm-5}$$
#
# *Also IDDPM 4–7, ADM 22–25.*
#
# Each term now compares a learned undoing with an undoing that knows the answer. If both are Gaussian, the comparison
# needs no sampling at all. In the five-state world every line above can be computed as it is printed:

# %%
# check: DDPM 17–22, DDPM 5, IDDPM 4–7, ADM 22–25
# reach[t][a, b] = q(x_t = b | x_0 = a)
reach = [torch.eye(states, dtype=double)]
for t in range(1, steps + 1):
    reach.append(reach[-1] @ forward[t])


def posterior(t, x):
    """q(x_{t-1} | x_t, x_0) along a path: the share of the ways x_0 → x_t through x_{t-1}."""
    return reach[t - 1][x[0], x[t - 1]] * forward[t][x[t - 1], x[t]] / reach[t][x[0], x[t]]


lines = {
    17: lambda x: -log_ratio[paths.index(x)],
    18: lambda x: (
        -prior[x[-1]].log()
        - sum((back[t][x[t], x[t - 1]] / forward[t][x[t - 1], x[t]]).log() for t in (1, 2, 3))
    ),
    19: lambda x: (
        -prior[x[-1]].log()
        - sum((back[t][x[t], x[t - 1]] / forward[t][x[t - 1], x[t]]).log() for t in (2, 3))
        - (back[1][x[1], x[0]] / forward[1][x[0], x[1]]).log()
    ),
    20: lambda x: (
        -prior[x[-1]].log()
        - sum(
            (
                back[t][x[t], x[t - 1]]
                / posterior(t, x)
                * reach[t - 1][x[0], x[t - 1]]
                / reach[t][x[0], x[t]]
            ).log()
            for t in (2, 3)
        )
        - (back[1][x[1], x[0]] / forward[1][x[0], x[1]]).log()
    ),
    21: lambda x: (
        -(prior[x[-1]] / reach[3][x[0], x[3]]).log()
        - sum((back[t][x[t], x[t - 1]] / posterior(t, x)).log() for t in (2, 3))
        - back[1][x[1], x[0]].log()
    ),
}
for number, line in lines.items():
    torch.testing.assert_close(expect(line), L, msg=f"line {number}")

L_T = (data[:, None] * reach[3] * (reach[3] / prior).log()).sum()
L_mid = 0
for t in (2, 3):
    q = torch.einsum("i,ij,jk->ijk", data, reach[t - 1], forward[t])  # q(x_0, x_{t-1}, x_t)
    # q(x_{t-1} | x_t, x_0), again from the definition
    given = q / q.sum(1, keepdim=True)
    # weighted Kullback–Leibler divergences
    L_mid = L_mid + (q * (given / back[t].T).log()).sum()
L_0 = -(data[:, None] * forward[1] * back[1].T.log()).sum()
torch.testing.assert_close(L_T + L_mid + L_0, L)
print(
    f"L = {L:.6f} = L_T {L_T:.4f} + L_2 + L_1 {L_mid:.4f} + L_0 {L_0:.4f} nats; "
    "all six lines agree"
)

# %% [markdown]
# There is a third way to write the same $L$, and it says what the bound costs. Do not bring in $\mathbf x_0$; turn
# the forward step around with the **marginals**,
# $q(\mathbf x_t\mid\mathbf x_{t-1})=q(\mathbf x_{t-1}\mid\mathbf x_t)\,q(\mathbf x_t)/q(\mathbf x_{t-1})$, and
# **telescope** again:
#
# $$\begin{aligned}
# L&=\mathbb E_q\!\left[-\log p(\mathbf x_T)-\sum_{t\ge1}\log\frac{p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)}{q(\mathbf x_t\mid\mathbf x_{t-1})}\right]\\
# &=\mathbb E_q\bigg[-\log p(\mathbf x_T)\\
# &\qquad\quad-\sum_{t\ge1}\log\left(\frac{p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)}{q(\mathbf x_{t-1}\mid\mathbf x_t)}\cdot\frac{q(\mathbf x_{t-1})}{q(\mathbf x_t)}\right)\bigg]\\
# &=\mathbb E_q\bigg[-\log\frac{p(\mathbf x_T)}{q(\mathbf x_T)}\\
# &\qquad\quad-\sum_{t\ge1}\log\frac{p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)}{q(\mathbf x_{t-1}\mid\mathbf x_t)}-\log q(\mathbf x_0)\bigg]
# \end{aligned}\tag{DDPM 23–25}$$
#
# Reading off divergences once more, with $H(\mathbf x_0)=\mathbb E[-\log q(\mathbf x_0)]$ for the entropy of the
# data:
#
# $$\begin{aligned}
# L={}&D_{\mathrm{KL}}\big(q(\mathbf x_T)\,\big\|\,p(\mathbf x_T)\big)\\
# &+\mathbb E_q\Big[\sum_{t\ge1}D_{\mathrm{KL}}\big(q(\mathbf x_{t-1}\mid\mathbf x_t)\\
# &\qquad\qquad\big\|\,p_\theta(\mathbf x_{t-1}\mid\mathbf x_t)\big)\Big]\\
# &+H(\mathbf x_0)
# \end{aligned}\tag{DDPM 16, DDPM 26}\label{eq:ddpm-16}$$
#
# The entropy is the price that any code pays. What a model can lose, it loses step by step, each time its undoing
# differs from the true one. Nobody can compute these terms for pictures, since $q(\mathbf x_{t-1}\mid\mathbf x_t)$ is
# unknown; we keep $\eqref{eq:ddpm-5}$ for training and $\eqref{eq:ddpm-16}$ for thinking.

# %%
# check: DDPM 16, DDPM 23–26
lines = {
    23: lambda x: (
        -prior[x[-1]].log()
        - sum((back[t][x[t], x[t - 1]] / forward[t][x[t - 1], x[t]]).log() for t in (1, 2, 3))
    ),
    24: lambda x: (
        -prior[x[-1]].log()
        - sum(
            (
                back[t][x[t], x[t - 1]]
                / undo[t][x[t], x[t - 1]]
                * marginal[t - 1][x[t - 1]]
                / marginal[t][x[t]]
            ).log()
            for t in (1, 2, 3)
        )
    ),
    25: lambda x: (
        -(prior[x[-1]] / marginal[3][x[3]]).log()
        - sum((back[t][x[t], x[t - 1]] / undo[t][x[t], x[t - 1]]).log() for t in (1, 2, 3))
        - data[x[0]].log()
    ),
}
for number, line in lines.items():
    torch.testing.assert_close(expect(line), L, msg=f"line {number}")
end = (marginal[3] * (marginal[3] / prior).log()).sum()
lost = [(marginal[t][:, None] * undo[t] * (undo[t] / back[t]).log()).sum() for t in (1, 2, 3)]
entropy = -(data * data.log()).sum()
torch.testing.assert_close(end + sum(lost) + entropy, L)
print(
    f"L = {L:.6f} = end {end:.4f} + steps {sum(lost):.4f} + entropy of the data {entropy:.4f} nats"
)

# %% [markdown]
# ## 2.5 The undoing that knows the answer
#
# Equation $\eqref{eq:ddpm-5}$ asks for $q(\mathbf x_{t-1}\mid\mathbf x_t,\mathbf x_0)$. Given $\mathbf x_0$, both
# $\mathbf x_{t-1}$ and $\mathbf x_t$ are Gaussian, and the second is a noisy copy of the first, so this is a
# regression: what is our best guess of $\mathbf x_{t-1}$ when we see $\mathbf x_t$? Every pixel by itself.
#
# Before looking at $x_t$, $\eqref{eq:ddpm-4}$ says that $x_{t-1}$ has mean $\sqrt{\bar\alpha_{t-1}}\,x_0$ and
# variance $1-\bar\alpha_{t-1}$. Since $x_t=\sqrt{\alpha_t}\,x_{t-1}+\sqrt{\beta_t}\,\epsilon$, the covariance of the
# two is $\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})$, and the variance of $x_t$ is $1-\bar\alpha_t$. **The regression of
# jointly Gaussian variables is linear, with slope covariance over variance**:
#
# $$ k=\frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t},\qquad
#    \mathbb E[x_{t-1}\mid x_t,x_0]=\sqrt{\bar\alpha_{t-1}}\,x_0+k\,\big(x_t-\sqrt{\bar\alpha_t}\,x_0\big) $$
#
# **Collect the factor of $x_0$**:
# $\sqrt{\bar\alpha_{t-1}}-k\sqrt{\bar\alpha_t}=\sqrt{\bar\alpha_{t-1}}\,\big(1-\bar\alpha_t-\alpha_t(1-\bar\alpha_{t-1})\big)/(1-\bar\alpha_t)$,
# and the bracket is $1-\alpha_t=\beta_t$. **What the regression explains is taken off the variance**:
# $1-\bar\alpha_{t-1}-k\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})$, which by the same bracket is
# $(1-\bar\alpha_{t-1})\,\beta_t/(1-\bar\alpha_t)$. So
#
# $$ q(\mathbf x_{t-1}\mid\mathbf x_t,\mathbf x_0)=\mathcal N\big(\mathbf x_{t-1};\ \tilde{\boldsymbol\mu}_t(\mathbf x_t,\mathbf x_0),\ \tilde\beta_t\mathbf I\big) \tag{DDPM 6}\label{eq:ddpm-6} $$
#
# *Also IDDPM 12, ADM 20.*
#
# $$\begin{aligned}
# \tilde{\boldsymbol\mu}_t(\mathbf x_t,\mathbf x_0)&=\frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,\mathbf x_0+\frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,\mathbf x_t,\\
# \tilde\beta_t&=\frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t
# \end{aligned}\tag{DDPM 7}\label{eq:ddpm-7}$$
#
# *Also IDDPM 10–11, ADM 18–19.*
#
# Try the ends. Where a step adds no noise, $\beta_t\to0$, the guess is $\mathbf x_t$ itself and there is no doubt. At
# $t=1$ we have $\bar\alpha_0=1$: the guess is $\mathbf x_0$, with no doubt, whatever $\mathbf x_1$ says. For the
# check we ask the definition and do no algebra: Bayes' rule on a fine grid of values of $x_{t-1}$ gives a
# distribution, and its shape, not only its mean and variance, must be $\eqref{eq:ddpm-6}$.

# %%
# check: DDPM 6, DDPM 7, IDDPM 10–12, ADM 18–20
a, b = 0.7, -0.3  # x_0 and x_t: any pair
for t in (2, 40, 400, 1000):
    centre, width = (
        (alpha_bar[t - 1].sqrt() * a + b) / 2,
        8 * (1 - alpha_bar[t - 1]).sqrt() + 1,
    )
    # values of x_{t-1}
    grid = torch.linspace(centre - width, centre + width, 400_001, dtype=double)
    # log q(x_t | x_{t-1})
    step = -((b - alpha[t].sqrt() * grid) ** 2) / (2 * beta[t])
    # log q(x_{t-1} | x_0)
    arrive = -((grid - alpha_bar[t - 1].sqrt() * a) ** 2) / (2 * (1 - alpha_bar[t - 1]))
    bayes = torch.softmax(step + arrive, 0)
    mu = (
        alpha_bar[t - 1].sqrt() * beta[t] / (1 - alpha_bar[t]) * a
        + alpha[t].sqrt() * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * b
    )
    # N(μ̃, β̃) on the same grid
    shape = torch.softmax(-((grid - mu) ** 2) / (2 * beta_tilde[t]), 0)
    # total variation, not just moments
    assert (bayes - shape).abs().sum() < 1e-9
    mean, variance = process.q_posterior(
        torch.tensor([[a]], dtype=double),
        torch.tensor([[b]], dtype=double),
        torch.tensor([t - 1]),
    )
    # the library's table
    torch.testing.assert_close(mean.squeeze(), mu)
    torch.testing.assert_close(variance.squeeze(), beta_tilde[t])
    print(f"t = {t:4d}: mean {mu:+.6f}, standard deviation {beta_tilde[t].sqrt():.6f}")

# %% [markdown]
# ## 2.6 What a term of the loss compares
#
# Fix the covariance of the reverse step to $\sigma_t^2\mathbf I$, a number that depends on $t$ alone. The
# **Kullback–Leibler divergence of two Gaussians** (chapter 00) then depends on the network only through the distance
# of the means:
#
# $$ L_{t-1}=\mathbb E_q\!\left[\frac{1}{2\sigma_t^2}\big\|\tilde{\boldsymbol\mu}_t(\mathbf x_t,\mathbf x_0)-\boldsymbol\mu_\theta(\mathbf x_t,t)\big\|^2\right]+C \tag{DDPM 8}\label{eq:ddpm-8} $$
#
# with $C=\tfrac12\big(\tilde\beta_t/\sigma_t^2-1-\log(\tilde\beta_t/\sigma_t^2)\big)$ per dimension, which no network
# can change. Learning to undo noise is a regression, with squared error as its loss; we did not choose that loss, it
# fell out.
#
# What should $\sigma_t^2$ be? The paper tries two values and finds them equally good. Each is exactly right for one
# kind of data. If the data are a single point, then $\mathbf x_0$ is known, the posterior is the true undoing, and
# $\sigma_t^2=\tilde\beta_t$. If the data are $\mathcal N(\mathbf 0,\mathbf I)$, every $\mathbf x_t$ is
# $\mathcal N(\mathbf 0,\mathbf I)$ as well, the regression of $x_{t-1}$ on $x_t$ has slope $\sqrt{\alpha_t}$, and
# what it leaves is $1-\alpha_t=\beta_t$. Data in $[-1,1]$ have a variance of at most 1, and for them the best
# variance lies between $\tilde\beta_t$ and $\beta_t$; exercise 2.1 shows it for Gaussian data.

# %%
# check: DDPM 8
# two means; the divergence by quadrature, not by formula
t, target, guess = 300, 0.21, 0.17
for sigma2 in (beta[t], beta_tilde[t]):
    grid = torch.linspace(
        target - 12 * beta[t].sqrt(), target + 12 * beta[t].sqrt(), 200_001, dtype=double
    )
    log_q = (
        -((grid - target) ** 2) / (2 * beta_tilde[t])
        - 0.5 * (2 * math.pi * beta_tilde[t]).log()
    )
    log_p = -((grid - guess) ** 2) / (2 * sigma2) - 0.5 * (2 * math.pi * sigma2).log()
    quadrature = torch.trapezoid(log_q.exp() * (log_q - log_p), grid)
    ratio = beta_tilde[t] / sigma2
    formula = (target - guess) ** 2 / (2 * sigma2) + 0.5 * (ratio - 1 - ratio.log())
    torch.testing.assert_close(quadrature, formula, rtol=1e-7, atol=0)
    library = md.normal_kl(
        torch.tensor(target, dtype=double),
        beta_tilde[t].log(),
        torch.tensor(guess, dtype=double),
        sigma2.log(),
    )
    torch.testing.assert_close(library, formula)

for s2, best in ((0.0, beta_tilde), (1.0, beta)):  # data: a point, and N(0, 1)
    # variance of x_{t-1}, and what x_t leaves of it
    prev = alpha_bar[:-1] * s2 + 1 - alpha_bar[:-1]
    torch.testing.assert_close(
        prev - alpha[1:] * prev**2 / (alpha[1:] * prev + beta[1:]),
        best[1:],
        rtol=1e-9,
        atol=1e-15,
    )

fig, ax = plt.subplots(figsize=(6.4, 2.6))
ax.semilogx(range(2, T + 1), (beta_tilde / beta)[2:])
ax.set(
    xlabel="step $t$",
    ylabel=r"$\tilde\beta_t\,/\,\beta_t$",
    ylim=(0.4, 1.02),
    title="The two variances differ by half at first, by 4 % after fifty steps",
)
plt.show()

# %% [markdown]
# ## 2.7 What to ask the network
#
# The network should give $\tilde{\boldsymbol\mu}_t(\mathbf x_t,\mathbf x_0)$ without being told $\mathbf x_0$. Write
# $\eqref{eq:ddpm-8}$ with everything that is random made visible: $\mathbf x_t$ is a function of $\mathbf x_0$ and
# $\boldsymbol\epsilon$, and by $\eqref{eq:ddpm-4}$, **solved for the data**,
# $\mathbf x_0=(\mathbf x_t-\sqrt{1-\bar\alpha_t}\,\boldsymbol\epsilon)/\sqrt{\bar\alpha_t}$.
#
# $$\begin{aligned}
# L_{t-1}-C=\mathbb E_{\mathbf x_0,\boldsymbol\epsilon}\bigg[\frac1{2\sigma_t^2}\bigg\|&\tilde{\boldsymbol\mu}_t\Big(\mathbf x_t,\ \tfrac{1}{\sqrt{\bar\alpha_t}}\big(\mathbf x_t-\sqrt{1-\bar\alpha_t}\,\boldsymbol\epsilon\big)\Big)\\
# &-\boldsymbol\mu_\theta(\mathbf x_t,t)\bigg\|^2\bigg]
# \end{aligned}\tag{DDPM 9}\label{eq:ddpm-9}$$
#
# **Insert the formula for $\tilde{\boldsymbol\mu}_t$.** The factor in front of $\mathbf x_t$ becomes
# $\frac{\beta_t}{(1-\bar\alpha_t)\sqrt{\alpha_t}}+\frac{\sqrt{\alpha_t}(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}=\frac{\beta_t+\alpha_t-\bar\alpha_t}{(1-\bar\alpha_t)\sqrt{\alpha_t}}=\frac1{\sqrt{\alpha_t}}$,
# using $\sqrt{\bar\alpha_{t-1}/\bar\alpha_t}=1/\sqrt{\alpha_t}$; and the factor of $\boldsymbol\epsilon$ becomes
# $-\frac{1}{\sqrt{\alpha_t}}\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}$:
#
# $$\begin{aligned}
# L_{t-1}-C=\mathbb E_{\mathbf x_0,\boldsymbol\epsilon}\bigg[\frac1{2\sigma_t^2}\bigg\|&\frac1{\sqrt{\alpha_t}}\Big(\mathbf x_t-\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\boldsymbol\epsilon\Big)\\
# &-\boldsymbol\mu_\theta(\mathbf x_t,t)\bigg\|^2\bigg]
# \end{aligned}\tag{DDPM 10}\label{eq:ddpm-10}$$
#
# Look at what the network has to produce. It is given $\mathbf x_t$; it should answer $\mathbf x_t$, rescaled, minus
# a small multiple of the noise. **Only the noise is unknown**, so let the network answer that, and do the rest by
# formula:
#
# $$ \boldsymbol\mu_\theta(\mathbf x_t,t)=\frac1{\sqrt{\alpha_t}}\Big(\mathbf x_t-\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\boldsymbol\epsilon_\theta(\mathbf x_t,t)\Big) \tag{DDPM 11}\label{eq:ddpm-11} $$
#
# *Also IDDPM 13, ADM 27.*
#
# With this choice $\mathbf x_t$ **cancels in the difference**, and one squared factor comes out of the norm:
#
# $$\begin{aligned}
# L_{t-1}-C=\mathbb E_{\mathbf x_0,\boldsymbol\epsilon}\bigg[&\frac{\beta_t^2}{2\sigma_t^2\alpha_t(1-\bar\alpha_t)}\\
# &\cdot\Big\|\boldsymbol\epsilon-\boldsymbol\epsilon_\theta\big(\underbrace{\sqrt{\bar\alpha_t}\,\mathbf x_0+\sqrt{1-\bar\alpha_t}\,\boldsymbol\epsilon}_{\mathbf x_t},\ t\big)\Big\|^2\bigg]
# \end{aligned}\tag{DDPM 12}\label{eq:ddpm-12}$$
#
# A network that removes noise has learned all that a generative model needs. The same algebra gives its guess of the
# data, which the paper prints much later and which we shall look at all the time:
#
# $$ \hat{\mathbf x}_0=\big(\mathbf x_t-\sqrt{1-\bar\alpha_t}\,\boldsymbol\epsilon_\theta(\mathbf x_t,t)\big)\,/\,\sqrt{\bar\alpha_t} \tag{DDPM 15}\label{eq:ddpm-15} $$
#
# For the check any function will do as the network, as long as all forms use the same one. The library's term of the
# bound, computed from two Gaussians and knowing nothing of this section's algebra, must agree with all of them.


# %%
# check: DDPM 9, DDPM 10, DDPM 11, DDPM 12, DDPM 15, IDDPM 13, ADM 27
def wild(x, t):
    """Not a network: any function of x_t and t."""
    return torch.sin(3 * x) + 0.1 * x.flip(-1) + t.reshape(-1, 1, 1, 1) / 1000


n = 8
x0, noise = digits.x[:n].double(), torch.randn(n, 1, 8, 8, generator=rng(3), dtype=double)
for t in (2, 30, 500, 1000):
    at = torch.full((n,), t - 1)  # the library counts from 0
    xt = alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * noise
    eps = wild(xt, at.double())
    sigma2 = beta[t]
    c0 = alpha_bar[t - 1].sqrt() * beta[t] / (1 - alpha_bar[t])
    ct = alpha[t].sqrt() * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    # (11)
    mu_theta = (xt - beta[t] / (1 - alpha_bar[t]).sqrt() * eps) / alpha[t].sqrt()
    # (15)
    x0_hat = (xt - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
    # the posterior mean, if x̂_0 were the truth
    torch.testing.assert_close(c0 * x0_hat + ct * xt, mu_theta, rtol=1e-9, atol=1e-9)

    def half_square(difference, sigma2=sigma2):
        return (difference**2).flatten(1).mean(1) / (2 * sigma2)

    eq9 = half_square(
        c0 * (xt - (1 - alpha_bar[t]).sqrt() * noise) / alpha_bar[t].sqrt()
        + ct * xt
        - mu_theta
    )
    eq10 = half_square(
        (xt - beta[t] / (1 - alpha_bar[t]).sqrt() * noise) / alpha[t].sqrt() - mu_theta
    )
    eq12 = (
        beta[t] ** 2
        / (2 * sigma2 * alpha[t] * (1 - alpha_bar[t]))
        * ((noise - eps) ** 2).flatten(1).mean(1)
    )
    C = 0.5 * (beta_tilde[t] / sigma2 - 1 - (beta_tilde[t] / sigma2).log())
    library = process.bound_term(wild, x0, at, noise, clip=False)["bits"] * math.log(2)
    for form in (eq9 + C, eq10 + C, eq12 + C):
        torch.testing.assert_close(form, library, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        process.reverse(wild, xt, at, clip=False).mean, mu_theta, rtol=1e-9, atol=1e-9
    )
print("(9) = (10) = (12) = the library's term of the bound, to nine digits")

# %% [markdown]
# Why does it help to ask for the noise, when all forms are equal? Because the network is not perfect, and begins
# knowing nothing. Suppose it could only do linear regression on the pixel in front of it. How much of what it is
# asked for remains unexplained? For data of variance $s^2$ the regression formula of 2.5 answers in closed form.

# %%
# variance of a pixel, averaged over the 64
s2 = digits.x.var(0).mean().double()
t = torch.arange(2, T + 1)
ab, ab_prev = alpha_bar[t], alpha_bar[t - 1]
# variance of x_0 that a line through x_t leaves
left_of_x0 = s2 * (1 - ab) / (ab * s2 + 1 - ab)
c0 = ab_prev.sqrt() * beta[t] / (1 - ab)
# of Var μ̃ = Var x_{t-1} − β̃
share_mean = c0**2 * left_of_x0 / (ab_prev * s2 + 1 - ab_prev - beta_tilde[t])
share_eps = ab / (1 - ab) * left_of_x0  # of Var ε = 1

fig, ax = plt.subplots()
ax.semilogy(t, share_eps, label=r"asked for the noise $\epsilon$")
ax.semilogy(t, left_of_x0 / s2, "--", label=r"asked for the data $x_0$")
ax.semilogy(t, share_mean, ":", label=r"asked for the mean $\tilde\mu_t$")
ax.set(
    xlabel="step $t$",
    ylabel="share left unexplained",
    ylim=(1e-5, 2),
    title="Copying its input already answers the question for the mean",
)
ax.legend(loc="center right")
plt.show()
print(
    f"largest share left of the mean: {share_mean.max():.5f} at t = {t[share_mean.argmax()]};  "
    f"of the noise, at t = 2: {share_eps[0]:.3f}"
)
assert share_mean.max() < 1e-3 and share_eps[0] > 0.9

# %% [markdown]
# The mean is the input, up to a few parts in ten thousand. All that the network is there for sits in that remainder,
# and a loss that measures the whole hardly notices whether it was learned. Asked for the noise, the network finds at
# small $t$ a task it cannot solve by copying, and what it is asked for is always of size one. Asked for the data, it
# finds the opposite: easy at small $t$, open at large. The two are one question in different units, which 2.9 makes
# precise; what differs is where errors count.
#
# ## 2.8 The simple loss
#
# The weight in $\eqref{eq:ddpm-12}$ was dictated by the likelihood. The paper drops it:
#
# $$ L_{\mathrm{simple}}(\theta)=\mathbb E_{t,\mathbf x_0,\boldsymbol\epsilon}\Big[\big\|\boldsymbol\epsilon-\boldsymbol\epsilon_\theta\big(\sqrt{\bar\alpha_t}\,\mathbf x_0+\sqrt{1-\bar\alpha_t}\,\boldsymbol\epsilon,\ t\big)\big\|^2\Big] \tag{DDPM 14}\label{eq:ddpm-14} $$
#
# *Also IDDPM 14, ADM 26.*
#
# with $t$ uniform on $1\dots T$. Is that allowed? A network that could represent any function would find the same
# answer: each $t$ has a regression of its own, and **the minimiser of a sum of separate terms does not depend on
# positive weights**. It is the conditional mean $\mathbb E[\boldsymbol\epsilon\mid\mathbf x_t]$ at every $t$. Weights
# matter only because a real network shares its capacity between the steps, and because a step of large weight brings
# large gradient noise. So the check is twofold. The library with weights $\eqref{eq:ddpm-12}$ put back must give the
# bound; and the exact conditional mean, known for a mixture of Gaussians, must be a minimum of $\eqref{eq:ddpm-14}$
# at each $t$ by itself: moving away from it in any direction raises the loss by the square of the move.

# %%
# check: DDPM 14, IDDPM 14, ADM 26
# (12) with σ² = β
bound_weight = beta[1:] ** 2 / (2 * beta[1:] * alpha[1:] * (1 - alpha_bar[1:]))
weighted = md.GaussianDiffusion(md.linear_betas(T), weight=bound_weight, levels=17)
for t in (2, 77, 1000):
    at = torch.full((n,), t - 1)
    C = 0.5 * (beta_tilde[t] / beta[t] - 1 - (beta_tilde[t] / beta[t]).log())
    torch.testing.assert_close(
        weighted.loss(wild, x0, at, noise)["loss"] + C,
        process.bound_term(wild, x0, at, noise, clip=False)["bits"] * math.log(2),
        rtol=1e-9,
        atol=0,
    )

# eight bumps on a circle: the toy of this chapter
angles = torch.linspace(0, 2 * math.pi, 9, dtype=double)[:8]
mixture = md.Mixture(
    torch.ones(8), 1.2 * torch.stack([angles.cos(), angles.sin()], 1), std=0.1
)


def exact_eps(x, t):
    """E[ε | x_t] for the mixture: the perfect network. t counts from 0, as in the library."""
    ab = alpha_bar[int(t[0]) + 1]
    x0_hat = mixture.denoise(x.double(), ab.sqrt().item(), (1 - ab).sqrt().item())
    return (x - ab.sqrt() * x0_hat) / (1 - ab).sqrt()


points = mixture.sample(50_000, rng(4))
noise2 = torch.randn(points.shape, generator=rng(5), dtype=double)
for t in (20, 200, 600):
    at = torch.full((len(points),), t - 1)
    best = process.loss(exact_eps, points, at, noise2)["loss"]
    for move in (lambda x: 0.1, lambda x: 0.1 * torch.sin(4 * x), lambda x: -0.05 * x):
        worse = process.loss(
            lambda x, t, move=move: exact_eps(x, t) + move(x), points, at, noise2
        )["loss"]
        step = (
            torch.as_tensor(move(process.q_sample(points, at, noise2)), dtype=double) ** 2
        ).mean()
        # mean must be the square of the move
        gain = worse - best
        assert (
            abs(gain.mean() - step) < 4 * gain.std() / len(points) ** 0.5 and gain.mean() > 0
        )
    print(
        f"t = {t:3d}: smallest possible loss {best.mean():.3f}; "
        "every move away from E[ε|x_t] costs its square"
    )

# %%
fig, ax = plt.subplots()
weight = bound_weight / bound_weight[-1]
ax.loglog(range(1, T + 1), weight)
ax.axhline(1, color=plots.ORANGE, linestyle="--")
ax.text(
    1.2, 1.2, r"$L_{\mathrm{simple}}$: every step the same", color=plots.ORANGE, fontsize=9
)
ax.text(1.7, 38, "the likelihood", color=plots.BLUE, fontsize=9)
ax.set(
    xlabel="step $t$",
    ylabel="weight relative to the last step",
    title="The likelihood weighs the first step about fifty times the last",
)
plt.show()
assert abs(bound_weight[0] / bound_weight[-1] - 49) < 1
print(
    f"of the bound's weight the first 50 of 1000 steps carry {weight[:50].sum() / weight.sum():.0%}, "
    f"the last 500 carry {weight[500:].sum() / weight.sum():.0%}"
)

# %% [markdown]
# The first steps remove noise that no eye can see. The likelihood cares for them, because the last decimals of a
# pixel value cost bits like everything else; a person who looks at samples does not. $L_{\mathrm{simple}}$ moves the
# effort to the steps where the digit takes shape. That is the third choice of 2020. In the paper its price is small
# but real: 3.75 bits per dimension instead of 3.70. Our short runs of section 2.14 do not show even that.
#
# ## 2.9 One quantity with many names
#
# What does the perfect network compute? The conditional mean of the data given the noisy data, and there is a lovely
# fact about it. **Differentiate** the density of $\mathbf x_t$, which is the data's density blurred,
# $q(\mathbf x_t)=\int q(\mathbf x_0)\,\mathcal N(\mathbf x_t;\sqrt{\bar\alpha_t}\,\mathbf x_0,(1-\bar\alpha_t)\mathbf I)\,d\mathbf x_0$.
# The derivative of the Gaussian is the Gaussian times
# $-(\mathbf x_t-\sqrt{\bar\alpha_t}\,\mathbf x_0)/(1-\bar\alpha_t)$, so after **dividing by $q(\mathbf x_t)$ and
# recognising Bayes' rule** under the integral,
#
# $$ \nabla_{\mathbf x_t}\log q(\mathbf x_t)=\int q(\mathbf x_0\mid\mathbf x_t)\,\frac{\sqrt{\bar\alpha_t}\,\mathbf x_0-\mathbf x_t}{1-\bar\alpha_t}\,d\mathbf x_0=\frac{\sqrt{\bar\alpha_t}\;\mathbb E[\mathbf x_0\mid\mathbf x_t]-\mathbf x_t}{1-\bar\alpha_t} $$
#
# This is **Tweedie's lemma**: the best guess of the clean data is the noisy data, moved along the slope of its log
# density by a factor that depends only on the noise level, and rescaled. The slope $\nabla\log q$ is called the
# *score*. Solve it for each of its parts, with $\eqref{eq:ddpm-15}$ between $\hat{\mathbf x}_0$ and
# $\boldsymbol\epsilon$, and with
# $\mathbf v=\sqrt{\bar\alpha_t}\,\boldsymbol\epsilon-\sqrt{1-\bar\alpha_t}\,\mathbf x_0$, a mixture of the two that
# later work asks for:
#
# $$\begin{aligned}
# \mathbb E[\mathbf x_0\mid\mathbf x_t]&=\frac{\mathbf x_t+(1-\bar\alpha_t)\,\nabla\log q(\mathbf x_t)}{\sqrt{\bar\alpha_t}},\\
# \mathbb E[\boldsymbol\epsilon\mid\mathbf x_t]&=-\sqrt{1-\bar\alpha_t}\;\nabla\log q(\mathbf x_t),\\
# \mathbb E[\mathbf v\mid\mathbf x_t]&=\frac{\mathbb E[\boldsymbol\epsilon\mid\mathbf x_t]-\sqrt{1-\bar\alpha_t}\,\mathbf x_t}{\sqrt{\bar\alpha_t}}
# \end{aligned}\tag{2.1}\label{eq:2-1}$$
#
# A network that knows one knows all. And $\eqref{eq:ddpm-12}$ has thereby become a method to learn the score of
# blurred data without ever knowing the density: *denoising score matching*, found by Vincent in 2011, which is how
# the paper came to its loss. [Chapter 03](03_ddim_and_sdes.ipynb) starts here. We check the lemma where the density
# can be written down and differentiated by machine.

# %%
# check: 2.1
for t in (20, 200, 600):
    ab = alpha_bar[t]
    s, sig = ab.sqrt().item(), (1 - ab).sqrt().item()
    at = torch.full((1000,), t - 1)
    xt = process.q_sample(points[:1000], at, noise2[:1000]).requires_grad_()
    # the slope of the log density, by autograd
    score = torch.autograd.grad(mixture.log_prob(xt, s, sig).sum(), xt)[0]
    xt = xt.detach()
    # the same score, put as four answers
    answers = {
        "x0": (xt + (1 - ab) * score) / ab.sqrt(),
        "eps": -(1 - ab).sqrt() * score,
    }
    answers["v"] = ab.sqrt() * answers["eps"] - (1 - ab).sqrt() * answers["x0"]
    torch.testing.assert_close(
        answers["v"], (answers["eps"] - (1 - ab).sqrt() * xt) / ab.sqrt()
    )
    # E[x_0 | x_t], from Bayes' rule
    torch.testing.assert_close(answers["x0"], mixture.denoise(xt, s, sig))
    answers["mean"] = process.q_posterior(answers["x0"], xt, at)[0]
    # each makes the library take the same step
    for name, answer in answers.items():
        chain = md.GaussianDiffusion(md.linear_betas(T), predict=name, clip=False)
        kernel = chain.reverse(lambda x, t, answer=answer: answer, xt, at)
        torch.testing.assert_close(kernel.mean, answers["mean"], rtol=1e-8, atol=1e-8)
print("noise, data, v, mean and score: one quantity, at t = 20, 200, 600")

# %% [markdown]
# ## 2.10 The two algorithms
#
# Training is now a loop of three lines. Draw an example, a step, and noise; move the weights a little downhill.
#
# $$\begin{array}{l}
# \textbf{repeat}\\
# \quad \mathbf x_0\sim q(\mathbf x_0);\quad t\sim\mathrm{Uniform}\{1,\dots,T\}\\
# \quad \boldsymbol\epsilon\sim\mathcal N(\mathbf 0,\mathbf I)\\
# \quad\text{gradient step on}\\
# \qquad\nabla_\theta\big\|\boldsymbol\epsilon-\boldsymbol\epsilon_\theta(\sqrt{\bar\alpha_t}\,\mathbf x_0+\sqrt{1-\bar\alpha_t}\,\boldsymbol\epsilon,\ t)\big\|^2\\
# \textbf{until converged}
# \end{array}\tag{DDPM Alg. 1}\label{eq:ddpm-alg-1}$$
#
# Sampling walks the reverse chain with the mean $\eqref{eq:ddpm-11}$. At $t=1$ it takes the mean alone: the last
# noise would only add grain.
#
# $$\begin{array}{l}
# \mathbf x_T\sim\mathcal N(\mathbf 0,\mathbf I)\\
# \textbf{for}\ t=T,\dots,1:\\
# \quad \mathbf z\sim\mathcal N(\mathbf 0,\mathbf I)\ \text{if}\ t>1,\ \text{else}\ \mathbf z=\mathbf 0\\
# \quad \mathbf x_{t-1}=\frac{1}{\sqrt{\alpha_t}}\Big(\mathbf x_t-\frac{1-\alpha_t}{\sqrt{1-\bar\alpha_t}}\,\boldsymbol\epsilon_\theta(\mathbf x_t,t)\Big)+\sigma_t\mathbf z\\
# \textbf{return}\ \mathbf x_0
# \end{array}\tag{DDPM Alg. 2}\label{eq:ddpm-alg-2}$$
#
# The library has the same two loops, for any process. We check the first by its gradient, weight by weight, and the
# second step by step with the same noise. Then comes the test that matters: with the perfect network, Algorithm 2
# must draw from the data. It starts at noise and has to end in eight bumps, equally often in each, with the right
# spread.

# %%
# check: DDPM Alg. 1, DDPM Alg. 2
torch.manual_seed(0)
net = md.MLP(dim=2).double()
torch.nn.init.normal_(net.layers[-1].weight)  # so that the network is not zero
at = torch.randint(1, T + 1, (64,), generator=rng(6))  # t as the paper counts
noise = torch.randn(64, 2, generator=rng(7), dtype=double)
xt = alpha_bar[at].sqrt()[:, None] * points[:64] + (1 - alpha_bar[at]).sqrt()[:, None] * noise
# Algorithm 1, in the letters above
((noise - net(xt, (at - 1).double())) ** 2).mean().backward()
naive = [p.grad.clone() for p in net.parameters()]
net.zero_grad()
toy_process = md.GaussianDiffusion(md.linear_betas(T), variance="small", clip=False)
md.Model(net, toy_process)(points[:64], at - 1, noise)["loss"].mean().backward()
for ours, theirs in zip(naive, [p.grad for p in net.parameters()], strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)

count = 4000
z = md.batch_noise(rng(8), count, (2,))
# kept, so that both loops can use the same
noises = [z(0) for _ in range(T + 1)]
x = noises[0]
# Algorithm 2, with the small variance
for t in range(T, 0, -1):
    eps = exact_eps(x, torch.full((count,), t - 1))
    x = (x - (1 - alpha[t]) / (1 - alpha_bar[t]).sqrt() * eps) / alpha[t].sqrt()
    if t > 1:
        x = x + beta_tilde[t].sqrt() * noises[T - t + 1]
library = md.ancestral(toy_process, exact_eps, noises[0], lambda i: noises[i])
torch.testing.assert_close(library, x, rtol=1e-7, atol=1e-7)

bump = torch.cdist(x, mixture.means).argmin(1)
share, spread = (
    torch.bincount(bump, minlength=8) / count,
    (x - mixture.means[bump]).std().item(),
)
# 7 degrees of freedom: above 24.3 once in a thousand
chi2 = ((share - 1 / 8) ** 2 / (1 / 8)).sum() * count
print(
    f"eight bumps, shares {share.min():.3f} … {share.max():.3f} (chi-square {chi2:.1f}), "
    f"spread {spread:.4f} (data {mixture.std})"
)
# β̃ is exact for points: bumps come out a little narrow
assert chi2 < 24.3 and abs(spread / mixture.std - 1) < 0.06

# %% [markdown]
# Now with a network that has to learn. A small multi-layer perceptron sees draws from the mixture and nothing else;
# since the perfect answer is known, we can say exactly how far it is from it: the excess of its loss over the
# smallest possible one.

# %% tags=["nbval-ignore-output"]
torch.manual_seed(0)
settings = md.TrainingConfig(
    images=1_000_000, batch=500, lr=2e-3, ramp=10_000, ema=(50_000,), tick=50_000
)
state = md.begin(
    md.Model(
        md.MLP(dim=2, width=128),
        md.GaussianDiffusion(md.linear_betas(T), variance="small", clip=False),
    ),
    md.UniformTimes(T),
    settings,
)
md.train(state, md.Points(mixture.sample(100_000, rng(9)).float()), settings)

test, test_noise = (
    mixture.sample(20_000, rng(10)),
    torch.randn(20_000, 2, generator=rng(11), dtype=double),
)
at = torch.arange(20_000) % T
xt = process.q_sample(test, at, test_noise)
ab = alpha_bar[at + 1][:, None]
perfect = torch.cat([exact_eps(xt[at == k], at[at == k]) for k in range(T)])
order = torch.cat([(at == k).nonzero().squeeze(1) for k in range(T)])
with torch.no_grad():
    learned = state.ema.net(xt[order].float(), at[order].float()).double()
excess = ((learned - perfect) ** 2).mean().item()
toy = md.ancestral(
    state.ema.process,
    state.ema.net,
    torch.randn(4000, 2, generator=rng(12)),
    md.batch_noise(rng(13), 4000, (2,)),
)
bump = torch.cdist(toy, mixture.means).argmin(1)
toy_share = torch.bincount(bump, minlength=8) / len(toy)
toy_spread = (toy - mixture.means[bump]).std().item()
print(
    f"mean square distance from the perfect answer: {excess:.4f}   "
    f"(a network that answers 0 has {(perfect**2).mean():.3f})"
)
print(
    f"shares of the bumps {toy_share.min():.3f} … {toy_share.max():.3f}, "
    f"spread {toy_spread:.3f} (data {mixture.std})"
)

# %%
assert (
    excess < 0.02 and toy_share.min() > 0.09 and toy_share.max() < 0.16 and toy_spread < 0.17
)

fig, axes = plt.subplots(1, 3, figsize=(6.6, 2.5), sharex=True, sharey=True)
for ax, cloud, title in zip(
    axes,
    (points[:2000], x[:2000], toy[:2000]),
    ("data", "perfect network", "trained network"),
    strict=True,
):
    ax.scatter(*cloud.T, s=1, color=plots.BLUE, alpha=0.5)
    ax.set(title=title, xlabel="$x$", aspect="equal")
axes[0].set_ylabel("$y$")
plt.suptitle(
    "The trained chain finds all eight bumps, and blurs them a little",
    fontsize=10.5,
    fontweight="bold",
)
plt.show()

# %% [markdown]
# ## 2.11 The last step gives integers
#
# Pixels are integers. A density has no value for "this pixel is 9": it is unbounded, and a model could earn any
# number of nats by piling sharp spikes on the few values that occur. The bound needs a probability, so the last step,
# from $\mathbf x_1$ to $\mathbf x_0$, gives each integer the part of the Gaussian that lies nearest to it. With pixel
# values scaled to $[-1,1]$, the paper's 256 levels are $2/255$ apart and a bin reaches $1/255$ to either side; the
# outermost reach to infinity:
#
# $$\begin{aligned}
# p_\theta(\mathbf x_0\mid\mathbf x_1)&=\prod_{i=1}^D\int_{\delta_-(x_0^i)}^{\delta_+(x_0^i)}\mathcal N\big(x;\ \mu_\theta^i(\mathbf x_1,1),\ \sigma_1^2\big)\,dx,\\
# \delta_+(x)&=\begin{cases}\infty&x=1\\x+\frac1{255}&x<1\end{cases}\\
# \delta_-(x)&=\begin{cases}-\infty&x=-1\\x-\frac1{255}&x>-1\end{cases}
# \end{aligned}\tag{DDPM 13}\label{eq:ddpm-13}$$
#
# And which $\sigma_1$? With $\tilde\beta_1=0$ the Gaussian would be infinitely sharp, and $\sigma_1^2=\beta_1$ is a
# guess like another. The official code puts $\tilde\beta_2$ there under both choices of the variance, because it
# gives a better likelihood, and so does the library.
#
# Our digits have 17 levels, and half a bin is $1/16$. That the masses of all levels sum to one needs no integral: the
# bins lie side by side from $-\infty$ to $\infty$. The check asserts it, compares with a quadrature that knows
# nothing of error functions, and looks at the place where a careless formula breaks: a level so far from the mean
# that both its edges have the same value of $\Phi$ in floating point. The official code approximates $\Phi$ by a
# hyperbolic tangent, with a floor of $10^{-12}$ under the logarithm; how far off is the approximation?

# %%
# check: DDPM 13
for levels in (17, 256):
    values = 2 * torch.arange(levels, dtype=double) / (levels - 1) - 1
    for mean, std in ((0.1, 0.01), (-0.97, 0.05), (3.0, 0.5)):
        mean, std = torch.full_like(values, mean), torch.full_like(values, std)
        log_mass = md.discretised_normal_log_prob(values, mean, std, levels)
        torch.testing.assert_close(
            log_mass.exp().sum(), torch.ones((), dtype=double), rtol=1e-12, atol=0
        )
        # an inner level: integrate the density over its bin
        k = levels // 2
        grid = torch.linspace(
            values[k] - 1 / (levels - 1), values[k] + 1 / (levels - 1), 20_001, dtype=double
        )
        density = torch.exp(-((grid - mean[0]) ** 2) / (2 * std[0] ** 2)) / (
            math.sqrt(2 * math.pi) * std[0]
        )
        torch.testing.assert_close(
            torch.trapezoid(density, grid), log_mass[k].exp(), rtol=1e-5, atol=1e-300
        )

far = md.discretised_normal_log_prob(
    torch.tensor([0.5], dtype=double),
    torch.tensor([-0.5], dtype=double),
    torch.tensor([0.02], dtype=double),
    256,
)
z = torch.linspace(-6, 6, 10_001, dtype=double)
tanh_phi = 0.5 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (z + 0.044715 * z**3)))
off = (tanh_phi - torch.special.ndtr(z)).abs().max()
print(
    f"fifty deviations away: {far.item():.1f} nats, finite;   "
    f"tanh in place of Φ is off by at most {off:.5f}"
)
nearer = torch.special.log_ndtr(torch.tensor(-(1 - 1 / 255) / 0.02, dtype=double))
assert abs(far.item() - nearer) < 1e-6 and off < 5e-4
sharp = process.reverse(lambda x, t: 0 * x, x0, torch.zeros(n, dtype=torch.long)).scale.max()
print(f"σ_1 of the library: {sharp:.4f} = √β̃_2, where √β_1 = {beta[1].sqrt():.4f}")
torch.testing.assert_close(sharp, beta_tilde[2].sqrt())

# %% [markdown]
# ## 2.12 Handwritten digits
#
# Everything is in place, and the digits recipe says it in one object: DDPM's process as it is, and a U-Net small
# enough for a laptop. Here it runs for some seconds, through the same loop that trains at full scale, so that you see
# the loss fall. The model that the rest of the chapter uses comes with the package; it is the same recipe, trained
# longer and averaged over a longer time.

# %% tags=["nbval-ignore-output"]
recipe = md.recipe("digits")
torch.manual_seed(0)
short = md.TrainingConfig(
    images=12_800, batch=64, lr=1e-3, ramp=3_200, ema=(2_000,), tick=1_280
)
state = md.train(
    md.begin(md.build(recipe, (1, 8, 8), levels=17), md.UniformTimes(T), short), digits, short
)
losses = [line["loss"] for line in state.metrics]
print("loss:", "  ".join(f"{loss:.3f}" for loss in losses))

# %%
# it began by answering 0, which costs 1
assert losses[0] > 0.4 and losses[-1] < 0.35

model, description = md.load("digits")
print(
    f"{sum(p.numel() for p in model.parameters()):,} parameters, "
    f"trained on {description.config.training.images:,} images"
)

# %%
pictures = {}


def keep(step, x, t, x0_hat):
    """What the chain holds, and what it believes, at a few steps."""
    if t + 1 in (1000, 750, 500, 300, 200, 100, 50, 1):
        pictures[t + 1] = (x, x0_hat)


seeds = range(40)
# image i is a function of its seed alone
noise = md.per_image_noise(seeds, (1, 8, 8))
samples = md.ancestral(model.process, model.net, noise(0), noise, callback=keep)
plots.show_grid(
    samples, columns=10, title="Forty samples: most are digits that anyone can read"
)
plt.show()

# %% [markdown]
# How good are they? The next section finds numbers for it. They need more samples than forty:

# %%
noise = md.per_image_noise(range(100, 228), (1, 8, 8))
many = md.ancestral(model.process, model.net, noise(0), noise)
# pixels as numbers, for distances of bare pixels
flat = digits.x.flatten(1)

# %% [markdown]
# ## 2.13 How good is it?
#
# Looking is not measuring. A number should say how near the distribution of samples is to that of data, from samples
# alone, since nobody can write either distribution down. The number that the field has agreed on compares the two as
# if both were Gaussians, not of pixels, but of what a classifier sees in them.
#
# **How far apart are two Gaussians?** Move one onto the other: pair each $x\sim\mathcal N(m_1,C_1)$ with some
# $y\sim\mathcal N(m_2,C_2)$ so that partners are near, and take the mean squared distance of partners under the best
# pairing, the squared *Fréchet distance*. A mean square depends on second moments alone, so the pairing may be taken
# as a joint Gaussian, and all it can choose is the covariance $S$ between $x$ and $y$. **Multiply out** the square:
#
# $$ \mathbb E\|x-y\|^2=\|m_1-m_2\|^2+\operatorname{tr}C_1+\operatorname{tr}C_2-2\operatorname{tr}S $$
#
# So $\operatorname{tr}S$ must be large. How large can it be? Write $C_1=R_1R_1^{\mathsf T}$ and $C_2=R_2R_2^{\mathsf
# T}$, so that $x-m_1=R_1u$ and $y-m_2=R_2v$ with $u$ and $v$ of covariance $\mathbf I$. If $K$ is the covariance
# between $u$ and $v$, then $S=R_1KR_2^{\mathsf T}$, and the combination $a^{\mathsf T}u-b^{\mathsf T}v$ has the
# variance $\|a\|^2+\|b\|^2-2a^{\mathsf T}Kb$. **No variance is negative.** Were there a $b$ that $K$ makes longer,
# $a=Kb$ would give $\|b\|^2-\|Kb\|^2<0$; and if $K$ makes no vector longer, the variance is at least
# $(\|a\|-\|b\|)^2$. So these $K$ are allowed, and no others; in one dimension this says that a covariance is at most
# the product of the deviations. Now $\operatorname{tr}S=\operatorname{tr}(KM)$ with $M=R_2^{\mathsf T}R_1$. Take $M$
# apart by the **singular value decomposition**, $M=U\Lambda V^{\mathsf T}$: a trace does not mind rotations, so
# $\operatorname{tr}(KM)=\sum_i(V^{\mathsf T}KU)_{ii}\Lambda_{ii}$, and the entries of a matrix that lengthens nothing
# are at most 1. The best $K$ is $VU^{\mathsf T}$ and gives the sum of the singular values, which are the roots of the
# eigenvalues of $M^{\mathsf T}M=R_1^{\mathsf T}C_2R_1$:
#
# $$ d^2=\|m_1-m_2\|^2+\operatorname{tr}C_1+\operatorname{tr}C_2-2\operatorname{tr}\big(R_1^{\mathsf T}C_2R_1\big)^{1/2} \tag{2.2}\label{eq:2-2} $$
#
# With the symmetric root $R_1=C_1^{1/2}$ this is the formula that one finds in papers, often abbreviated to
# $(C_1C_2)^{1/2}$.

# %%
# check: 2.2
g = rng(30)
A, B = torch.randn(2, 5, 5, generator=g, dtype=double)
C1, C2, gap = A @ A.T, B @ B.T, torch.randn(5, generator=g, dtype=double)
eigenvalues = torch.linalg.eigvals(C1 @ C2).real
d2 = gap @ gap + C1.trace() + C2.trace() - 2 * eigenvalues.sqrt().sum()


def paired(K):
    """E|x − y|² of the pairing S = R_1 K R_2ᵀ, and the smallest variance of any combination."""
    S = A @ K @ B.T
    joint = torch.cat([torch.cat([C1, S], 1), torch.cat([S.T, C2], 1)])
    return gap @ gap + C1.trace() + C2.trace() - 2 * S.trace(), torch.linalg.eigvalsh(joint)[
        0
    ]


U, _, Vt = torch.linalg.svd(B.T @ A)
best, smallest = paired(Vt.T @ U.T)
torch.testing.assert_close(best, d2, rtol=1e-9, atol=0)
assert abs(smallest) < 1e-9  # the best pairing is at the edge of what is allowed
for _ in range(200):
    K = torch.randn(5, 5, generator=g, dtype=double)
    K = K / torch.linalg.matrix_norm(K, 2)
    value, smallest = paired(K)
    assert value > d2 and smallest > -1e-9
# a K that lengthens one vector would pair better, and is no covariance
assert paired(1.01 * Vt.T @ U.T)[0] < d2 and paired(1.01 * Vt.T @ U.T)[1] < -1e-6

ours = md.frechet_distance(
    md.Moments.from_arrays(gap, C1), md.Moments.from_arrays(torch.zeros(5, dtype=double), C2)
)
assert abs(ours - d2) < 1e-9 * d2
print(
    f"d² = {d2:.6f} by the formula, {best:.6f} by the best pairing, {ours:.6f} by the library"
)

# %% [markdown]
# **What to compare.** The distance of pixels asks whether the grey is in the right places. What we care about is
# whether there are digits. So let a classifier look, and compare what it sees just before it names the class. With
# the Inception network, trained on a million photographs, the distance is called **FID**, and papers report it for
# 50,000 samples. Ours is a small classifier of digits that ships with the library; it names 99 % of the held-out
# digits rightly, and before naming one it describes it by 64 numbers. A number belongs to its extractor, and numbers
# of different extractors must not be compared. The library refuses to.

# %% tags=["nbval-ignore-output"]
extractor = md.DigitsExtractor()


def see(pixels):
    """What the classifier sees in images of 17 levels: (n, 64)."""
    return extractor(pixels, 17).pool


seen_train, seen_test = see(digits.pixels), see(held_out.pixels)
seen_samples = see(md.decode(many, 17))
fid = md.frechet_distance(seen_samples, seen_train)
fid_test = torch.tensor(
    [
        md.frechet_distance(
            seen_test[torch.randperm(359, generator=rng(60 + k))[:128]], seen_train
        )
        for k in range(20)
    ]
)
print(
    f"FID to the training digits: 128 samples {fid:.2f}, 128 held-out digits {fid_test.mean():.2f} "
    f"on average, from {fid_test.min():.2f} to {fid_test.max():.2f} in twenty draws"
)
named = extractor(held_out.pixels, 17).logits.argmax(1)
print(
    f"held-out digits that the classifier names rightly: {(named == held_out.labels).float().mean():.1%}"
)
nearest = [
    torch.cdist(x.flatten(1), flat).min(1).values.mean().item()
    for x in (md.encode(md.decode(many, 17), 17), held_out.x)
]
print(
    f"distance to the nearest training digit: samples {nearest[0]:.2f}, held-out {nearest[1]:.2f}"
)

# %%
assert (named == held_out.labels).float().mean() > 0.98
assert 0.2 < fid < fid_test.mean() < 2.5 and (fid_test > fid).float().mean() > 0.6
assert fid_test.max() > 2 * fid_test.min()
assert abs(nearest[0] / nearest[1] - 1) < 0.1

# %% [markdown]
# The samples are *nearer* to the training digits than most draws of as many real digits are that the model has not
# seen. They are no copies: the nearest training digit is as far from a sample as from a held-out digit. But 1,438
# digits are a sample themselves, with peculiarities of their own. The model was fitted to these, and so was the
# classifier; held-out digits know nothing of them. A distance to the training set, which is what papers report,
# cannot tell who has learned the world from who has learned the sample. For that one needs held-out data and a
# likelihood (section 2.15). And look at the range of the twenty draws: with 128 images the first digit of FID is
# chance.
#
# **The distance is biased.** Two samples of the same distribution have not the same mean and covariance, so their
# distance is above zero, and more so the fewer they are. We split the training digits into halves. One is the
# reference; of the other we take more and more.

# %% tags=["nbval-ignore-output"]
order = torch.randperm(len(digits), generator=rng(31))
reference_half, rest = seen_train[order[:719]], seen_train[order[719:]]
counts = (72, 103, 144, 205, 288, 411, 600, 719)
means = []
for n in counts:
    draws = [
        md.frechet_distance(
            rest[torch.randperm(719, generator=rng(40 + k))[:n]], reference_half
        )
        for k in range(12 if n < 719 else 1)
    ]
    means.append(sum(draws) / len(draws))
inverse = torch.tensor([1 / n for n in counts], dtype=double)
design = torch.stack([torch.ones_like(inverse), inverse], 1)
intercept, slope = torch.linalg.lstsq(design, torch.tensor(means, dtype=double)[:, None])[0][
    :, 0
]
fig, ax = plt.subplots(figsize=(6.4, 2.8))
ax.plot(1000 * inverse, means, "o", color=plots.BLUE, label="real digits, mean of 12 draws")
line = torch.tensor([0, 14.5], dtype=double)
ax.plot(
    line,
    intercept + slope * line / 1000,
    color=plots.ORANGE,
    label="a straight line in $1/n$",
)
ax.set_xlabel("1000 / number of digits")
ax.set_ylabel("FID to 719 others")
ax.set_title("Fewer digits look worse: FID grows like $1/n$, with nothing wrong")
ax.set_ylim(0)
ax.legend()
plt.show()
print(
    f"72 digits {means[0]:.2f}, 719 digits {means[-1]:.2f}, extrapolated to infinitely many {intercept:.2f}"
)

# %%
assert means[0] > 3 * means[-1] > 0 and slope > 0
residual = torch.tensor(means, dtype=double) - intercept - slope * inverse
assert residual.abs().max() < 0.1 * means[0]
# what is left is the bias of the reference, which has 719 digits too
assert abs(intercept - slope / 719) < 0.4 * intercept

# %% [markdown]
# All of these are real digits. Whoever compares 1,000 samples of one model with 50,000 of another compares nothing.
# The line suggests a remedy, to measure at several $n$ and to extrapolate to $1/n=0$; what is left there is the bias
# of the reference.
#
# **It sees what you do not, and overlooks what you see.** Four changes of the held-out digits: fewer grey levels, a
# shift by half a pixel, seven pixels a side and back to eight, a tenth of the pixels set to random grey.

# %% tags=["nbval-ignore-output"]
pixels = held_out.pixels


def resampled(x, size):
    small = torch.nn.functional.interpolate(x.float(), size, mode="bilinear", antialias=True)
    back = torch.nn.functional.interpolate(small, 8, mode="bilinear")
    return back.round().clamp(0, 16).to(torch.uint8)


g = rng(32)
spoilt = torch.rand(pixels.shape, generator=g) < 0.1
left = torch.nn.functional.pad(pixels, (1, 0))[..., :8]
random_grey = torch.randint(17, pixels.shape, generator=g).to(torch.uint8)
changed = {
    "as they are": pixels,
    "5 grey levels": ((pixels.float() / 4).round() * 4).to(torch.uint8),
    "shifted by ½": ((pixels.float() + left.float()) / 2).round().to(torch.uint8),
    "7×7 and back": resampled(pixels, 7),
    "10 % random": torch.where(spoilt, random_grey, pixels),
}
plots.show_grid(
    md.encode(torch.cat([x[:12] for x in changed.values()]), 17),
    columns=12,
    title="The blurred row counts as four times as far as the speckled one",
    row_labels=list(changed),
)
plt.show()
far = {name: md.frechet_distance(see(x), seen_train) for name, x in changed.items()}
for name, distance in far.items():
    print(f"{name:<16} FID {distance:6.2f}")

# %%
assert far["5 grey levels"] < far["as they are"] + 0.3
assert 1.5 * far["as they are"] < far["10 % random"] < far["shifted by ½"]
assert far["7×7 and back"] > 3 * far["10 % random"]

# %% [markdown]
# Twelve of seventeen grey levels can go, and the number hardly moves. Speckles that anybody sees at once cost less
# than a shift by half a pixel, of which one sees that the strokes are a little softer; and a blur, in which the digits
# can still be read, is farther away than anything else, presumably because the classifier was trained on sharp
# strokes. So whoever resizes images before
# measuring measures the resizing. (Parmar, Zhang and Zhu found in 2022 that common libraries shrink photographs
# differently, and that FID notices.) The library therefore writes the resampling beside the number.
#
# **Two ways to be wrong.** A model can draw things that are no digits, and it can leave some out. FID adds both up.
# *Precision* and *recall* keep them apart. Around every real digit draw a ball, in the space of the 64 numbers, that
# just reaches its third nearest neighbour; together the balls are a guess at where digits are. Precision is the share
# of samples inside. Draw the balls around the samples instead, and recall is the share of real digits inside. We
# spoil the held-out digits in two ways, so that FID comes out the same: leave out some classes, or add noise.

# %% tags=["nbval-ignore-output"]
few_classes = pixels[held_out.labels < 7]
target = md.frechet_distance(see(few_classes), seen_train)


def noisy(strength):
    """The held-out digits with Gaussian noise of this many grey levels."""
    noise = torch.randn(pixels.shape, generator=rng(33))
    return (pixels + strength * noise).round().clamp(0, 16).to(torch.uint8)


low, high = 0.0, 8.0
for _ in range(20):  # bisection: more noise, more FID
    middle = (low + high) / 2
    near_enough = md.frechet_distance(see(noisy(middle)), seen_train) < target
    low, high = (middle, high) if near_enough else (low, middle)
print(f"{'':<34}{'FID':>6}{'precision':>11}{'recall':>8}")
measured = {}
for name, x in (
    ("held-out digits", pixels),
    ("without 7, 8 and 9", few_classes),
    (f"with noise of {low:.1f} grey levels", noisy(low)),
    ("128 samples of the model", md.decode(many, 17)),
):
    found = see(x)
    precision, recall = md.precision_recall(seen_train, found)
    measured[name] = md.frechet_distance(found, seen_train), precision, recall
    print(f"{name:<34}{measured[name][0]:>6.2f}{precision:>11.2f}{recall:>8.2f}")

# %%
of_real, of_few, of_noisy, of_samples = measured.values()
assert abs(of_few[0] - of_noisy[0]) < 0.05
assert of_few[1] > of_noisy[1] + 0.2 and of_few[2] < of_noisy[2] - 0.1
# as right as real digits, a third uncovered; nearly as much covered as by real digits
assert of_few[1] > of_real[1] - 0.03 and abs(of_few[2] - 2 / 3) < 0.07
assert of_noisy[2] > of_real[2] - 0.08

# %% [markdown]
# The same FID, and opposite faults. Without three of the classes what is drawn is as right as real digits are, and
# a third of the digits has nothing near it; under noise nearly all is covered, and much of what is drawn is no
# digit. One number for both is a convention about how much the one is worth in the other.
#
# **Bits and FID disagree, and must.** Let a model $p$ be perfect, and spoil it: with probability 0.99 it draws noise,
# with 0.01 what it drew before. Its probability of any picture is at least $0.01\,p(\mathbf x)$. **Take the
# logarithm**, and divide by the number $D$ of dimensions:
#
# $$ -\tfrac1D\log_2\big(0.01\,p(\mathbf x)+0.99\,n(\mathbf x)\big)\le-\tfrac1D\log_2p(\mathbf x)+\tfrac1D\log_2100 \tag{2.3}\label{eq:2-3} $$
#
# The loss is a tenth of a bit per dimension for a digit, two thousandths for a CIFAR picture, and ninety-nine
# pictures of a hundred are noise. It goes the other way as well. A model that stores the training pictures and gives
# them back has FID zero, and needs infinitely many bits for any other.

# %%
# check: 2.3
# a perfect model that can be written down: independent pixels, each with its own table of grey levels
tables = torch.nn.functional.one_hot(digits.pixels.long(), 17).double().sum(0) + 1
log_table = (tables / tables.sum(-1, keepdim=True)).log2()
drawn_pixels = torch.multinomial(
    (2**log_table).reshape(64, 17), 1000, replacement=True, generator=rng(34)
).T.reshape(-1, 1, 8, 8)
log_p = (
    log_table.expand(1000, -1, -1, -1, -1)
    .gather(-1, drawn_pixels[..., None])
    .sum((1, 2, 3, 4))
)
log_n = torch.full_like(log_p, -64 * math.log2(17))
spoilt_bits = -torch.logaddexp2(log_p + math.log2(0.01), log_n + math.log2(0.99)) / 64
lost = spoilt_bits + log_p / 64
print(f"lost: {lost.mean():.4f} bits/dim, at most {math.log2(100) / 64:.4f}")
print(f"at most, for a CIFAR picture: {math.log2(100) / 3072:.4f} bits/dim")
assert (lost <= math.log2(100) / 64 + 1e-12).all() and lost.mean() > 0.09

# %% tags=["nbval-ignore-output"]
noise_pixels = torch.randint(17, pixels.shape, generator=rng(35)).to(torch.uint8)
kept = torch.arange(len(pixels)) < 4  # four of 359, about one in a hundred
mostly_noise = torch.where(kept.reshape(-1, 1, 1, 1), pixels, noise_pixels)
fid_noise = md.frechet_distance(see(mostly_noise), seen_train)
print(
    f"FID: real digits {far['as they are']:.2f}, ninety-nine of a hundred noise {fid_noise:.1f}"
)

# %%
assert fid_noise > 10 * far["as they are"]

# %% [markdown]
# So this book reports both, and says of each what it is a number of. One command measures a run, with the number of
# samples, the extractor and its weights written beside every score:
#
# ```
# minidiff evaluate runs/digits -n 1000 --metrics fid,kid,is,pr
# ```
#
# (KID compares the same features without the Gaussian, by a kernel, and has no bias; the Inception Score looks at the
# samples alone, and asks whether each is named with confidence and all names occur.) In the tables of this chapter,
# “distance” is $\eqref{eq:2-2}$ on the bare 64 pixels, as the runs behind them were measured.

# %% [markdown]
# ## 2.14 Which question, which loss: the paper's Table 2
#
# On CIFAR-10, after 800,000 steps, the paper measured this. The entries are FID, a distance of samples from data: the
# smaller the better.
#
# $$\small\begin{array}{lcc}
# \text{trained on; asked for:}&\tilde{\boldsymbol\mu}&\boldsymbol\epsilon\\ \hline
# L,\ \text{learned diagonal }\boldsymbol\Sigma&23.69&\text{unstable}\\
# L,\ \text{fixed }\sigma_t^2\mathbf I&13.22&13.51\\
# \text{squared error, no weights}&\text{unstable}&\mathbf{3.17}
# \end{array}\tag{DDPM Table 2}$$
#
# Ours is on digits and short, and adds the data $\mathbf x_0$, $\mathbf v$, and two rows whose schedule we come to
# below. Each row is the recipe's network from the same seed, on the same number of images. What carries over should
# be the order within a question, and that is what the cell asserts.

# %%
# check: DDPM Table 2
print(f"{ablation['command']}, seed {ablation['seed']}, {ablation['images']:,} images a row")
print(f"{ablation['date']}, commit {ablation['commit']}, {ablation['machine']}\n")
print(f"{'':<34}{'bits/dim':>16}{'distance':>10}")
for name, row in ablation["rows"].items():
    bits = f"{row['bits_per_dim']:>9.3f} ± {row['standard_error']:.3f}"
    print(f"{name:<34}{bits}{row['frechet']:>9.2f}")

far = {name: row["frechet"] for name, row in ablation["rows"].items()}
eps = [
    far["eps, simple"],
    far["eps, bound, fixed variance"],
    far["eps, bound, learned variance"],
]
mean = [far["mean, bound, fixed variance"], far["mean, bound, learned variance"]]
assert eps == sorted(eps) and mean == sorted(mean)  # the paper's order down each column
others = [
    name
    for name in far
    if "schedule" not in name and name not in ("eps, simple", "v, simple")
]
assert far["eps, simple"] < min(far[name] for name in others) and far["v, simple"] < min(
    far[name] for name in others
)

# %% [markdown]
# Down the column of the noise the order is the paper's: equal weights draw best, level with $\mathbf v$, and learning
# the variance hurts. Down the column of the mean the two rows on the bound are in the paper's order, but both fare
# worse here than the unweighted error, which the paper could not train at all. Of the two entries that the paper
# calls unstable, neither broke. And the paper finds hardly any difference between mean and noise under the bound,
# while ours is large. The likely reason is length: a network asked for the mean must first learn to copy its input to
# a few parts in ten thousand, and these runs have a thousandth of the paper's steps. (One difference of method: the
# library clips $\hat{\mathbf x}_0$ and rebuilds the mean from it whatever was asked for; the official code leaves a
# predicted mean as it is.)
#
# The row “x0, simple” teaches the other half of the lesson of section 2.7. Its samples come next after those of the
# noise and of $\mathbf v$, and yet its bits are the worst of the table. In the first steps the network's answer is
# nearly the mean itself, at $t=1$ exactly, and any slip costs many bits; asked for the noise, the slip is multiplied
# by $\sqrt{1-\bar\alpha_t}/\sqrt{\bar\alpha_t}$, a hundredth at $t=1$. Where errors count is all that the question
# decides.
#
# ## 2.15 How many bits does a digit need?
#
# The bound $\eqref{eq:ddpm-5}$, divided by the number of dimensions and by $\ln 2$, says how many bits per pixel a
# code built on the chain would need. We compute it for the digits the model has never seen, term by term. A thousand
# terms for every image would be wasteful: late terms are nearly equal to their neighbours. So the steps are put into
# strata, single steps first, then wider and wider ones; every image draws one step in each stratum, and a stratum of
# $w$ steps counts that term $w$ times. This is unbiased, and the scatter over images gives an honest standard error.
#
# A number of bits means nothing alone. Beside it stand three codes that know no diffusion, each a probability mass on
# the 17 levels: equal probabilities; a histogram for each pixel, the pixels independent; and a mixture of Gaussians,
# put into bins as in $\eqref{eq:ddpm-13}$.

# %% tags=["nbval-ignore-output"]
from sklearn.mixture import GaussianMixture

test = held_out.x.double()
bound = md.likelihood_bound(model.process, model.net, test, rng(15), count=120)

# (64, 17), half a count for the unseen
counts = (
    torch.stack([(digits.pixels == k).sum(0).flatten() for k in range(17)], 1).double() + 0.5
)
log_histogram = (counts / counts.sum(1, keepdim=True)).log()
# per example
histogram_nats = -log_histogram.gather(1, held_out.pixels.flatten(1).long().T).T.mean(1)

# fill the bins before fitting
jitter = (torch.rand(flat.shape, generator=rng(16)) - 0.5) / 8
gm = GaussianMixture(20, covariance_type="diag", reg_covar=1e-3, random_state=0).fit(
    (flat + jitter).numpy()
)
masses = torch.stack(
    [
        md.discretised_normal_log_prob(
            test.flatten(1),
            torch.tensor(mean).expand(len(test), 64),
            torch.tensor(var).sqrt().expand(len(test), 64),
            17,
        ).sum(1)
        + math.log(w)
        for w, mean, var in zip(gm.weights_, gm.means_, gm.covariances_, strict=True)
    ],
    1,
)
mixture_nats = -masses.logsumexp(1) / 64

bits = {
    "equal probabilities": math.log2(17),
    "independent pixels, histograms": histogram_nats.mean().item() / math.log(2),
    "mixture of 20 diagonal Gaussians, in bins": mixture_nats.mean().item() / math.log(2),
    "this chain, at most": bound.total,
}
for name, value in bits.items():
    print(
        f"{name:<44}{value:.3f} bits/dim"
        + (f" ± {bound.error:.3f}" if name.startswith("this") else "")
    )
print(
    f"\nof which  L_T {bound.prior.mean():.6f}   t = 1, the decoder {bound.between(0, 0):.3f}   "
    f"t = 2…60 {bound.between(1, 59):.3f}   t > 60 {bound.between(60, T):.3f}"
)

# %%
assert (
    bits["equal probabilities"]
    > bound.total
    > bits["independent pixels, histograms"]
    > bits["mixture of 20 diagonal Gaussians, in bins"]
)
assert bound.between(1, 59) > 0.5 * bound.total and bound.prior.mean() < 1e-4

# %% [markdown]
# A table of counts beats our network, which knows so much more about digits. Where do its bits go? Almost none into
# $L_T$, none into the decoder: they are in the first sixty steps. At the very beginning the noise is far smaller than
# $1/16$, half the distance of two grey levels. The noisy value still tells which level it came from; a perfect
# network would simply round to the nearest one. But rounding to seventeen levels is a staircase, at every pixel and
# every $t$, and the network is a smooth function that was trained with most of its effort elsewhere.
#
# How much of the loss is that? We can build a network that has nothing left to learn. Take the code of independent
# pixels and turn it into a chain: for a single pixel with known probabilities, $\mathbb E[x_0\mid x_t]$ is a finite
# sum. Its bound on the same digits should come out above the exact number just printed, for it bounds the bits of a
# chain that approximates this code; and its terms show what each step costs a perfect network.

# %% tags=["nbval-ignore-output"]
grid17 = 2 * torch.arange(17, dtype=double) / 16 - 1


def histogram_eps(x, t):
    """E[ε | x_t] for independent pixels with the counted probabilities: perfect for that model."""
    ab = alpha_bar[t.long() + 1].reshape(-1, 1, 1)
    # (batch, 64, 1)
    value = x.flatten(1).double()[:, :, None]
    # Bayes over the 17 levels
    share = (log_histogram - (value - ab.sqrt() * grid17) ** 2 / (2 * (1 - ab))).softmax(2)
    x0_hat = (share * grid17).sum(2)
    return (
        ((value[..., 0] - ab[..., 0].sqrt() * x0_hat) / (1 - ab[..., 0]).sqrt())
        .reshape(x.shape)
        .to(x.dtype)
    )


edge = int((alpha_bar < 1 - 1 / 16**2).int().argmax())
exact = histogram_nats.mean().item() / math.log(2)
right = torch.special.erf(1 / 16 / (2 * (1 - alpha_bar[[5, 10, edge]])).sqrt())
print(f"noise of half a grey level at t = {edge}; an inner level still rounds to itself in")
print(f"{right[0]:.0%} of cases at t = 5, {right[1]:.0%} at 10, {right[2]:.0%} at {edge}\n")
print(f"{'bits/dim':<36}{'all':>7}{'t = 1':>8}{'2…5':>8}{'6…16':>8}{'17…60':>8}{'> 60':>8}")


def account(name, result):
    """One line: the bound and where it is."""
    spans = ((0, 0), (1, 4), (5, 15), (16, 59), (60, T))
    parts = "".join(f"{result.between(*span):>8.3f}" for span in spans)
    print(f"{name:<36}{result.total:>7.3f}{parts}")


account("trained network, σ² = β", bound)
ideals = {}
for variance, symbol in (("large", "β"), ("small", "β̃")):
    chain = md.GaussianDiffusion(md.linear_betas(T), variance=variance, levels=17)
    ideals[variance] = md.likelihood_bound(chain, histogram_eps, test, rng(17), count=120)
    account(f"perfect, independent, σ² = {symbol}", ideals[variance])
print(f"{'independent pixels, exactly':<36}{exact:>7.3f}\n")
ratio = (beta_tilde / beta)[2:]
C = (0.5 * (ratio - 1 - ratio.log())).sum() / math.log(2)  # of (8), all steps with σ² = β
print(f"the constant C of (8), summed over all steps: {C:.3f} bits")
for ideal in ideals.values():
    assert (ideal.per_example - histogram_nats / math.log(2)).mean() > 0
assert bound.between(1, 4) > 5 * ideals["small"].between(1, 4)
assert bound.between(60, T) < 0.7 * ideals["small"].between(60, T)
assert ideals["small"].total + 0.2 < ideals["large"].total

centre = (bound.edges[:-1] + bound.edges[1:] + 1).double() / 2
width = (bound.edges[1:] - bound.edges[:-1]).double()
fig, ax = plt.subplots()
ax.loglog(centre, bound.terms / width, label="the trained network")
ax.loglog(
    centre,
    ideals["small"].terms / width,
    "--",
    label="perfect network for independent pixels",
)
ax.axvline(edge, color=plots.INK, linewidth=0.8, linestyle=":")
ax.text(edge * 1.08, 3e-1, "noise of half a level: one in three rounds wrong", fontsize=8.5)
ax.set(
    xlabel="step $t$",
    ylabel="bits per pixel, one term",
    ylim=(1e-6, 1),
    title="The bits are lost where the network should round, and does not",
)
ax.legend(loc="lower left")
plt.show()

# %% [markdown]
# Read the table from the right. Above step 60 the trained network needs about half of what independent pixels need:
# it knows what a digit looks like, and this is where. In steps 2 to 5 it pays many times what a perfect network
# would: that is the staircase, where rounding is all but certain and the network does not do it. From about the tenth
# step on it is the better of the two.
#
# The perfect network pays too. Its chain costs more than its own exact code, although it has nothing left to learn,
# so the chain itself must be at fault, in two ways. In the very first steps $\hat x_0$ is known, so the true undoing
# has variance $\tilde\beta_t$; with $\sigma_t^2=\beta_t$ the chain pays the constant $C$ of $\eqref{eq:ddpm-8}$
# there, which no network can change. The smaller remainder, with $\tilde\beta_t$, comes from the steps where the
# noise is about as wide as the distance of two levels: there the true undoing has several peaks, and a Gaussian has
# one.
#
# So do not ask for it: let the chain begin where rounding ends. With $\beta_1=(1/16)^2$ the first step already adds
# noise of half a grey level, the decoder $\eqref{eq:ddpm-13}$ does the rounding by its bins, and few steps are left
# for telling levels apart. The two last rows of the ablation have this schedule.

# %%
print(f"{'':<32}{'bits/dim':>9}{'t = 1':>8}{'2…60':>9}{'> 60':>8}{'distance':>10}")
for row in (
    "eps, simple",
    "eps, simple, half-bin schedule",
    "eps, bound, fixed variance",
    "eps, bound, half-bin schedule",
):
    r = ablation["rows"][row]
    parts = f"{r['decoder_bits']:>8.3f}{r['bits_t_2_to_60']:>9.3f}{r['bits_above_60']:>8.3f}"
    print(f"{row:<32}{r['bits_per_dim']:>9.3f}{parts}{r['frechet']:>10.2f}")
    if "half-bin" in row:
        # fewer bits than the table of counts
        assert r["bits_per_dim"] + 4 * r["standard_error"] < exact

# %% [markdown]
# The first steps and the decoder together cost much less than the first steps alone did before, and with that goes
# the reason why a table of counts won: with this schedule both networks, trained on the bound or on the simple loss,
# need fewer bits than independent pixels. (Sixty steps of the two schedules are not the same range of noise; only the
# sums compare.) The samples are no better for it. The likelihood was never bad because the model did not know digits;
# it was bad because the schedule asked for decimals.
#
# ## 2.16 A code that arrives in order of importance
#
# The bound is the length of a code, and the code can be made. The sender knows $\mathbf x_0$. Sender and receiver
# both know the chain, and share a source of random numbers. The sender walks down the forward chain's posterior, and
# for each step lets the receiver know which sample was drawn:
#
# $$\begin{array}{l}
# \text{send}\ \ \mathbf x_T\sim q(\mathbf x_T\mid\mathbf x_0)\ \ \text{using}\ \ p(\mathbf x_T)\\
# \textbf{for}\ t=T-1,\dots,1:\\
# \quad\text{send}\ \ \mathbf x_t\sim q(\mathbf x_t\mid\mathbf x_{t+1},\mathbf x_0)\ \ \text{using}\ \ p_\theta(\mathbf x_t\mid\mathbf x_{t+1})\\
# \text{send}\ \ \mathbf x_0\ \ \text{using}\ \ p_\theta(\mathbf x_0\mid\mathbf x_1)
# \end{array}\tag{DDPM Alg. 3}\label{eq:ddpm-alg-3}$$
#
# $$\begin{array}{l}
# \text{receive}\ \ \mathbf x_T\ \ \text{using}\ \ p(\mathbf x_T)\\
# \textbf{for}\ t=T-1,\dots,0:\\
# \quad\text{receive}\ \ \mathbf x_t\ \ \text{using}\ \ p_\theta(\mathbf x_t\mid\mathbf x_{t+1})\\
# \textbf{return}\ \mathbf x_0
# \end{array}\tag{DDPM Alg. 4}\label{eq:ddpm-alg-4}$$
#
# "Send a sample of $q$ using $p$" sounds like magic. The paper points to *minimal random coding* (Harsha et al. 2007,
# Havasi et al. 2019): both sides draw the same $K$ candidates from $p$; the sender picks one with probability in
# proportion to $q/p$, and sends its number, $\log_2K$ bits. If $K$ is well above $2^{D_{\mathrm{KL}}(q\|p)}$, the
# pick is nearly a sample of $q$. So the cost of a step is about its divergence, which is what the bound charges.
# Since $K$ grows exponentially with the divergence, this is a proof of concept and no practical coder. Here is the
# whole protocol for a single pixel of 17 levels and a chain of eight steps, with the perfect network of the last
# section. The last step sends an integer, whose probabilities $\eqref{eq:ddpm-13}$ both sides know; any entropy coder
# does that with $-\log_2p_\theta(x_0\mid x_1)$ bits, and here its rank among the likeliest stands for the code word.
# The receiver is given nothing but the numbers. Where $q$ is narrow, in the last steps,
# 512 candidates are few, and the errors come out somewhat above the theory.

# %%
# check: DDPM Alg. 3, DDPM Alg. 4
# which of the 64: a lively one
pixel = 20
# short_beta[t], t = 1 … 8
short_beta = torch.tensor([0.0, 0.02, 0.06, 0.15, 0.3, 0.4, 0.5, 0.6, 0.8], dtype=double)
short_ab = torch.cumprod(1 - short_beta, 0)
# candidates a step: 9 bits
K = 512


def undo_step(t, xt, x0):
    """Mean and variance of q(x_{t-1} | x_t, x_0)."""
    ab, prev = short_ab[t], short_ab[t - 1]
    return (
        prev.sqrt() * short_beta[t] * x0 + (1 - short_beta[t]).sqrt() * (1 - prev) * xt
    ) / (1 - ab), (1 - prev) / (1 - ab) * short_beta[t]


def guess(t, xt):
    """x̂_0: the perfect network for one pixel."""
    return (
        (
            log_histogram[pixel]
            - (xt - short_ab[t].sqrt() * grid17) ** 2 / (2 * (1 - short_ab[t]))
        ).softmax(0)
        * grid17
    ).sum()


def candidates(t, x_next, shared):
    """What both sides draw: K samples of p(x_8) or p_θ(x_t | x_{t+1}), with mean and variance."""
    mean, var = (
        (torch.zeros(()), torch.ones(()))
        if t == 8
        else undo_step(t + 1, x_next, guess(t + 1, x_next))
    )
    return mean + var.sqrt() * torch.randn(K, generator=shared, dtype=double), mean, var


def last_step(x1):
    """What both sides know of x_0 at the end: the 17 log masses of the decoder, and their order."""
    std = (
        short_beta[2] * (1 - short_ab[1]) / (1 - short_ab[2])
    ).sqrt()  # √β̃_2, as in the library
    mean = guess(1, x1).expand(17)
    log_mass = md.discretised_normal_log_prob(grid17, mean, std.expand(17), 17)
    return log_mass, log_mass.argsort(descending=True)


def send(x0, seed, private):
    """Algorithm 3: the nine numbers to transmit, and their cost in bits, L_T + … + L_1 + L_0."""
    shared, numbers, x, cost = rng(seed), [], None, 0.0
    for t in range(8, 0, -1):
        draw, mean, var = candidates(t, x, shared)
        start = (short_ab[8].sqrt() * x0, 1 - short_ab[8])
        q_mean, q_var = start if t == 8 else undo_step(t + 1, x, x0)
        log_ratio = -((draw - q_mean) ** 2) / (2 * q_var) + (draw - mean) ** 2 / (2 * var)
        numbers.append(torch.multinomial(log_ratio.softmax(0), 1, generator=private).item())
        x = draw[numbers[-1]]
        cost += md.normal_kl(q_mean, q_var.log(), mean, var.log()).item() / math.log(2)
    log_mass, ranking = last_step(x)
    level = (grid17 - x0).abs().argmin()
    numbers.append((ranking == level).nonzero().item())
    return numbers, cost - log_mass[level].item() / math.log(2)


def receive(numbers, seed):
    """Algorithm 4: the points x_8 … x_1 and x_0, from the numbers alone."""
    shared, xs = rng(seed), []
    for t, number in zip(range(8, 0, -1), numbers[:-1], strict=True):
        xs.append(candidates(t, xs[-1] if xs else None, shared)[0][number])
    return xs, grid17[last_step(xs[-1])[1][numbers[-1]]]


private, errors, costs = rng(18), [], []
for i, level in enumerate(digits.pixels.flatten(1)[:600, pixel].long()):
    numbers, cost = send(grid17[level], 1000 + i, private)
    xs, x0_received = receive(numbers, 1000 + i)
    assert x0_received == grid17[level]  # the data arrive, exactly
    errors.append(
        torch.stack(
            [guess(t, x) - x0_received for t, x in zip(range(8, 0, -1), xs, strict=True)]
        )
    )
    costs.append(cost)
rmse = torch.stack(errors).pow(2).mean(0).sqrt()

theory = []
for t in range(8, 0, -1):
    xt = torch.linspace(-6, 6, 4001, dtype=double)[:, None]
    joint = (
        log_histogram[pixel]
        - (xt - short_ab[t].sqrt() * grid17) ** 2 / (2 * (1 - short_ab[t]))
    ).exp()
    mean = (joint * grid17).sum(1, keepdim=True) / joint.sum(1, keepdim=True)
    theory.append(((joint * (grid17 - mean) ** 2).sum() / joint.sum()).sqrt())
theory = torch.stack(theory)
print("error of the receiver's guess after each step:", "  ".join(f"{e:.3f}" for e in rmse))
print("what the theory says:                         ", "  ".join(f"{e:.3f}" for e in theory))
entropy = -(log_histogram[pixel].exp() * log_histogram[pixel]).sum() / math.log(2)
print(
    f"cost by the bound: {sum(costs) / len(costs):.2f} bits a pixel; its entropy is {entropy:.2f} bits: "
    "eight steps are few, and their undoings far from Gaussian"
)
assert ((rmse - theory).abs() < 0.1 * theory + 0.02).all() and sum(costs) / len(
    costs
) > entropy

# %% [markdown]
# The receiver need not wait for the end. After any step it can look at $\hat{\mathbf x}_0$, so the code is
# *progressive*: first what the digit is, then its strokes, then its grey levels. How many bits have been received,
# and how large the error then is, are the two columns of the paper's Table 4; for our digits, both come from the
# terms we have.

# %% tags=["nbval-ignore-output"]
# received when the chain has come down to each stratum
rate = bound.prior.mean() + bound.terms.flip(0).cumsum(0) - (bound.terms / width).flip(0)
# in grey levels of 0 … 16
rmse = bound.x0_mse.flip(0).sqrt() * 8
steps_down = T - bound.edges[:-1].flip(0)
fig, axes = plt.subplots(1, 2, figsize=(6.6, 2.7), sharey=True)
axes[0].plot(steps_down, rmse)
axes[0].set(
    xlabel="reverse steps received",
    ylabel="error of $\\hat x_0$, grey levels",
    ylim=(0, None),
)
axes[1].plot(rate, rmse)
axes[1].set(xlabel="rate, bits per pixel", xlim=(0, None))
plt.suptitle(
    "Half a bit per pixel draws the digit; all the others are spent on its last decimals",
    fontsize=10.5,
    fontweight="bold",
)
plt.show()
print(f"{'reverse steps':>14}{'bits/dim':>10}{'error':>8}")
for k in [
    int((steps_down - s).abs().argmin()) for s in (100, 300, 500, 700, 900, 950, 990, 1000)
]:
    print(f"{steps_down[k]:>14}{rate[k]:>10.4f}{rmse[k]:>8.3f}")

# %%
half = int((rate < 0.5).sum()) - 1
assert rmse[half] < 1.5 and rmse[0] > 4 and rate[-1] > 4 * rate[half]

# %% [markdown]
# The paper found the same with photographs: of 3.75 bits per dimension, 1.78 describe the picture, and 1.97 a
# distortion that the eye cannot see.
#
# ## 2.17 Watching the chain decide
#
# Generation is that decoder, fed with random numbers in place of received ones. Its guess $\hat{\mathbf x}_0$ shows
# when it decides what.

# %% tags=["nbval-ignore-output"]
stack = torch.stack([pictures[t][1][:10] for t in sorted(pictures, reverse=True)], 0).flatten(
    0, 1
)
plots.show_grid(
    stack,
    columns=10,
    title="What the chain believes: $\\hat x_0$ settles on a digit between steps 500 and 200",
    row_labels=[f"t = {t}" for t in sorted(pictures, reverse=True)],
)
plt.show()
order = sorted(pictures, reverse=True)
change = {t: (pictures[t][1] - samples).pow(2).mean().sqrt().item() for t in order}
print(
    "distance of x̂_0 from the finished digit:  "
    + "   ".join(f"t={t}: {change[t]:.2f}" for t in order)
)
assert change[500] > 1.8 * change[200] and change[200] < 0.3

# %% [markdown]
# If the decision falls in the middle of the chain, then chains that share $\mathbf x_t$ and go on with different
# noise should agree in everything when $t$ is small, in nothing but chance when it is large, and in the general shape
# between.

# %% tags=["nbval-ignore-output"]
rows = []
for t in (1000, 500, 300, 100):
    start = md.per_image_noise([5], (1, 8, 8))(0) if t == 1000 else None
    if start is None:
        held = {}
        md.ancestral(
            model.process,
            model.net,
            md.per_image_noise([5], (1, 8, 8))(0),
            md.per_image_noise([5], (1, 8, 8)),
            callback=lambda step, x, t, x0_hat, held=held: held.__setitem__(t + 1, x),
            last=t - 1,
        )
        start = held[t]
    fresh = md.batch_noise(rng(19), 10, (1, 8, 8))
    rows.append(
        md.ancestral(model.process, model.net, start.repeat(10, 1, 1, 1), fresh, first=t - 1)
    )
plots.show_grid(
    torch.cat(rows),
    columns=10,
    title="Ways on from one $x_t$: strangers from 1000, siblings from 300, twins from 100",
    row_labels=[f"t = {t}" for t in (1000, 500, 300, 100)],
)
plt.show()
scatter = [row.std(0).mean().item() for row in rows]
print("standard deviation between the ten of a row:", "  ".join(f"{s:.2f}" for s in scatter))
assert scatter[1] > 0.8 * scatter[0] > scatter[2] > 1.5 * scatter[3]

# %% [markdown]
# The same idea interpolates between two pictures. Noise both to the same $t$, with the *same* noise, so that every
# mixture keeps the noise level of that step; mix the noisy points,
# $\bar{\mathbf x}_t=(1-\lambda)\mathbf x_t+\lambda\mathbf x_t'$, and let the chain clean up. A mixture of two digits
# is not a digit; the chain, which only knows digits, has to find one near it. The larger $t$, the freer it is.

# %% tags=["nbval-ignore-output"]
pair = held_out.x[[0, 8]].double()
weights = torch.linspace(0, 1, 9, dtype=double).reshape(-1, 1, 1, 1)
rows = [(1 - weights) * pair[0] + weights * pair[1]]
for t in (100, 300, 500):
    shared_noise = torch.randn(1, 1, 8, 8, generator=rng(20), dtype=double).expand(
        2, -1, -1, -1
    )
    noisy = process.q_sample(pair, torch.full((2,), t - 1), shared_noise)
    mixed = (1 - weights) * noisy[0] + weights * noisy[1]
    way = md.batch_noise(rng(21), 1, (1, 8, 8))
    rows.append(
        md.ancestral(
            model.process,
            model.net,
            mixed,
            lambda i, way=way: way(i).expand(9, -1, -1, -1),
            first=t - 1,
        )
    )
plots.show_grid(
    torch.cat(rows),
    columns=9,
    title="Between two held-out digits: pixels only blend, the chain finds digits on the way",
    row_labels=["pixels", "t = 100", "t = 300", "t = 500"],
)
plt.show()
ends = [(row[[0, 8]] - pair).pow(2).mean().sqrt().item() for row in rows[1:]]
print(
    "how far the two ends have moved from the digits they came from:",
    "  ".join(f"{e:.2f}" for e in ends),
)
assert ends[0] < ends[1] < ends[2] and ends[0] < 0.4

# %% [markdown]
# ## 2.18 What goes wrong
#
# **Algorithm 2 does not clip, the code does.** Where the noise is predicted, the official code computes
# $\hat{\mathbf x}_0$, clips it to $[-1,1]$ and takes $\eqref{eq:ddpm-7}$; the paper prints $\eqref{eq:ddpm-11}$.
# Section 2.7 showed that these are the same if nothing is clipped. At the first steps of sampling
# $1/\sqrt{\bar\alpha_t}$ is over a hundred, so a small error of the network becomes a large error of
# $\hat{\mathbf x}_0$, and clipping removes what cannot be true.

# %% tags=["nbval-ignore-output"]
unclipped = md.GaussianDiffusion(md.linear_betas(T), levels=17, clip=False)
outside = {}


def count(step, x, t, x0_hat):
    """Share of the pixels of x̂_0 that no digit can have."""
    outside[t + 1] = (x0_hat.abs() > 1).double().mean().item()


noise = md.per_image_noise(range(100, 164), (1, 8, 8))
x = md.ancestral(unclipped, model.net, noise(0), noise, callback=count)
apart = (md.decode(x, 17) != md.decode(many[:64], 17)).double().mean()
shares = ", ".join(f"{outside[t]:.0%} at t = {t}" for t in (1000, 500, 10))
print(f"x̂_0 outside [-1, 1]: {shares}")
print(
    f"pixels that end on another grey level than with clipping, from the same noise: {apart:.0%}"
)
for name, these in (("clipped", many[:64]), ("unclipped", x)):
    grey = md.encode(md.decode(these, 17), 17).flatten(1)
    print(f"distance of these 64 samples, {name}: {md.frechet_distance(grey, flat):.2f}")

# %%
assert torch.isfinite(x).all() and outside[1000] > 0.2 and apart < 0.9

# %% [markdown]
# Most of the guesses at the top of the chain are impossible, and yet the samples are no worse: at large $t$ the
# posterior mean $\eqref{eq:ddpm-7}$ gives $\hat{\mathbf x}_0$ a tiny factor, the chain has many more steps to
# recover, and this network was trained long for its size. Clipping earns its place with networks that are less good,
# and with samplers of few steps, where each guess counts for much.

# %% [markdown]
# **Four more, each shown with a number.** The index: a library that counts from 0 and a formula that counts from 1
# differ by one step, and nothing crashes. The last noise: adding $\sigma_1\mathbf z$ at the end leaves grain, here
# far below a grey level and easily overlooked. Single precision: $1-\bar\alpha_1$ is a difference of nearly equal
# numbers. The wrong number of levels: the same model seems to need a different number of bits, when only the bins
# changed.

# %%
at = torch.full((5,), 99)
x5, noise5 = digits.x[:5].double(), torch.randn(5, 1, 8, 8, generator=rng(22), dtype=double)
off_by_one = (
    (process.q_sample(x5, at, noise5) - process.q_sample(x5, at + 1, noise5)).abs().max()
)
print(
    f"index off by one at t = 100:    x_t differs by at most {off_by_one:.4f}, and nobody notices"
)
print(
    f"noise kept in the last step:    standard deviation {beta[1].sqrt() * 8:.2f} grey levels"
)
single = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T), 0)
relative = ((1 - single[0].double()) / (1 - alpha_bar[1]) - 1).abs()
print(f"tables in single precision:     1 − ᾱ_1 is off by {relative:.1e}, relatively")
kernel = process.reverse(
    histogram_eps,
    process.q_sample(test, torch.zeros(len(test), dtype=torch.long), torch.zeros_like(test)),
    torch.zeros(len(test), dtype=torch.long),
)
wrong, right = (
    -md.discretised_normal_log_prob(test, kernel.mean, kernel.scale, levels).mean()
    / math.log(2)
    for levels in (256, 17)
)
print(
    f"levels=256 for 17 grey levels:  the decoder's term is {wrong:.3f} bits/dim, "
    f"where {right:.3f} is true"
)
assert 0 < off_by_one < 0.05 and 1e-5 < relative < 1e-2 and wrong > right + 0.5

# %% [markdown]
# **The averaged weights.** Training jumps around; an exponential average of the weights sits in the middle of the
# jumps. In one re-implementation of the paper on CIFAR-10 (w86763777/pytorch-ddpm) samples from the average have FID
# 3.21, from the raw weights 8.06. But an average that remembers the random start is useless for as long as it
# remembers. The library's average therefore begins with a short memory, a twentieth of the images seen, and lengthens
# it. Below, the share of the random start in the average, had the memory been long from the first step, for the
# recipe's half-life and the paper's:

# %%
for name in ("digits", "ddpm-cifar10"):
    half_life = max(md.recipe(name).training.ema)
    for images in (10_000, 100_000):
        print(
            f"{name:<14} half-life {half_life:>7,} images: after {images:>7,} images "
            f"the start would still weigh {0.5 ** (images / half_life):.1%}"
        )

# %% [markdown]
# ## 2.19 At the paper's scale
#
# The same library holds the paper's own settings. With CIFAR-10's pictures in `cifar10.npz`, its training set as an
# array `images` of shape $50000\times32\times32\times3$ and its test set as `test_images`, one command trains it, and
# a third measures its bits on the test set:
#
# ```
# minidiff train ddpm-cifar10 --data.source cifar10.npz --out runs/cifar10
# minidiff sample runs/cifar10 -n 64 --seed 0
# minidiff likelihood runs/cifar10
# ```
#
# What it costs can be computed without owning the machine. The networks are built without memory for their weights,
# on torch's `meta` device, and the multiplications and additions of one forward pass are counted. Memory is that of
# the weights, their gradients, Adam's two moments and the average; activations come on top. A training step is three
# forward passes' worth, one for the values and two for the gradients.

# %%
from torch.utils.flop_counter import FlopCounterMode

print(
    f"{'':<18}{'parameters':>13}{'GFLOP/image':>13}{'images':>14}{'EFLOP':>9}{'memory':>11}"
)
for name, shape in (
    ("digits", (1, 8, 8)),
    ("ddpm-cifar10", (3, 32, 32)),
    ("ddpm-celebahq256", (3, 256, 256)),
):
    recipe = md.recipe(name)
    with torch.device("meta"):
        big = md.build(recipe, shape, 256)
        with FlopCounterMode(display=False) as counter:
            big.net(torch.zeros(1, *shape), torch.zeros(1))
    n_parameters, forward_flop = (
        sum(p.numel() for p in big.parameters()),
        counter.get_total_flops(),
    )
    total = 3 * forward_flop * recipe.training.images
    print(
        f"{name:<18}{n_parameters:>13,}{forward_flop / 1e9:>13.3f}{recipe.training.images:>14,}"
        f"{total / 1e18:>9.3f}{5 * 4 * n_parameters / 2**20:>7.0f} MiB"
    )
    if name == "ddpm-cifar10":
        # the official network, to the unit
        assert n_parameters == 35_746_307
        print(
            f"{'':<18}that is {total / 1e14 / 3600:.0f} hours on a device that sustains 100 TFLOP/s;\n"
            f"{'':<18}the paper's eight TPU cores took 10.6 hours"
        )

# %% [markdown]
# | CIFAR-10, 50,000 samples | paper | official code | ours |
# |---|---|---|---|
# | FID, $L_{\mathrm{simple}}$, $\boldsymbol\epsilon$ | 3.17 | its README prints no numbers | not run here |
# | Inception Score | 9.46 ± 0.11 | | not run here |
# | bits/dim, test set | ≤ 3.75 | | not run here |
# | FID, bound, $\boldsymbol\epsilon$, fixed variance | 13.51 | | not run here |
# | bits/dim, bound, test set | ≤ 3.70 | | not run here |
#
# ## 2.20 Exercises
#
# Run the cells tagged `setup` (the first cell of code) and begin. Points are given for what the tests, visible and
# hidden, accept; the two exercises on paper and the experiment are read by a person.
#
# **Exercise 2.1 (3 points, on paper).** Data $x_0\sim\mathcal N(0,s^2)$, one dimension. Find the variance of the true
# undoing $q(x_{t-1}\mid x_t)$ and show that it lies between $\tilde\beta_t$ and $\beta_t$ for $0\le s\le1$.

# %% [markdown] nbgrader={"grade": true, "grade_id": "between_the_variances", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# Let $P=\bar\alpha_{t-1}s^2+1-\bar\alpha_{t-1}$ be the variance of $x_{t-1}$. Then
# $\operatorname{Var}x_t=\alpha_tP+\beta_t$ and $\operatorname{Cov}(x_{t-1},x_t)=\sqrt{\alpha_t}P$, so by the
# regression formula the undoing has variance
#
# $$ P-\frac{\alpha_tP^2}{\alpha_tP+\beta_t}=\frac{\beta_tP}{\alpha_tP+\beta_t}. $$
#
# As a function of $P$ it increases, since its reciprocal is $\alpha_t/\beta_t+1/P$. For $s=0$ we have
# $P=1-\bar\alpha_{t-1}$ and $\alpha_tP+\beta_t=1-\bar\alpha_t$: the value is $\tilde\beta_t$. For $s=1$ we have
# $P=1$: the value is $\beta_t$. Since $P$ increases with $s$, everything between lies between. (For $s>1$ it exceeds
# $\beta_t$: neither choice of the paper is then an upper bound.)
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# **Exercise 2.2 (3 points, on paper).** Let $\mathrm{SNR}_t=\bar\alpha_t/(1-\bar\alpha_t)$. Show that for $t>1$ with
# $\sigma_t^2=\tilde\beta_t$ the term $\eqref{eq:ddpm-8}$ is
# $\tfrac12(\mathrm{SNR}_{t-1}-\mathrm{SNR}_t)\,\mathbb E\|\mathbf x_0-\hat{\mathbf x}_0\|^2$, with $C=0$. What does
# this say about which step costs what?

# %% [markdown] nbgrader={"grade": true, "grade_id": "snr_form", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# With equal variances the divergence is the squared distance of the means over $2\tilde\beta_t$, so $C=0$. Both means
# are (7), one with $\mathbf x_0$ and one with $\hat{\mathbf x}_0$; their difference is
# $\frac{\sqrt{\bar\alpha_{t-1}}\beta_t}{1-\bar\alpha_t}(\mathbf x_0-\hat{\mathbf x}_0)$. The factor is therefore
#
# $$ \frac{1}{2}\cdot\frac{1-\bar\alpha_t}{(1-\bar\alpha_{t-1})\beta_t}\cdot\frac{\bar\alpha_{t-1}\beta_t^2}{(1-\bar\alpha_t)^2}=\frac12\cdot\frac{\bar\alpha_{t-1}\beta_t}{(1-\bar\alpha_{t-1})(1-\bar\alpha_t)}. $$
#
# On the other side,
# $\mathrm{SNR}_{t-1}-\mathrm{SNR}_t=\frac{\bar\alpha_{t-1}(1-\bar\alpha_t)-\bar\alpha_t(1-\bar\alpha_{t-1})}{(1-\bar\alpha_{t-1})(1-\bar\alpha_t)}=\frac{\bar\alpha_{t-1}-\bar\alpha_t}{(1-\bar\alpha_{t-1})(1-\bar\alpha_t)}$,
# and $\bar\alpha_{t-1}-\bar\alpha_t=\bar\alpha_{t-1}\beta_t$. They agree. A step costs the error of the guess times
# the signal-to-noise ratio gained in it. The sum over steps is a Riemann sum of the error against the SNR, so in the
# limit of many steps only the end points of the schedule matter to the bound, not the way between them (Kingma et
# al., *Variational Diffusion Models*, 2021).
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# **Exercise 2.3 (2 points).** Write the posterior $\eqref{eq:ddpm-7}$. `betas` is a tensor of length $T$ holding
# $\beta_1\dots\beta_T$; `t` counts from 1; the two points have any common shape.


# %% nbgrader={"grade": false, "grade_id": "posterior", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def posterior_of(x0, xt, t, betas):
    """Mean and variance of q(x_{t-1} | x_t, x_0).  x0, xt: one shape; t: 1…T; betas: (T,)."""
    ### BEGIN SOLUTION
    kept = torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])
    b = betas[t - 1]
    mean = (kept[t - 1].sqrt() * b * x0 + (1 - b).sqrt() * (1 - kept[t - 1]) * xt) / (
        1 - kept[t]
    )
    return mean, (1 - kept[t - 1]) / (1 - kept[t]) * b
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "posterior_test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
mean, variance = posterior_of(
    torch.tensor(1.0), torch.tensor(0.0), 2, torch.tensor([0.5, 0.5])
)
# by hand: ᾱ_1 = 1/2, ᾱ_2 = 1/4
assert abs(mean - 0.4714) < 1e-3 and abs(variance - 1 / 3) < 1e-6
### BEGIN HIDDEN TESTS
point = torch.randn(3, 2, generator=rng(30), dtype=double)
for k in (1, 2, 500, 1000):
    mean, variance = posterior_of(point, -point, k, md.linear_betas(1000))
    expected, width = process.q_posterior(point, -point, torch.full((3,), k - 1))
    # the mean, against the library
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-12)
    # the variance, likewise
    torch.testing.assert_close(
        torch.as_tensor(variance, dtype=double).expand(3, 2), width, rtol=1e-9, atol=1e-15
    )
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 2.4 (3 points).** Write one step of Algorithm 2 as the official code does it: from the network's noise to
# $\hat{\mathbf x}_0$, clip it, take the posterior mean, add noise with variance $\beta_t$, but not at $t=1$.


# %% nbgrader={"grade": false, "grade_id": "one_step", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def one_step(xt, eps, t, z, betas):
    """x_{t-1}.  xt, eps, z: tensors of one shape; t: int in 1…T; betas: (T,)."""
    ### BEGIN SOLUTION
    kept = torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])
    b = betas[t - 1]
    x0_hat = ((xt - (1 - kept[t]).sqrt() * eps) / kept[t].sqrt()).clamp(-1, 1)
    mean = (kept[t - 1].sqrt() * b * x0_hat + (1 - b).sqrt() * (1 - kept[t - 1]) * xt) / (
        1 - kept[t]
    )
    return mean + b.sqrt() * z if t > 1 else mean
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "one_step_test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
ones = torch.ones(4, dtype=double)
# t = 1 adds no noise
assert torch.equal(one_step(0 * ones, 0 * ones, 1, 9 * ones, md.linear_betas(1000)), 0 * ones)
### BEGIN HIDDEN TESTS
g30 = rng(31)
xt, eps, z = (torch.randn(6, 3, generator=g30, dtype=double) for _ in range(3))
for k in (1, 2, 400, 1000):
    kernel = process.reverse(lambda x, t: eps, xt, torch.full((6,), k - 1), clip=True)
    expected = kernel.mean + (beta[k].sqrt() * z if k > 1 else 0)
    # the library's clipped step, at t = 1, 2, 400 and 1000
    torch.testing.assert_close(
        one_step(xt, eps, k, z, md.linear_betas(1000)), expected, rtol=1e-9, atol=1e-12
    )
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 2.5 (3 points).** The network's noise, turned into three of the others of section 2.9. Return a
# dictionary with the keys `x0`, `v` and `score`.


# %% nbgrader={"grade": false, "grade_id": "four_names", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def four_names(eps, xt, kept):
    """eps, xt: tensors of one shape; kept: the number ᾱ_t."""
    ### BEGIN SOLUTION
    signal, sigma = kept**0.5, (1 - kept) ** 0.5
    x0 = (xt - sigma * eps) / signal
    return {"x0": x0, "v": signal * eps - sigma * x0, "score": -eps / sigma}
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "four_names_test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# by hand: signal 0.8, noise 0.6
names = four_names(
    torch.tensor([0.6], dtype=double), torch.tensor([0.98], dtype=double), 0.64
)
assert abs(names["x0"] - 0.775) < 1e-12 and abs(names["score"] + 1) < 1e-12
### BEGIN HIDDEN TESTS
clean, dirt = (torch.randn(5, 2, generator=rng(k), dtype=double) for k in (32, 33))
for kept in (0.999, 0.5, 0.001):
    noisy = kept**0.5 * clean + (1 - kept) ** 0.5 * dirt
    names = four_names(dirt, noisy, kept)
    # x0: the picture that the noise was put on
    torch.testing.assert_close(names["x0"], clean, rtol=1e-7, atol=1e-9)
    # v, by its definition
    torch.testing.assert_close(
        names["v"], kept**0.5 * dirt - (1 - kept) ** 0.5 * clean, rtol=1e-7, atol=1e-9
    )
    # Tweedie
    torch.testing.assert_close(
        (noisy + (1 - kept) * names["score"]) / kept**0.5, clean, rtol=1e-7, atol=1e-9
    )
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 2.6 (4 points, an experiment).** How should the noise of the first step be chosen? Take the perfect
# network for independent pixels of section 2.15 and compute its bound for linear schedules whose first standard
# deviation $\sqrt{\beta_1}$ runs from a tenth of half a bin to four times half a bin, with the last $\beta$
# unchanged, and for both variances. Plot the bits per pixel. Where are the minima, and why do the two curves differ
# on the left and agree on the right? Then say what would change for a network that is not perfect.

# %% nbgrader={"grade": true, "grade_id": "first_step", "locked": false, "points": 2, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell", "nbval-ignore-output"]
### BEGIN SOLUTION
pixels = md.digits("train").pixels.flatten(1)
tally = torch.stack([(pixels == k).sum(0) for k in range(17)], 1).double() + 0.5
log_share = (tally / tally.sum(1, keepdim=True)).log()
values17 = 2 * torch.arange(17, dtype=double) / 16 - 1
unseen = md.digits("test").x.double()[:60]
factors = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0)
for variance in ("large", "small"):
    found = []
    for factor in factors:
        betas = md.linear_betas(1000, first=(factor / 16) ** 2, last=0.02)
        chain = md.GaussianDiffusion(betas, variance=variance, levels=17)

        def pixel_eps(x, t, chain=chain):
            ab = chain.alpha_bar[t.long()].reshape(-1, 1, 1)
            value = x.flatten(1)[:, :, None]
            fit = log_share - (value - ab.sqrt() * values17) ** 2 / (2 * (1 - ab))
            x0_hat = (fit.softmax(2) * values17).sum(2)
            return (
                (value[..., 0] - ab[..., 0].sqrt() * x0_hat) / (1 - ab[..., 0]).sqrt()
            ).reshape(x.shape)

        found.append(md.likelihood_bound(chain, pixel_eps, unseen, rng(34), count=60).total)
    plt.semilogx(factors, found, marker="o", label=f"{variance} variance")
    print(f"{variance} variance: " + "  ".join(f"{b:.2f}" for b in found))
plt.xlabel("first standard deviation, in half bins")
plt.ylabel("bits per pixel")
plt.title("A small first step is cheap only with the small variance")
plt.legend()
plt.show()
### END SOLUTION

# %% [markdown] nbgrader={"grade": true, "grade_id": "first_step_why", "locked": false, "points": 2, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# With the large variance the minimum lies between half and the whole of half a bin; with the small one, at the
# smallest first step. On the left the two differ by the constant $C$ of (8): where $\hat x_0$ is certain, the true
# undoing has variance $\tilde\beta_t$, and $\sigma_t^2=\beta_t$ pays for the difference, which is largest in the
# first steps of a schedule that begins with little noise. On the right both decoders are Gaussians several bins wide,
# which pay for every bin under them that is not the right one, although finer steps could have told which it is. (At
# four half bins the schedule even falls.) A network that is not perfect fails to round at small noise; for it the
# left side is high under either variance, as section 2.15 showed.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# ## 2.21 Summary
#
# A chain of a thousand small noisy steps is undone by a chain of Gaussians; the likelihood bound compares each
# undoing with one that knows the answer, and turns training into a regression. Asked for the noise and weighted
# equally over the steps, a network spends its effort where pictures take shape, and draws well; asked for the mean
# under the bound's weights, it learns to copy its input. The bits say the opposite of the eye: they are lost in the
# first steps, on differences that nobody sees.
#
# Symbols that stay: $\beta_t,\alpha_t,\bar\alpha_t$; $q(\mathbf x_t\mid\mathbf x_0)$;
# $\tilde{\boldsymbol\mu}_t,\tilde\beta_t$; $\boldsymbol\epsilon_\theta$, $\hat{\mathbf x}_0$ and the score, which are
# one thing; $L_T,L_{t-1},L_0$; $L_{\mathrm{simple}}$.
#
# The gap: a thousand network calls for one picture, a variance chosen by hand, a schedule nobody derived, and a
# likelihood that lags behind. The next papers take these up one by one.
#
# **References.** Ho, Jain, Abbeel, *Denoising Diffusion Probabilistic Models*, 2020: equations (1)–(26), Algorithms
# 1–4, Tables 1, 2 and 4. Sohl-Dickstein et al., *Deep Unsupervised Learning using Nonequilibrium Thermodynamics*,
# 2015: the chain and the bound. Vincent, *A Connection Between Score Matching and Denoising Autoencoders*, 2011:
# section 2.9. Robbins, *An Empirical Bayes Approach to Statistics*, 1956, and Efron, *Tweedie's Formula and Selection
# Bias*, 2011: the lemma. Salimans and Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, 2022:
# $\mathbf v$. The official code's clipping, its variance at the first step and its tanh are in its
# `diffusion_utils_2.py` and `utils.py`.
