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
# # 03 · DDIM and stochastic differential equations
#
# A thousand network calls for one digit, and each call for nothing but a little less noise. The chain of chapter 02
# draws well, but it walks slowly, it never takes the same way twice, and of its likelihood we know only a bound.
# **Must the way back be random, must it be long, and what does the network know that we have not asked it yet?**
#
# Two papers answered within two months of each other in the autumn of 2020. Jiaming Song, Meng and Ermon (DDIM) found
# that the network of chapter 02 was trained for a whole family of chains at once, among them one that uses no noise
# at all and needs ten or twenty steps. Yang Song and others (we write SDE) found what such chains become when their
# steps are small: a stochastic differential equation, its reversal, and an ordinary differential equation beside it
# that moves the same densities without any randomness.
#
# At the end of this chapter you will be able to draw digits in ten network calls from the model of chapter 02 without
# training anything, turn a digit into its one code and back, walk from one digit to another through codes, derive the
# reverse of a diffusion from its density alone, and compute a likelihood itself where so far there was a bound.
#
# You need chapters 00 (conditioning of Gaussians, the Fokker–Planck equation and the probability flow in one
# dimension, Euler's and Heun's methods) and 02. The cells take about a minute and a half of one processor core;
# reading takes an afternoon. Two papers mean two alphabets, and one letter of DDIM's is a trap:
#
# | DDIM | SDE | meaning | here, in code |
# |---|---|---|---|
# | $\alpha_t$ **(!)** | $\alpha_i=\prod_{j\le i}(1-\beta_j)$ | DDPM's $\bar\alpha_t$: what $t$ steps keep of the signal's power | `alpha_bar[t]` |
# | $\alpha_t/\alpha_{t-1}$ | $1-\beta_i$ | DDPM's $\alpha_t$, what one step keeps | `alpha_bar[t] / alpha_bar[t - 1]` |
# | $\epsilon_\theta^{(t)}(x_t)$ | $-\sqrt{1-\alpha_i}\,s_\theta(x_i,i)$ | the network's guess of the noise | `net(xt, t)` |
# | $f_\theta^{(t)}(x_t)$ | | the guess of the data, $\hat x_0$ | `x0_hat` |
# | $\sigma_t$; $\eta$ | | standard deviation of a step back; its share of the posterior's | `sigma`; `eta` |
# | $\tau_1<\dots<\tau_S$ | | the steps that are kept | `steps` |
# | | $s_\theta(x,t)\approx\nabla_x\log p_t(x)$ | the score | `score` |
# | $\sigma$ | $\sigma_i$, $\sigma(t)$ | **noise level**: deviation of the noise on data that are not shrunk | `sigma` |
# | | $f(x,t)$, $g(t)$, $w$ | drift, diffusion coefficient, Wiener process | `path.f`, `path.g` |
#
# DDIM writes $\alpha_t$ for what DDPM, and this book, call $\bar\alpha_t$, and so does the beginning of SDE. We keep
# $\bar\alpha_t$ everywhere, also inside their equations. Steps count from 1, with $\bar\alpha_0=1$, as in chapter 02;
# the library's `t` is our `t - 1`. Plain $x$ (sections 3.1–3.12) and bold $\mathbf x$ (from 3.13 on, as SDE prints
# it) mean the same vector. Noise of mean 0 and variance 1 is $\epsilon$, $n$ or $z$, as the papers have it;
# $\epsilon$ before a slope, in sections 3.2 and 3.20, is the length of a step.

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
double = torch.float64


def rng(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## 3.1 The gap
#
# Start the chain of chapter 02 five times from the very same $x_T$. What comes out?

# %% tags=["nbval-ignore-output"]
model, description = md.load("digits")
start = md.per_image_noise([4, 7, 11, 12], (1, 8, 8))(0)
rows = [
    md.ancestral(model.process, model.net, start, md.batch_noise(rng(k), 4, (1, 8, 8)))
    for k in range(5)
]
fig, ax = plt.subplots(figsize=(5.2, 4.4))
plots.show_grid(
    torch.stack(rows, 1).flatten(0, 1),
    columns=5,
    title="The same $x_T$ in each row: it decides next to nothing",
    ax=ax,
    row_labels=[f"$x_T$ no. {k}" for k in range(1, 5)],
    column_labels=[f"noise {k}" for k in range(1, 6)],
)
plt.show()
apart = torch.stack(rows).std(0).mean().item()
spread = md.digits().x.std(0).mean().item()
print(
    f"spread of a pixel among digits from one x_T: {apart:.2f}, among all training digits: {spread:.2f}"
)

# %%
assert apart > 0.8 * spread

# %% [markdown]
# Different digits. Nearly all of what a picture will be is decided by the noise that is added on the way, a thousand
# times sixty-four numbers, and so there is no code of a digit that one could keep, compare or change a little. Then
# there is the price: each column cost a thousand calls of the network, one after the other, and no parallel machine
# makes a sequence shorter. And we know from chapter 02 that the bits reported there are an upper bound; how far above
# the truth it lies, the bound does not say.
#
# All three have one cure. It begins with a question that looks unrelated: which single function must one know of a
# density in order to sample from it?
#
# ## 3.2 The slope is enough
#
# A density is a function $p(x)\ge0$ whose integral is 1, and the integral is the trouble: a network can be any
# positive function, but nobody can integrate it over sixty-four dimensions. Its logarithm's slope, the **score**
# $\nabla_x\log p(x)$, does not know the trouble. Whatever number $Z$ the density is divided by,
# $\nabla\log(p/Z)=\nabla\log p$, so any vector field that a network can produce may be tried as a score.
#
# Is the slope enough to draw samples? **Langevin dynamics** says yes: walk uphill a little, add noise, repeat, for
# $m=1,2,\dots$ (the paper prints it with the network's slope in place of the true one),
#
# $$ x^{m}=x^{m-1}+\epsilon\,\nabla_x\log p\big(x^{m-1}\big)+\sqrt{2\epsilon}\;z^{m},\quad z^m\sim\mathcal N(0,I)
#    \tag{SDE 2}\label{eq:sde-2} $$
#
# Is $p$ at rest under this walk? Suppose that $x$ is distributed as $p$, and ask how the mean of any smooth and
# bounded function $\varphi$ changes in one step. **Taylor's expansion** to first order in $\epsilon$, in one
# dimension: the drift moves $\varphi$ by $\epsilon\,\varphi'\,(\log p)'$, the noise has mean zero and its square has
# mean $2\epsilon$, so it contributes $\tfrac12\varphi''\cdot2\epsilon$. With $p\,(\log p)'=p'$,
#
# $$ \begin{aligned} \mathbb E[\varphi(x^{m})]-\mathbb E[\varphi(x^{m-1})]
#    &=\epsilon\int\big(\varphi'\,p'+\varphi''\,p\big)\,dx+O(\epsilon^2)\\
#    &=\epsilon\int\big(\varphi'\,p\big)'\,dx+O(\epsilon^2)=O(\epsilon^2). \end{aligned} \tag{3.1}\label{eq:3-1} $$
#
# The **integral of a derivative** is what the function is at the ends, where $p$ is zero. No mean of any function
# moves, so the density stays where it is. What remains is of order $\epsilon^2$ in a step, and so of order $\epsilon$
# after the $1/\epsilon$ steps in which the walk forgets where it began: small steps, small error.
#
# And a walk that begins elsewhere, with another density $\rho$? The same expansion with $\rho$ in the place of $p$,
# **integrated by parts**, says that a step adds $-\epsilon\,(\rho\,\ell)'$ to $\rho$, where
# $\ell=(\log p)'-(\log\rho)'$ is the difference of the slopes. Put $\varphi=\log(\rho/p)$, and the divergence
# $D_{\mathrm{KL}}(\rho\,\|\,p)$ changes by $\epsilon\int\rho\,\ell\,\varphi'\,dx=-\epsilon\int\rho\,\ell^2\,dx$: it
# falls until the slopes agree, and two densities with the same slope everywhere are the same.
#
# On a Gaussian the error of finite steps is known exactly. The score of $\mathcal N(0,1)$ is $-x$, the step is
# $x\leftarrow(1-\epsilon)x+\sqrt{2\epsilon}z$, and its stationary variance $v$ solves $v=(1-\epsilon)^2v+2\epsilon$,
# so that $v=1/(1-\epsilon/2)$.

# %%
# check: SDE 2, 3.1
# (3.1) on a mixture: the change of several means in one step, by quadrature, falls as eps²
grid = torch.linspace(-12, 12, 24_001, dtype=double)
dx = grid[1] - grid[0]
line = md.Mixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.5], [1.0]]), std=0.8)
p = line.log_prob(grid[:, None]).exp()
slope = line.score(grid[:, None])[:, 0]
nodes = torch.linspace(-8, 8, 321, dtype=double)
weights = torch.exp(-(nodes**2) / 2)
weights = weights / weights.sum()
coarse = slice(None, None, 10)
for phi in (torch.cos, lambda x: torch.exp(-((x - 1) ** 2)), lambda x: torch.sin(2 * x)):
    moved = []
    for eps in (0.02, 0.01):
        after = (grid + eps * slope)[coarse, None] + math.sqrt(2 * eps) * nodes
        change = (phi(after) * weights).sum(1) - phi(grid[coarse])
        moved.append((p[coarse] * change).sum() * 10 * dx)
    assert abs(moved[1]) < 1e-3 and 3.5 < moved[0] / moved[1] < 4.5
    # without the factor 2 under the root the change is of first order
    wrong = (grid + 0.01 * slope)[coarse, None] + math.sqrt(0.01) * nodes
    change = (phi(wrong) * weights).sum(1) - phi(grid[coarse])
    assert abs((p[coarse] * change).sum() * 10 * dx) > 5 * abs(moved[1])

# from N(0.5, 1.2²) the divergence falls by eps ∫ρ ℓ² in a step, up to a rest that halves with eps
place = torch.linspace(-9, 9, 1801, dtype=double)
log_p, ascent = line.log_prob(place[:, None]), line.score(place[:, None])[:, 0]
rho = torch.exp(-((place - 0.5) ** 2) / (2 * 1.2**2))
rho = rho / rho.sum()
divergence_from_p = lambda rho: (rho * (rho.clamp(min=1e-300).log() - log_p)).sum()
rate = (rho * (ascent + (place - 0.5) / 1.2**2) ** 2).sum()
rest = []
for eps in (0.02, 0.01):
    step = torch.exp(-((place - (place + eps * ascent)[:, None]) ** 2) / (4 * eps))
    after = rho @ (step / step.sum(1, keepdim=True))
    rest.append(rate - (divergence_from_p(rho) - divergence_from_p(after)) / eps)
assert 0 < rest[1] < 0.05 * rate and 1.8 < rest[0] / rest[1] < 2.2

# (SDE 2) on N(0, 1): the library's walk has the stationary variance 1 / (1 - eps/2)
eps, n = 0.2, 40_000
x = md.langevin(
    lambda x: -x, torch.zeros(n, 1, dtype=double), eps, 60, md.batch_noise(rng(0), n, (1,))
)
expected = 1 / (1 - eps / 2)
assert abs(x.var() - expected) < 4 * expected * math.sqrt(2 / n)
print(
    f"variance after 60 steps of {eps}: {x.var():.3f}, stationary {expected:.3f}, the density's 1"
)

# %% [markdown]
# Texts differ in a factor here. Some write $\tfrac\epsilon2\nabla\log p$ and $\sqrt\epsilon\,z$, Song and Ermon's
# paper of 2019 among them; that is the same walk with an $\epsilon$ twice as large.
#
# ## 3.3 Learning the slope of a density that nobody knows
#
# We would like to minimise $\mathbb E_p\|s_\theta(x)-\nabla\log p(x)\|^2$, and cannot, because the target is what we
# are looking for. Vincent's answer of 2011 is to blur the data first. Let $\tilde x=x+\sigma n$ with normal $n$, so
# that $q(\tilde x\mid x)=\mathcal N(\tilde x;x,\sigma^2I)$ and the blurred density is $q_\sigma(\tilde x)=\int
# q(\tilde x\mid x)\,p(x)\,dx$. Its score is unknown too, but **expand the square**:
#
# $$ \mathbb E\|s_\theta-\nabla\log q_\sigma\|^2=\mathbb E\|s_\theta\|^2
#    -2\,\mathbb E\big[s_\theta\cdot\nabla\log q_\sigma\big]+\text{const} $$
#
# and only the middle term contains the unknown together with $\theta$. Under its integral
# $q_\sigma\nabla\log q_\sigma=\nabla q_\sigma$, the **derivative goes under the integral** over $x$, and there
# $\nabla q(\tilde x\mid x)=q(\tilde x\mid x)\,\nabla\log q(\tilde x\mid x)$ again:
#
# $$ \begin{aligned} \mathbb E_{\tilde x}\big[s_\theta\cdot\nabla\log q_\sigma(\tilde x)\big]
#   &=\int s_\theta(\tilde x)\cdot\nabla_{\tilde x}\!\int q(\tilde x\mid x)\,p(x)\,dx\;d\tilde x\\
#   &=\mathbb E_{x,\tilde x}\big[s_\theta(\tilde x)\cdot\nabla_{\tilde x}\log q(\tilde x\mid x)\big].
#   \end{aligned} \tag{3.2}\label{eq:3-2} $$
#
# So the unknown slope may be replaced by the slope of one Gaussian about one example, $\nabla_{\tilde x}\log q(\tilde
# x\mid x)=-(\tilde x-x)/\sigma^2=-n/\sigma$, and the loss changes only by a number that no $\theta$ moves. That is
# **denoising score matching**. Song and Ermon trained one network for a list of blurs $\sigma_1<\dots<\sigma_N$ at
# once (NCSN, 2019), each weighted with its own $\sigma_i^2$:
#
# $$ \begin{aligned} \theta^*=\arg\min_\theta\sum_{i=1}^N\sigma_i^2\;&\mathbb E_{p(x)}\,
#    \mathbb E_{q_{\sigma_i}(\tilde x\mid x)}\\
#    &\big\|s_\theta(\tilde x,\sigma_i)-\nabla_{\tilde x}\log q_{\sigma_i}(\tilde x\mid x)\big\|^2
#    \end{aligned} \tag{SDE 1}\label{eq:sde-1} $$
#
# The weight is what makes the terms alike. Multiplied into the square it turns the error into
# $\|\sigma_is_\theta+n\|^2$: with $\epsilon_\theta=-\sigma_is_\theta$ that is the question of chapter 02, which noise
# was added, and the target $n$ has the same size at every level. Without it a level with $\sigma=0.01$ would outweigh
# one with $\sigma=1$ ten-thousandfold.

# %%
# check: 3.2, SDE 1
# both losses of two arbitrary functions s, by quadrature over x and n on the mixture blurred by sigma
sigma = 0.6
q = line.log_prob(grid[:, None], sigma=sigma).exp()
q_slope = line.score(grid[:, None], sigma=sigma)[:, 0]
x, noise = torch.meshgrid(grid[::20], nodes, indexing="ij")
joint = line.log_prob(grid[::20, None]).exp()[:, None] * weights * dx * 20
gaps = []
for s in (torch.tanh, lambda x: -0.4 * x + 0.3):
    explicit = (q * (s(grid) - q_slope) ** 2).sum() * dx
    denoising = (joint * (s(x + sigma * noise) + noise / sigma) ** 2).sum()
    gaps.append(denoising - explicit)
torch.testing.assert_close(gaps[0], gaps[1], rtol=1e-8, atol=0)
blurred = x + sigma * noise
exact_score = line.score(blurred.reshape(-1, 1), sigma=sigma).reshape(x.shape)
best = (joint * (exact_score + noise / sigma) ** 2).sum()
# what is left at the optimum is that number, and nothing else is as good
torch.testing.assert_close(best, gaps[0], rtol=1e-7, atol=0)

# the library's objective is the weighted form, and its weight makes all levels alike
levels = torch.tensor([0.1, 0.6, 3.0], dtype=double)
x0, n = torch.full((3, 1), 0.4, dtype=double), torch.full((3, 1), -1.3, dtype=double)
wrong_by = 0.5
net = lambda x, t: -n / t[:, None] + wrong_by / t[:, None]
loss = md.ScoreMatching(md.EDMPath()).loss(net, x0, levels, n)["loss"]
naive = levels**2 * (net(x0 + levels[:, None] * n, levels) + n / levels[:, None])[:, 0] ** 2
torch.testing.assert_close(loss, naive)
torch.testing.assert_close(loss, torch.full_like(loss, wrong_by**2))
print(f"denoising minus explicit loss: {gaps[0]:.6f} and {gaps[1]:.6f}, the same for any s")

# %% [markdown]
# What does the best network answer? **The minimiser of a mean square is the conditional mean** of its target:
# $s(\tilde x)=-\mathbb E[n\mid\tilde x]/\sigma=(\mathbb E[x\mid\tilde x]-\tilde x)/\sigma^2$. This is Tweedie's lemma
# of section 2.9, found once more: the slope of the blurred density points from where we are to where the data are, on
# average. Score, noise and clean data are one quantity with three names, and from here on we shall use whichever is
# shortest.
#
# ## 3.4 One blur is not enough
#
# With the score in hand, will Langevin's walk draw good samples? Try it where the score is exact: two islands, one
# with a fifth of the probability, the other with the rest, too far apart to walk between them.

# %%
islands = md.Mixture(
    torch.tensor([0.2, 0.8]), torch.tensor([[-4.0, 0.0], [4.0, 0.0]]), std=0.6
)
n = 2000
begin = 3 * torch.randn(n, 2, generator=rng(1), dtype=double)
walked = md.langevin(islands.score, begin, 0.02, 1000, md.batch_noise(rng(2), n, (2,)))
left = (walked[:, 0] < 0).double().mean().item()
print(f"share of walkers on the left island: {left:.2f}; probability there: 0.20")
# half of them began on that side, and hardly any crosses
assert 0.4 < left < 0.6
assert ((walked[:, 0] < 0) == (begin[:, 0] < 0)).double().mean() > 0.97

# %% [markdown]
# Each walker climbs the island that is nearer and stays. The share on the left tells where the walkers began, not how
# probable the island is, and no better score would change it: near the left island
# $\log(0.2\,p_1+0.8\,p_2)\approx\log0.2+\log p_1$, and the slope forgets the constant $\log0.2$. The walk would cross
# in the end, but the valley between the islands is deep, and a walker climbs it only by a long run of lucky noise.
#
# Blur mends it. Under a blur of $\sigma=4$ the islands are one hill, leaning to the right as it should. **Anneal**:
# walk at the widest blur first, then at narrower and narrower ones, each time beginning where the last walk ended,
# with a step in proportion to $\sigma^2$. The weights are settled while the hill is one, and then kept.

# %%
sigmas = torch.logspace(math.log10(8), math.log10(0.05), 20, dtype=double)


def exact(x, sigma):
    """The mean of x_0 given x = x_0 + sigma n, on the islands."""
    return islands.denoise(x, sigma=sigma)


annealed = md.annealed_langevin(
    exact, 8 * begin / 3, sigmas, md.batch_noise(rng(3), n, (2,)), step=0.1, n=50
)
left_annealed = (annealed[:, 0] < 0).double().mean().item()
# the line through both islands, where the slope changes its sign at every summit and valley: 3, blurred 1
across = torch.stack([torch.linspace(-9, 9, 1800), torch.zeros(1800)], 1).double()
turns = [
    int((islands.score(across, sigma=s)[:, 0].sign().diff().abs() == 2).sum()) for s in (0, 4)
]
assert turns == [3, 1]
error = math.sqrt(0.2 * 0.8 / n)
print(f"share on the left after annealing: {left_annealed:.3f} ± {error:.3f}")
assert abs(left_annealed - 0.2) < 4 * error

fig, axes = plt.subplots(1, 2, figsize=(6.4, 2.3), sharey=True)
for ax, points, share, name in (
    (axes[0], walked, left, "one level"),
    (axes[1], annealed, left_annealed, "twenty levels"),
):
    ax.scatter(*points.T, s=2, linewidths=0, color=plots.BLUE)
    ax.set(
        xlabel="$x_1$", xlim=(-7, 7), ylim=(-3, 3), title=f"{name}: {share:.0%} on the left"
    )
axes[0].set_ylabel("$x_2$")
plt.suptitle("Of the 20% on the left, only annealing knows", fontsize=10.5, fontweight="bold")
plt.show()

# %% [markdown]
# Both walks took a thousand steps. This is one reason why a diffusion has levels of noise: slopes are blind to what
# lies beyond a valley, and blurring fills valleys. The other is that a network can only learn a slope where there are
# data, and between the islands there are none; at the widest blur there are data everywhere.
#
# Now with a network in place of the exact score. It sees 200 examples at a time at random levels of the list and is
# trained on $\eqref{eq:sde-1}$; the answer is divided by $\sigma$, because we know that a score is of that size.

# %% tags=["nbval-ignore-output"]
with torch.random.fork_rng():
    torch.manual_seed(0)
    mlp = md.MLP(2, width=96)


def score_net(x, t):
    """The score at x and noise level t; the network sees x at unit size, and log t on a scale that its waves resolve."""
    return mlp(x / (16 + t[:, None] ** 2).sqrt(), 100 * t.log()) / t[:, None]


objective = md.ScoreMatching(md.EDMPath())
optimizer = torch.optim.Adam(mlp.parameters(), lr=2e-3)
generator, losses = rng(4), []
for step in range(1500):
    x0 = islands.sample(200, generator).float()
    t = sigmas[torch.randint(len(sigmas), (200,), generator=generator)].float()
    loss = objective.loss(score_net, x0, t, objective.draw_noise(x0, generator))[
        "loss"
    ].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = 2e-3 * (1 - step / 1500)


def learned(x, sigma):
    """x̂_0 from the trained score."""
    t = torch.full((len(x),), sigma)
    return x + sigma**2 * score_net(x.float(), t).to(x)


drawn = md.annealed_langevin(
    learned, 8 * begin / 3, sigmas, md.batch_noise(rng(3), n, (2,)), step=0.1, n=50
)
left_learned = (drawn[:, 0] < 0).double().mean().item()
seen, blur = islands.sample(n, rng(6)), torch.randn(n, 2, generator=rng(7), dtype=double)
wrong = {
    s: (learned(seen + s * blur, s) - exact(seen + s * blur, s))
    .square()
    .sum(1)
    .mean()
    .sqrt()
    .item()
    for s in (4.0, 1.0, 0.3)
}
print(f"share on the left from the trained score: {left_learned:.3f}")
print(
    "error of x̂_0 on blurred data:",
    ", ".join(f"{e:.2f} at σ = {s}" for s, e in wrong.items()),
)

# %%
assert abs(left_learned - 0.2) < 0.1 and max(wrong.values()) < 1

# %% [markdown]
# A small network after a few seconds of training guesses the clean data to within about the width of an island, 0.6,
# and with it the walk still puts roughly the right share on each.
#
# ## 3.5 The loss of chapter 02 is one of them
#
# DDPM shrinks its data while it adds noise. Its forward kernel has the slope $\nabla_{\tilde x}\log q(\tilde x\mid
# x)=-(\tilde x-\sqrt{\bar\alpha_i}\,x)/(1-\bar\alpha_i)=-\epsilon/\sqrt{1-\bar\alpha_i}$, so with the weight
# $1-\bar\alpha_i$, the variance of the noise once more, denoising score matching reads
#
# $$ \begin{aligned} \theta^*=\arg\min_\theta\sum_{i=1}^N(1-\bar\alpha_i)\;&\mathbb E_{p(x)}\,
#    \mathbb E_{q_{\bar\alpha_i}(\tilde x\mid x)}\\
#    &\big\|s_\theta(\tilde x,i)-\nabla_{\tilde x}\log q_{\bar\alpha_i}(\tilde x\mid x)\big\|^2.
#    \end{aligned} \tag{SDE 3}\label{eq:sde-3} $$
#
# **Substitute** $s_\theta=-\epsilon_\theta/\sqrt{1-\bar\alpha_i}$. The weight cancels the denominators, and every
# term is $\|\epsilon-\epsilon_\theta\|^2$: $L_{\mathrm{simple}}$ of chapter 02, DDPM (14), which was found there by
# leaving out the weights of the bound, DDPM (12). Two roads, one from the likelihood and one from the slope, meet in
# the same line of code.
#
# The step back can be written with the score as well. In DDPM (11) the mean is
# $\frac{1}{\sqrt{1-\beta_i}}\big(x_i-\frac{\beta_i}{\sqrt{1-\bar\alpha_i}}\epsilon_\theta\big)$; **substitute**
# again:
#
# $$ x_{i-1}=\frac{1}{\sqrt{1-\beta_i}}\big(x_i+\beta_i\,s_\theta(x_i,i)\big)+\sqrt{\beta_i}\,z_i \tag{SDE 4}\label{eq:sde-4} $$
#
# Uphill by $\beta_i$ times the slope, plus noise of variance $\beta_i$: it looks like Langevin's step
# $\eqref{eq:sde-2}$, and it is not one. With that noise Langevin would go uphill by half as much, and keep a density
# where it is. This step carries $q_i$ to $q_{i-1}$: the other half of the slope takes away the noise of one step
# forward, and the factor $1/\sqrt{1-\beta_i}$ undoes its shrinking. Section 3.16 will show the equation of which it
# is one small step.

# %%
# check: SDE 3, SDE 4
process = md.GaussianDiffusion(md.linear_betas(1000), clip=False)
alpha_bar, beta = process.alpha_bar, process.betas  # index i - 1, as the library counts
t = torch.tensor([4, 300, 980])
x0, eps = torch.randn(2, 3, 2, generator=rng(5), dtype=double)
ab, b = alpha_bar[t][:, None], beta[t][:, None]
xt = process.q_sample(x0, t, eps)


def guess(x, t):
    """Any network: an answer that has nothing to do with the noise."""
    return torch.sin(3 * x) + 0.1


score = -guess(xt, t) / (1 - ab).sqrt()
# the slope of the forward kernel by differentiation, not by formula
moving = xt.clone().requires_grad_()
kernel = torch.distributions.Normal(ab.sqrt() * x0, (1 - ab).sqrt())
kernel_slope = torch.autograd.grad(kernel.log_prob(moving).sum(), moving)[0]
weighted = ((1 - ab) * (score - kernel_slope) ** 2).mean(1)
torch.testing.assert_close(weighted, process.loss(guess, x0, t, eps)["loss"])

mean = (xt + b * score) / (1 - b).sqrt()
reverse = process.reverse(guess, xt, t)
torch.testing.assert_close(reverse.mean, mean)
torch.testing.assert_close(reverse.scale, b.sqrt().expand_as(xt))
# and with the exact score of a mixture it carries q_i to q_{i-1}: mean and variance of x_{i-1}
i = 500
keep, now = alpha_bar[i - 1], alpha_bar[i]
y = grid[:, None]
density = line.log_prob(y, keep_scale := now.sqrt().item(), (1 - now).sqrt().item()).exp()
slope = line.score(y, keep_scale, (1 - now).sqrt().item())[:, 0]
step = (grid + beta[i] * slope) / (1 - beta[i]).sqrt()
first = (density * step).sum() * dx
second = (density * (step - first) ** 2).sum() * dx + beta[i]
m, v = 0.3 * -1.5 + 0.7 * 1.0, 0.8**2 + 0.21 * 2.5**2
torch.testing.assert_close(first, keep.sqrt() * m, rtol=1e-4, atol=0)
torch.testing.assert_close(second, keep * v + 1 - keep, rtol=1e-4, atol=0)
print(
    f"from q_{i + 1} to q_{i}: mean {first:.5f} = {keep.sqrt() * m:.5f}, variance {second:.5f}"
)

# %% [markdown]
# ## 3.6 What the training never asked
#
# Back to the chain. DDIM writes its forward process as a product of steps whose factors are ratios,
#
# $$ \begin{aligned} q(x_{1:T}\mid x_0)&=\prod_{t=1}^T q(x_t\mid x_{t-1}),\\
#    q(x_t\mid x_{t-1})&=\mathcal N\Big(\sqrt{\tfrac{\bar\alpha_t}{\bar\alpha_{t-1}}}\,x_{t-1},\
#    \Big(1-\tfrac{\bar\alpha_t}{\bar\alpha_{t-1}}\Big)I\Big)
#    \end{aligned} \tag{DDIM 3}\label{eq:ddim-3} $$
#
# which is DDPM (2) with $1-\beta_t$ spelled as a ratio $r_t=\bar\alpha_t/\bar\alpha_{t-1}$. **Induction**: the
# factors $\sqrt{r_t}$ of the signal telescope to $\sqrt{\bar\alpha_t}$, and the variance $1-\bar\alpha_{t-1}$ becomes
# $r_t(1-\bar\alpha_{t-1})+1-r_t=1-\bar\alpha_t$. So
#
# $$ x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\;\epsilon,\qquad\epsilon\sim\mathcal N(0,I). \tag{DDIM 4}\label{eq:ddim-4} $$
#
# And the network was trained on one thing only, a weighted sum over $t$ of how well it guesses that noise:
#
# $$ L_\gamma(\epsilon_\theta)=\sum_{t=1}^T\gamma_t\;\mathbb E_{x_0,\epsilon}\Big\|
#    \epsilon_\theta^{(t)}\big(\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\epsilon\big)-\epsilon\Big\|^2
#    \tag{DDIM 5}\label{eq:ddim-5} $$
#
# Look at what stands in it and what does not. Every term knows one $x_t$ and its $x_0$, through $\eqref{eq:ddim-4}$.
# No term knows two levels at once. How $x_t$ and $x_{t-1}$ hang together, the product $\eqref{eq:ddim-3}$ from which
# we derived everything in chapter 02, has left no trace in the loss. So the trained network cannot know it either,
# and would serve any other process just as well, **as long as that process has the same marginals** $q(x_t\mid x_0)$.

# %%
# check: DDIM 3, DDIM 4, DDIM 5
process = md.GaussianDiffusion(md.linear_betas(1000), clip=False)
alpha_bar = torch.cat([torch.ones(1, dtype=double), process.alpha_bar])  # alpha_bar[0] = 1
gain, variance = 1.0, 0.0
# x_t = gain x_0 + noise of this variance, one step of (DDIM 3) after the other
for t in range(1, 1001):
    ratio = alpha_bar[t] / alpha_bar[t - 1]
    gain, variance = ratio.sqrt() * gain, ratio * variance + (1 - ratio)
    if t in (1, 30, 1000):
        torch.testing.assert_close(gain, alpha_bar[t].sqrt(), rtol=1e-12, atol=0)
        torch.testing.assert_close(variance, 1 - alpha_bar[t], rtol=1e-10, atol=0)
x = torch.tensor([[0.7]], dtype=double)
kernel = process.q_step(x, torch.tensor([29]))
torch.testing.assert_close(kernel.mean, (alpha_bar[30] / alpha_bar[29]).sqrt() * x)
torch.testing.assert_close(kernel.variance, (1 - alpha_bar[30] / alpha_bar[29]).expand(1, 1))

# (DDIM 5) with gamma = 1 is L_simple: the mean over t of the library's loss, and only x_t and x_0 enter
x0, eps = torch.randn(2, 1000, 3, generator=rng(10), dtype=double)
net = lambda x, t: torch.cos(x) * (1 + t[:, None] / 1000)
t = torch.arange(1000)
xt = alpha_bar[1:, None].sqrt() * x0 + (1 - alpha_bar[1:, None]).sqrt() * eps
L = (net(xt, t) - eps).square().mean(1).sum()
torch.testing.assert_close(L, process.loss(net, x0, t, eps)["loss"].sum())

# %% [markdown]
# ## 3.7 A family with the same marginals
#
# How much freedom is there? Given $x_0$ and $x_t$, the noise that is in $x_t$ is known:
# $\epsilon=(x_t-\sqrt{\bar\alpha_t}x_0)/\sqrt{1-\bar\alpha_t}$. To make $x_{t-1}$ we need noise of variance
# $1-\bar\alpha_{t-1}$. We may take **some of the old noise and some fresh noise**, in any proportion as long as the
# variances add up. Let $\sigma_t^2$ be the variance of the fresh part. From the top of the chain down,
#
# $$ q_\sigma(x_{1:T}\mid x_0)=q_\sigma(x_T\mid x_0)\prod_{t=2}^Tq_\sigma(x_{t-1}\mid x_t,x_0)
#    \tag{DDIM 6}\label{eq:ddim-6} $$
#
# with $q_\sigma(x_T\mid x_0)=\mathcal N(\sqrt{\bar\alpha_T}x_0,(1-\bar\alpha_T)I)$ and
#
# $$ \begin{aligned} &q_\sigma(x_{t-1}\mid x_t,x_0)=\\
#    &\quad\mathcal N\Big(\sqrt{\bar\alpha_{t-1}}\,x_0+\sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;
#    \underbrace{\frac{x_t-\sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}}}_{\epsilon},\ \sigma_t^2I\Big).
#    \end{aligned} \tag{DDIM 7}\label{eq:ddim-7} $$
#
# The marginals are right by **induction** downwards. At $T$ they are right by definition. If $x_t$ given $x_0$ is
# $\eqref{eq:ddim-4}$, then the brace is a standard normal, and $x_{t-1}$ has mean $\sqrt{\bar\alpha_{t-1}}x_0$ and
# variance $(1-\bar\alpha_{t-1}-\sigma_t^2)+\sigma_t^2=1-\bar\alpha_{t-1}$, which is $\eqref{eq:ddim-4}$ one level
# down. Any $\sigma_t$ between 0 and $\sqrt{1-\bar\alpha_{t-1}}$ will do, another one at each level if we like.
#
# What does such a process look like forwards? **Bayes' rule** on $\eqref{eq:ddim-7}$ and two marginals,
#
# $$ q_\sigma(x_t\mid x_{t-1},x_0)=\frac{q_\sigma(x_{t-1}\mid x_t,x_0)\;q_\sigma(x_t\mid x_0)}{q_\sigma(x_{t-1}\mid x_0)}
#    \tag{DDIM 8}\label{eq:ddim-8} $$
#
# gives a Gaussian again, by chapter 00's **conditioning** (0.5) with $x_t$ as the unknown, seen through the slope
# $c=\sqrt{(1-\bar\alpha_{t-1}-\sigma_t^2)/(1-\bar\alpha_t)}$ with noise $\sigma_t^2$. The evidence has the variance
# $1-\bar\alpha_{t-1}$, so
#
# $$ \begin{aligned} \text{mean}&=\sqrt{\bar\alpha_t}\,x_0
#    +\frac{c\,(1-\bar\alpha_t)}{1-\bar\alpha_{t-1}}\,\big(x_{t-1}-\sqrt{\bar\alpha_{t-1}}\,x_0\big),\\
#    \text{variance}&=\frac{1-\bar\alpha_t}{1-\bar\alpha_{t-1}}\,\sigma_t^2. \end{aligned} \tag{3.3}\label{eq:3-3} $$
#
# In general $x_0$ does not cancel: the step forward remembers where the whole trajectory began. The process is **not
# a Markov chain**. It cancels where $c=\sqrt{\bar\alpha_t/\bar\alpha_{t-1}}\,(1-\bar\alpha_{t-1})/(1-\bar\alpha_t)$.
# **Solve for** $\sigma_t^2=1-\bar\alpha_{t-1}-c^2(1-\bar\alpha_t)$: there is one solution, $\tilde\beta_t$. With it
# $\eqref{eq:ddim-7}$ is the posterior DDPM (6), and the family contains the chain we know. At the other end,
# $\sigma_t=0$, the step forward has no variance either. Given $x_0$, one level then fixes all others.

# %%
# check: DDIM 6, DDIM 7, DDIM 8, 3.3
t, x0 = 400, 0.8
a, a_prev = alpha_bar[t], alpha_bar[t - 1]
beta_tilde = (1 - a_prev) / (1 - a) * (1 - a / a_prev)
normal = lambda m, v: torch.distributions.Normal(m, torch.as_tensor(v).sqrt())


def back(xt, sigma2):
    """(DDIM 7): mean of x_{t-1}."""
    return (
        a_prev.sqrt() * x0
        + (1 - a_prev - sigma2).sqrt() * (xt - a.sqrt() * x0) / (1 - a).sqrt()
    )


points = torch.linspace(-2, 2, 9, dtype=double)
now, before = torch.meshgrid(points, points, indexing="ij")
for share in (0.0001, 0.3, 1.0, 2.0):  # of the posterior's variance
    sigma2 = share * beta_tilde
    # marginalise (DDIM 7) over x_t on a fine grid: the marginal of (DDIM 6) one level down is (DDIM 4)
    grid = torch.linspace(-8, 8, 4001, dtype=double)
    top = normal(a.sqrt() * x0, 1 - a).log_prob(grid).exp() * (grid[1] - grid[0])
    mean = (top * back(grid, sigma2)).sum()
    spread = (top * (back(grid, sigma2) - mean) ** 2).sum() + sigma2
    torch.testing.assert_close(mean, a_prev.sqrt() * x0, rtol=1e-9, atol=0)
    torch.testing.assert_close(spread, 1 - a_prev, rtol=1e-9, atol=0)
    # (DDIM 8) as it stands, against (3.3)
    bayes = (
        normal(back(now, sigma2), sigma2).log_prob(before)
        + normal(a.sqrt() * x0, 1 - a).log_prob(now)
        - normal(a_prev.sqrt() * x0, 1 - a_prev).log_prob(before)
    )
    c = ((1 - a_prev - sigma2) / (1 - a)).sqrt()
    forward = a.sqrt() * x0 + c * (1 - a) / (1 - a_prev) * (before - a_prev.sqrt() * x0)
    expected = normal(forward, (1 - a) / (1 - a_prev) * sigma2).log_prob(now)
    torch.testing.assert_close(bayes, expected, rtol=1e-7, atol=1e-7)
    # the weight of x_0
    remembers = (a.sqrt() - c * (1 - a) / (1 - a_prev) * a_prev.sqrt()).item()
    # + 0 turns a rounded −0 into 0
    kept = round(remembers, 5) + 0.0
    print(f"fresh variance {share:6.4f} of β̃: the step forward keeps {kept:+.5f} x_0")
    assert (abs(remembers) < 1e-12) == (share == 1.0)
xt = torch.tensor([[0.3]], dtype=double)
mean, variance = process.q_posterior(torch.full_like(xt, x0), xt, torch.tensor([t - 1]))
torch.testing.assert_close(mean, back(xt, beta_tilde))
torch.testing.assert_close(variance.squeeze(), beta_tilde)

# %% [markdown]
# ## 3.8 One loss for the whole family
#
# To walk back we replace what we do not know. The network's guess of the noise gives a guess of the data, DDPM (15),
#
# $$ f_\theta^{(t)}(x_t)=\frac{x_t-\sqrt{1-\bar\alpha_t}\;\epsilon_\theta^{(t)}(x_t)}{\sqrt{\bar\alpha_t}}
#    \tag{DDIM 9}\label{eq:ddim-9} $$
#
# and the generative process is the family's own step with $f_\theta$ in the place of $x_0$:
#
# $$ p_\theta^{(t)}(x_{t-1}\mid x_t)=\begin{cases} \mathcal N\big(f_\theta^{(1)}(x_1),\ \sigma_1^2I\big) & t=1\\
#    q_\sigma\big(x_{t-1}\mid x_t,\,f_\theta^{(t)}(x_t)\big) & \text{otherwise.}\end{cases} \tag{DDIM 10}\label{eq:ddim-10} $$
#
# Is the network of chapter 02, trained for $\sigma_t^2=\tilde\beta_t$, a good one for the others? Each member of the
# family has its own bound on the likelihood,
#
# $$ J_\sigma(\epsilon_\theta)=\mathbb E_{q_\sigma}\big[\log q_\sigma(x_{1:T}\mid x_0)-\log p_\theta(x_{0:T})\big].
#    \tag{DDIM 11}\label{eq:ddim-11} $$
#
# Split both logarithms along $\eqref{eq:ddim-6}$ and $\eqref{eq:ddim-10}$. For $t\ge2$ the pair of factors is a
# **Kullback–Leibler divergence of two Gaussians of equal variance**, half the squared distance of their means over
# $\sigma_t^2$, and the means differ only where $x_0$ stands for $f_\theta$. In $\eqref{eq:ddim-7}$ the factor of
# $x_0$ is $c_t=\sqrt{\bar\alpha_{t-1}}-\sqrt{(1-\bar\alpha_{t-1}-\sigma_t^2)\,\bar\alpha_t/(1-\bar\alpha_t)}$, and by
# $\eqref{eq:ddim-9}$ $x_0-f_\theta=\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}\,(\epsilon_\theta-\epsilon)$. So
#
# $$ \begin{aligned} J_\sigma&=L_\gamma+\text{const},\\
#    \gamma_t&=\frac{c_t^2}{2\sigma_t^2}\,\frac{1-\bar\alpha_t}{\bar\alpha_t}\ \ (t\ge2),\qquad
#    \gamma_1=\frac{1}{2\sigma_1^2}\,\frac{1-\bar\alpha_1}{\bar\alpha_1}. \end{aligned} \tag{3.4}\label{eq:3-4} $$
#
# This is the paper's Theorem 1. Every member's bound is the same sum of the same errors; only the weights differ. And
# weights decide nothing where the network can answer each $t$ for itself: the best answer to every term,
# $\mathbb E[\epsilon\mid x_t]$, is then the best answer to any weighted sum. **One network is trained for all of
# them.** (A real network shares its parameters among all $t$, so the weights $\gamma_t$ do matter, as section 2.14
# measured.) For $\sigma_t^2=\tilde\beta_t$ the $\gamma_t$ are the weights of DDPM (12), which is a good test of the
# algebra. As $\sigma_t\to0$ they grow without limit, because a process without noise would have to be predicted
# exactly; the bound itself then says nothing any more, but the best network stays where it is.

# %%
# check: DDIM 9, DDIM 10, DDIM 11, 3.4
# a chain of four steps, one fixed x_0, two different networks: J by sampling, L_gamma with the weights above
T4, many = 4, 400_000
ab = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.05], dtype=double)
tilde = (1 - ab[:-1]) / (1 - ab[1:]) * (1 - ab[1:] / ab[:-1])
sigma2 = torch.cat([torch.zeros(1, dtype=double), 0.5 * tilde])
sigma2[1] = 0.02
y0 = 0.6
nets = [lambda x, t: 0.3 * x + 0.1 * t, lambda x, t: torch.sin(x)]
f = lambda net, x, t: (x - (1 - ab[t]).sqrt() * net(x, t)) / ab[t].sqrt()  # (DDIM 9)
step = lambda x0, x, t: (
    ab[t - 1].sqrt() * x0
    + (1 - ab[t - 1] - sigma2[t]).sqrt() * (x - ab[t].sqrt() * x0) / (1 - ab[t]).sqrt()
)
z = torch.randn(T4 + 1, many, generator=rng(11), dtype=double)
xs = {T4: ab[T4].sqrt() * y0 + (1 - ab[T4]).sqrt() * z[T4]}
for t in range(T4, 1, -1):
    xs[t - 1] = step(y0, xs[t], t) + sigma2[t].sqrt() * z[t - 1]
J = []
for net in nets:
    value = torch.zeros(many, dtype=double)
    for t in range(2, T4 + 1):
        value += normal(step(y0, xs[t], t), sigma2[t]).log_prob(xs[t - 1])
        value -= normal(step(f(net, xs[t], t), xs[t], t), sigma2[t]).log_prob(xs[t - 1])
    J.append(value - normal(f(net, xs[1], 1), sigma2[1]).log_prob(torch.tensor(y0)))
L = []
for net in nets:
    value = torch.zeros(many, dtype=double)
    for t in range(1, T4 + 1):
        c = (
            ab[t - 1].sqrt()
            - ((1 - ab[t - 1] - sigma2[t]) * ab[t] / (1 - ab[t])).clamp(min=0).sqrt()
        )
        gamma = (c**2 if t > 1 else 1) / (2 * sigma2[t]) * (1 - ab[t]) / ab[t]
        eps = (xs[t] - ab[t].sqrt() * y0) / (1 - ab[t]).sqrt()
        value += gamma * (net(xs[t], t) - eps) ** 2
    L.append(value)
difference = (J[0] - J[1]) - (L[0] - L[1])
error = difference.std() / math.sqrt(many)
print(
    f"J - J' = {(J[0] - J[1]).mean():.3f}, L - L' = {(L[0] - L[1]).mean():.3f} ± {error:.3f}"
)
assert abs(difference.mean()) < 4 * error < 0.02 * abs((L[0] - L[1]).mean())

t = torch.arange(2, 1001)  # with the posterior's variance gamma is the weight of (DDPM 12)
now, before = alpha_bar[t], alpha_bar[t - 1]
beta, s2 = process.betas[t - 1], process.beta_tilde[t - 1]
c = before.sqrt() - ((1 - before - s2) * now / (1 - now)).sqrt()
gamma = c**2 / (2 * s2) * (1 - now) / now
torch.testing.assert_close(
    gamma, beta**2 / (2 * s2 * (1 - beta) * (1 - now)), rtol=1e-8, atol=0
)

# %% [markdown]
# ## 3.9 The step
#
# Insert $\eqref{eq:ddim-9}$ into $\eqref{eq:ddim-10}$. What was "the noise in $x_t$" becomes the network's guess of
# it, and each step has three parts that can be read aloud:
#
# $$ \begin{aligned}
#    x_{t-1}=\sqrt{\bar\alpha_{t-1}}\,&\underbrace{\bigg(\frac{x_t-\sqrt{1-\bar\alpha_t}\,\epsilon_\theta}
#    {\sqrt{\bar\alpha_t}}\bigg)}_{\text{the data, as guessed}}\\
#    +\ &\underbrace{\sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\epsilon_\theta}_{\text{the old noise, as guessed}}
#    +\underbrace{\sigma_t\,z_t}_{\text{fresh noise}} \end{aligned} \tag{DDIM 12}\label{eq:ddim-12} $$
#
# One number $\eta$ goes from a process without noise to DDPM's. It scales the posterior's standard deviation, here
# for a chain of which only the levels $\tau_1<\dots<\tau_S$ are kept (next section):
#
# $$ \sigma_{\tau_i}(\eta)=\eta\,\sqrt{\frac{1-\bar\alpha_{\tau_{i-1}}}{1-\bar\alpha_{\tau_i}}}\;
#    \sqrt{1-\frac{\bar\alpha_{\tau_i}}{\bar\alpha_{\tau_{i-1}}}} \tag{DDIM 16}\label{eq:ddim-16} $$
#
# At $\eta=1$ with all levels kept the square is $\tilde\beta_t$, and the sampler is chapter 02's. At $\eta=0$ nothing
# is drawn after $x_T$: this is the **denoising diffusion implicit model**, DDIM.
#
# DDPM's other choice, $\sigma^2=\beta$, is larger than $\eta=1$ gives. The paper calls it
# $\hat\sigma=\sqrt{1-\bar\alpha_{\tau_i}/\bar\alpha_{\tau_{i-1}}}$ and puts it into its tables, and here one must be
# careful. Inside the root of $\eqref{eq:ddim-12}$ it would ask for more noise than $x_{t-1}$ may have: the radicand
# $1-\bar\alpha_{\tau_{i-1}}-\hat\sigma^2$ is negative in large steps (exercise 3.1). DDPM itself never did that. Its
# mean is the posterior's, so the mean keeps $\sigma(1)$, and only the fresh noise has the size $\hat\sigma$. Given
# $x_0$, each step then leaves more noise than $\eqref{eq:ddim-4}$ allows, and the process is no member of the family.
# Remember it when the table comes.

# %%
# check: DDIM 12, DDIM 16
torch.testing.assert_close(
    ((1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])) * (1 - alpha_bar[1:] / alpha_bar[:-1]),
    process.beta_tilde,
)


def ddim_naive(net, x, steps, eta, noise, larger=False):
    """(DDIM 12) and (DDIM 16) as printed; steps τ count from 1, and below τ_1 is the data, ᾱ = 1."""
    for i in range(len(steps) - 1, -1, -1):
        now, before = alpha_bar[steps[i]], alpha_bar[steps[i - 1] if i > 0 else 0]
        eps = net(x, torch.full((len(x),), steps[i] - 1.0, dtype=double))
        sigma_hat = (1 - now / before).sqrt()
        sigma = eta * ((1 - before) / (1 - now)).sqrt() * sigma_hat
        x0_hat = (x - (1 - now).sqrt() * eps) / now.sqrt()
        fresh = (sigma_hat if larger else sigma) * noise(len(steps) - i) if i > 0 else 0
        x = before.sqrt() * x0_hat + (1 - before - sigma**2).sqrt() * eps + fresh
    return x


net = lambda x, t: torch.sin(2 * x) * (0.5 + t[:, None] / 2000)
start = torch.randn(5, 2, generator=rng(12), dtype=double)
noise = md.per_image_noise(range(5), (2,))
tau = [1, 40, 200, 650, 1000]
for eta, larger in ((0.0, False), (0.4, False), (1.0, False), (1.0, True)):
    torch.testing.assert_close(
        md.ddim(process, net, start, noise, [s - 1 for s in tau], eta, larger),
        ddim_naive(net, start, tau, eta, noise, larger),
    )
# eta = 1 with every step is chapter 02's sampler with the posterior's variance, from the same noise
small = md.GaussianDiffusion(md.linear_betas(1000), variance="small", clip=False)
torch.testing.assert_close(
    md.ddim(process, net, start, noise, eta=1.0),
    md.ancestral(small, net, start, noise),
    atol=1e-8,
    rtol=0,
)
ten = [round(k) for k in torch.linspace(1, 1000, 10).tolist()]
before, now = alpha_bar[[0, *ten[:-1]]], alpha_bar[ten]
radicand = 1 - before - (1 - now / before)
print(f"with σ̂ inside the root {int((radicand[1:] < 0).sum())} of 9 radicands are negative")
assert (radicand[1:] < 0).any()

# %% [markdown]
# ## 3.10 Few steps, and the road they follow
#
# The theorem never used that levels are neighbours. Take any sub-sequence $\tau$ of the levels, build
# $\eqref{eq:ddim-6}$ on it, and let every level outside hang on $x_0$ alone: marginals and loss are as before (the
# paper's Appendix C). So the trained network serves a chain of $S=20$ levels as it serves the chain of a thousand.
# For $\eta=1$ this is DDPM with fewer steps and larger $\beta$. Nothing is approximated in the *process*. What
# suffers is $p_\theta$: a step back is a Gaussian, and the true step, over a large distance, is not.
#
# At $\eta=0$ a step has no distribution that could be of the wrong shape, and something else decides. Let
# $t-\Delta t$ be the kept level below $t$, and **divide** $\eqref{eq:ddim-12}$ with $\sigma=0$ by
# $\sqrt{\bar\alpha_{t-\Delta t}}$:
#
# $$ \frac{x_{t-\Delta t}}{\sqrt{\bar\alpha_{t-\Delta t}}}=\frac{x_t}{\sqrt{\bar\alpha_t}}
#    +\bigg(\sqrt{\frac{1-\bar\alpha_{t-\Delta t}}{\bar\alpha_{t-\Delta t}}}
#    -\sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}}\bigg)\,\epsilon_\theta^{(t)}(x_t) \tag{DDIM 13}\label{eq:ddim-13} $$
#
# **Name the quantities** that it wants named: $\bar x=x/\sqrt{\bar\alpha}$, the picture before it was shrunk, and
# $\sigma=\sqrt{(1-\bar\alpha)/\bar\alpha}$, its noise level. Then the step reads
# $\bar x_{\text{next}}=\bar x+(\sigma_{\text{next}}-\sigma)\,\epsilon_\theta$, and that is **Euler's step** for
#
# $$ d\bar x=\epsilon_\theta^{(t)}\Big(\frac{\bar x}{\sqrt{\sigma^2+1}}\Big)\,d\sigma. \tag{DDIM 14}\label{eq:ddim-14} $$
#
# A sampler without noise is the numerical solution of an ordinary differential equation, with the noise level as its
# time. The network is the velocity. More steps follow the same road more closely.
#
# Which road is it? With the exact answer, $\epsilon=-\sigma\nabla\log p_\sigma(\bar x)$ by **Tweedie**, where
# $p_\sigma$ is the density of $x_0+\sigma n$. **Substitute**, and let $\sigma$ depend on any time $t$:
#
# $$ d\bar x=-\tfrac12\,\frac{d\sigma^2(t)}{dt}\;\nabla_{\bar x}\log p_t(\bar x)\,dt \tag{DDIM 15}\label{eq:ddim-15} $$
#
# This is the probability flow of chapter 00 (0.19) for data that are blurred but not shrunk, the *variance
# exploding* process of section 3.14. As equations $\eqref{eq:ddim-14}$ and $\eqref{eq:ddim-15}$ are the same; as
# samplers they are not, because Euler's step in $d\sigma$ and Euler's step in $dt$ differ at any finite size (section
# 3.21). For a Gaussian the road is known: with data $\mathcal N(0,s^2)$ the score is $-\bar x/(s^2+\sigma^2)$, so
# $d\bar x/\bar x=\sigma\,d\sigma/(s^2+\sigma^2)$, and **separation of variables** gives
# $\bar x(\sigma)=\bar x(\sigma_0)\sqrt{(s^2+\sigma^2)/(s^2+\sigma_0^2)}$.

# %%
# check: DDIM 13, DDIM 14, DDIM 15
s = 0.5
level = lambda t: process.sigma[t.long()][:, None].to(double)


def exact_eps(x, t):
    """E[noise | x_t] for data N(0, s²)."""
    sigma = level(t)
    return x * (1 + sigma**2).sqrt() * sigma / (s**2 + sigma**2)


silent = lambda step: torch.zeros_like(start)
end = start / alpha_bar[1000].sqrt() * (s**2 / (s**2 + process.sigma[-1] ** 2)).sqrt()
errors = []
for n in (250, 500, 1000):
    x = start / alpha_bar[1000].sqrt()  # (DDIM 13) and (DDIM 14) by hand
    kept = md.subsequence(1000, n, "trailing")
    sigmas = torch.cat([process.sigma[kept].flip(0), torch.zeros(1, dtype=double)])
    for t, (now, after) in zip(reversed(kept), itertools.pairwise(sigmas), strict=True):
        at = torch.full((5,), t, dtype=double)
        x = x + (after - now) * exact_eps(x / (1 + now**2).sqrt(), at)
    torch.testing.assert_close(x, md.ddim(process, exact_eps, start, silent, kept))
    errors.append((x - end).abs().max().item())
orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
print(
    f"error {errors[0]:.4f}, {errors[1]:.4f}, {errors[2]:.4f}: of order {orders[0]:.2f}, {orders[1]:.2f}"
)
assert all(0.8 < order < 1.3 for order in orders)

# (DDIM 15): the same velocity from the score, with another time, sigma = t³
mixture = md.Mixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.5], [1.0]]), std=0.4)
at, time = torch.tensor([[0.4], [-2.0]], dtype=double), torch.tensor(1.1, dtype=double)
sigma, dsigma_dt, dsigma2_dt = time**3, 3 * time**2, 6 * time**5
by_score = -0.5 * dsigma2_dt * mixture.score(at, sigma=sigma.item())
by_noise = (at - mixture.denoise(at, sigma=sigma.item())) / sigma * dsigma_dt
torch.testing.assert_close(by_score, by_noise)

# %% [markdown]
# ## 3.11 Digits in few steps
#
# The model of chapter 02 as it is shipped, nothing trained anew. Below are the first two digits for each number of
# steps and kind of noise of the paper's table. (500 digits for each are drawn by `chapters/results/ddim_steps.py`,
# which takes longer than a chapter may.)

# %%
results = json.loads(Path("results/ddim_steps.json").read_text())
STEPS = (5, 10, 20, 50, 100, 1000)
KINDS = {"0": "$\\eta=0$", "0.5": "$\\eta=0.5$", "1": "$\\eta=1$", "larger": "$\\hat\\sigma$"}


def drawn(steps, kind, n=5):
    """The first digits of one cell of the stored table."""
    pixels = torch.tensor(
        results["samples"][f"{steps}, {kind}, uniform"][:n], dtype=torch.uint8
    )
    return md.encode(pixels.reshape(-1, 1, 8, 8), levels=17)


cells = [drawn(steps, kind, 2) for kind in KINDS for steps in STEPS]
fig, ax = plt.subplots(figsize=(6.4, 2.6))
plots.show_grid(
    torch.cat(cells),
    columns=2 * len(STEPS),
    title="Few steps: DDPM's larger noise leaves grain, no noise leaves none",
    ax=ax,
    row_labels=list(KINDS.values()),
    column_labels=[f"{steps} steps" for steps in STEPS],
)
plt.show()

# %% [markdown]
# What the eye sees has a number, the Fréchet distance of section 2.13, on features, between 500 digits and the 1,438
# that were trained on. The paper's Table 1, on CIFAR-10 and CelebA, makes two claims:
#
# $$ \begin{array}{l} \text{few steps: the smaller }\eta\text{, the better,}\\
#    \quad\text{and }\hat\sigma\text{ is far behind;}\\
#    \text{many steps: all come close, and }\hat\sigma\text{ is no worse.} \end{array}\tag{DDIM Table 1} $$
#
# The uniform sub-sequence of the paper's code keeps $0,\ T/S,\ 2T/S\dots$ in the library's counting and so never the
# last level; `trailing` keeps the last and not the first.

# %%
# check: DDIM Table 1
print(f"{'noise':<12}" + "".join(f"{S:>9}" for S in STEPS) + "   steps")
for kind, name in {"0": "η = 0", "0.2": "0.2", "0.5": "0.5", "1": "1", "larger": "σ̂"}.items():
    row = [results["distance"][f"{S}, {kind}, uniform"] for S in STEPS]
    print(f"{name:<12}" + "".join(f"{d:9.2f}" for d in row))
print(f"\nheld-out digits, n = 359: {results['held_out']:.2f}")
print(
    "σ̂ with the last level kept, at 5 and 10 steps: "
    + ", ".join(f"{results['distance'][f'{S}, larger, trailing']:.2f}" for S in (5, 10))
)
d = lambda S, kind: results["distance"][f"{S}, {kind}, uniform"]
# few steps: the less noise the better, and σ̂ far behind
assert d(5, "0") < d(5, "0.2") < d(5, "0.5") < d(5, "1") < d(5, "larger")
for S in (10, 20):
    assert abs(d(S, "0") - d(S, "0.2")) < 0.1 and d(S, "0") < d(S, "0.5") < d(S, "1")
    assert d(S, "larger") > 3 * d(S, "0")
for kind in KINDS:  # more steps help
    assert d(20, kind) < d(10, kind) < d(5, kind)
assert d(20, "1") < d(10, "0") + 0.01 < d(10, "1")
# many steps: all are close, and σ̂ is no worse
assert max(d(1000, kind) for kind in KINDS) < 0.3 and d(1000, "larger") < d(1000, "0")

# the noise of σ̂ on the way to the lowest level, and what that level should have
for name, low, high in (("uniform", 1, 201), ("trailing", 200, 400)):
    fresh = (1 - alpha_bar[high] / alpha_bar[low]).sqrt()
    due = (1 - alpha_bar[low]).sqrt()
    print(
        f"five steps, {name}: σ̂ adds {fresh:.2f} on the way to the lowest level, of {due:.2f}"
    )
    assert (fresh > 50 * due) == (name == "uniform")

# %% [markdown]
# Both claims hold, with one exception: from ten steps on $\eta=0.2$ is a little below $\eta=0$. Without noise ten
# steps do what the chain with $\eta=1$ needs twenty for, and $\hat\sigma$, DDPM's own choice, is the worst of all
# when steps are few and as good as any when they are many.
#
# The mechanism is in section 3.9: $\hat\sigma$ leaves too much noise behind, and the last step, which adds none,
# would have to take it away. The uniform sub-sequence ends at the first level of the chain, where $x$ should have
# noise of 0.01. With five steps the step before has put 0.59 there, and a network that is asked about 0.01 lets it
# stand. This is the grain in the pictures. In the trailing sub-sequence the lowest level expects noise of 0.58 and
# gets 0.84, a smaller misfit, and the distance at five steps falls from 11.5 to 3.8.
#
# Below twenty steps the distances of our digits fall quickly, beyond it they hardly move. Each is from one draw of
# 500 digits, so we read nothing into differences of a tenth. (The held-out digits are farther away than the samples.
# They are fewer, and neither the network nor the classifier has seen them; section 2.13.)
#
# ## 3.12 A code for every digit
#
# Without noise $x_T$ decides the picture. The road has no forks: two solutions of an ordinary differential equation
# with a smooth velocity never meet. So it can be walked both ways, and $x_T$ is a **code**. Take the four $x_T$ of
# section 3.1, and draw from each with more and more steps:

# %% tags=["nbval-ignore-output"]
code = md.per_image_noise([4, 7, 11, 12], (1, 8, 8))(0)
silent = lambda step: torch.zeros_like(code)
counts = (10, 20, 50, 100)
same = {
    S: md.ddim(model.process, model.net, code, silent, md.subsequence(1000, S, "trailing"))
    for S in counts
}
fig, ax = plt.subplots(figsize=(4.6, 4.6))
plots.show_grid(
    torch.stack([same[S] for S in counts], 1).flatten(0, 1),
    columns=4,
    title="Without noise the same $x_T$ gives one picture",
    ax=ax,
    row_labels=[f"$x_T$ no. {k}" for k in range(1, 5)],
    column_labels=[f"{S} steps" for S in counts],
)
plt.show()
moved = {S: (same[S] - same[100]).square().mean().sqrt().item() for S in counts[:-1]}
print(
    "root mean square distance to 100 steps:",
    ", ".join(f"{m:.2f} ({S})" for S, m in moved.items()),
)

# %%
assert moved[50] < moved[20] < 0.4 and moved[50] < 0.15

# %% [markdown]
# The same four $x_T$ gave twenty pictures in section 3.1. Now each gives one; ten steps already show which, and more
# steps hardly change it.
#
# And back: solve $\eqref{eq:ddim-14}$ **upwards**, with $\sigma$ rising, from a digit that the model has never seen,
# then down again. Each Euler step uses the velocity at its own beginning, upwards another beginning than downwards,
# so the way back misses by the error of the solver and by nothing else. The paper's Table 2 is the mean squared error
# per pixel, on a scale from 0 to 1. It falls with every refinement, and since the error of Euler's method is of order
# $1/S$ (section 0.9), its square must, once the steps are small enough, fall as
#
# $$ \tfrac1D\|x_0-x_0'\|^2\ \propto\ S^{-2}. \tag{DDIM Table 2} $$
#
# On Gaussian data, where the velocity is known, the law can be seen as it stands; on digits, nearly.

# %%
# check: DDIM Table 2
counts = (10, 20, 50, 100, 200, 500, 1000)
paper = (0.014, 0.0065, 0.0023, 0.0009, 0.0004, 0.0001, 0.0001)
trips = [results["round_trip"][str(S)] for S in counts]
x0, gaussian = 0.5 * torch.randn(50, 1, generator=rng(16), dtype=double), []
for S in counts:
    steps = md.subsequence(1000, S)
    code_of_x0 = md.ddim_encode(process, exact_eps, x0, steps)
    again = md.ddim(process, exact_eps, code_of_x0, None, steps, clip=False)
    gaussian.append(((again - x0) / 2).square().mean().item())
print("steps    N(0, 1/4)    our digits    the paper, CIFAR-10")
for row in zip(counts, gaussian, trips, paper, strict=True):
    print("{:>5}{:>13.6f}{:>14.6f}{:>15}".format(*row))
assert all(b < a for a, b in itertools.pairwise(trips))
# ten times the steps, a hundredth of the squared error; the digits come near it, the paper's error less so
assert 90 < gaussian[3] / gaussian[6] < 100 and 3.9 < gaussian[5] / gaussian[6] < 4.1
assert trips[0] / trips[3] > 50 and trips[3] / trips[6] > 50 and paper[0] / paper[3] < 20
# in grey levels, of which 16 make the scale
assert 16 * trips[-1] ** 0.5 < 1 / 40

# %% tags=["nbval-ignore-output"]
unseen = md.digits("test").x[:16].double()
kept = md.subsequence(1000, 50)
codes = md.ddim_encode(model.process, model.net, unseen, kept)
quiet = lambda step: torch.zeros_like(codes)
back = md.ddim(model.process, model.net, codes, quiet, kept, clip=False)
trip = ((back - unseen) / 2).square().mean().item()
size = codes.square().mean().item()
print(f"50 steps there and back: error {trip:.5f}; mean square of the codes {size:.2f}")

# the same flow by an adaptive solver: from the digits, and from digits with noise of σ_1
between_steps = md.ContinuousDenoiser(model.process, model.net, clip=False)
path = between_steps.path()
first_noise = path.sigma_min * torch.randn(16, 1, 8, 8, generator=rng(14), dtype=double)
adaptive = {
    name: md.ode_encode(between_steps, x, path, 1e-3, 1e-3) / (1 + path.sigma_max**2) ** 0.5
    for name, x in (
        ("the digits", unseen),
        ("the digits with noise of σ_1", unseen + first_noise),
    )
}
sizes = {name: z.square().mean().item() for name, z in adaptive.items()}
print(
    "solved adaptively:", ", ".join(f"{size:.2f} from {name}" for name, size in sizes.items())
)

# %%
assert trip < 0.002 and 0.4 < size < 0.8
assert sizes["the digits"] < 0.9 and 0.85 < sizes["the digits with noise of σ_1"] < 1.25

# %% [markdown]
# Ten times the steps make the squared error of our digits more than fifty times smaller, and with a thousand steps
# they come back to a fortieth of a grey level. (The paper's errors fall by fifteen from 10 steps to 100, and are
# printed with too few places to follow them farther.)
#
# But look at the size of the codes. Normal noise has mean square 1, and they are shorter. About half of that is the
# solver: Euler's step upwards takes each velocity too early. The rest is the digits. No density of the chain is
# without noise. A draw from the first has noise of $\sigma_1$ in each of its 64 pixels, and an exact digit has none
# in any, which hardly ever happens to a draw. With noise of the first level added, the flow takes digits that the
# model has never seen to vectors of about the size of normal noise. Who wants codes that behave as noise must begin
# where the flow begins.
#
# If codes are normal vectors, what lies between two digits? Not the straight line between their codes: the midpoint
# of two independent normal vectors of 64 dimensions is shorter than either by $\sqrt2$, a place where the model never
# begins. Walk on the **great circle** instead. With $\theta$ the angle between the codes,
#
# $$ x_T^{(\lambda)}=\frac{\sin((1-\lambda)\theta)}{\sin\theta}\,x_T^{(0)}+\frac{\sin(\lambda\theta)}{\sin\theta}\,x_T^{(1)}.
#    \tag{3.5}\label{eq:3-5} $$
#
# Why this is the circle: the vector of their length at the angle $\lambda\theta$ from the first is the diagonal of a
# parallelogram whose sides lie along the two codes, and the **sine rule** gives the sides. Between ends of the same
# length nothing but the direction changes.

# %%
# check: 3.5
a, b = torch.randn(2, 1000, 64, generator=rng(13), dtype=double)
a, b = (x / x.norm(dim=1, keepdim=True) * 8 for x in (a, b))
for weight in (0.0, 0.25, 0.5, 1.0):
    angle = torch.acos((a * b).sum(1, keepdim=True) / 64)
    arc = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(
        angle
    )
    torch.testing.assert_close(md.slerp(a, b, weight), arc)
    torch.testing.assert_close(arc.norm(dim=1), torch.full((1000,), 8.0, dtype=double))
straight = ((a + b) / 2).norm(dim=1).mean()
print(f"length of the codes 8, of the straight midpoint {straight:.2f}, of the arc's 8")
assert abs(straight - 8 / math.sqrt(2)) < 0.1

# %% tags=["nbval-ignore-output"]
ends = md.digits("test")
pairs = [(0, 3), (5, 1), (2, 12)]
weights = torch.linspace(0, 1, 7).tolist()
codes = md.ddim_encode(
    model.process, model.net, ends.x.double()[:16], md.subsequence(1000, 50)
)
between = torch.cat(
    [md.slerp(codes[i : i + 1], codes[j : j + 1], w) for i, j in pairs for w in weights]
)
walk = md.ddim(
    model.process, model.net, between, lambda step: torch.zeros_like(between),
    md.subsequence(1000, 50), clip=False,
)  # fmt: skip
fig, ax = plt.subplots(figsize=(6.0, 3.1))
plots.show_grid(
    walk,
    columns=7,
    title="Along the arc between two codes one digit turns into another",
    ax=ax,
    column_labels=[f"λ = {w:.2f}" for w in weights],
)
plt.show()
off = max(
    (walk[7 * k] - ends.x[i][None]).abs().max().item() for k, (i, j) in enumerate(pairs)
)
print(f"the ends of the walk are the digits themselves, within {off:.2f} of a scale of 2")

# %%
assert off < 0.4

# %% [markdown]
# ## 3.13 Many small steps become an equation
#
# DDPM's chain takes a thousand steps, NCSN's list of 2019 has ten noise levels, and DDIM keeps as few steps as one
# likes. Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole asked what happens when there are infinitely many. Then
# the chain is no longer a list of steps but an equation, and equations can be turned round in time, have their noise
# taken out, and be handed to a solver that somebody else wrote. Among what comes out is the thing that chapters 01
# and 02 could only bound: the likelihood itself.
#
# Time is now a real number, and $\mathbf x(t)$ is the data point at time $t$, from $\mathbf x(0)$, the data, to
# $\mathbf x(T)$, nearly noise; mostly $T=1$. The density of $\mathbf x(t)$ is $p_t$, and that of $\mathbf x(t)$ given
# $\mathbf x(0)$ is $p_{0t}$. In a short time $dt$ two things happen: a push in a direction that depends on place and
# time, and a random kick,
#
# $$ d\mathbf x=\mathbf f(\mathbf x,t)\,dt+g(t)\,d\mathbf w \tag{SDE 5}\label{eq:sde-5} $$
#
# with the *drift* $\mathbf f$ and the *diffusion coefficient* $g$. What is $d\mathbf w$? Chapter 00 (section 0.7) met
# it; here it is again from the start. Cut the time into steps of length $h$ and draw a fresh
# $\mathbf z\sim\mathcal N(\mathbf 0,\mathbf I)$ in each; then the equation means the program
#
# $$ \mathbf x\leftarrow\mathbf x+\mathbf f(\mathbf x,t)\,h+g(t)\sqrt h\;\mathbf z,\qquad t\leftarrow t+h \tag{3.6}\label{eq:3-6} $$
#
# and the limit $h\to0$. The program is the **Euler–Maruyama** method, and $d\mathbf w=\sqrt h\,\mathbf z$ is a
# *Wiener increment*: Gaussian, independent of everything before, with variance equal to the time that passes. The
# square root is forced. In a unit of time there are $1/h$ kicks. **Independent variances add**, so kicks of size
# $h^a$ give the variance $h^{2a}/h$: for $a<\frac12$ it runs to infinity with ever finer steps, for $a>\frac12$ the
# noise dies out, and only $a=\frac12$ leaves something that does not depend on how we cut the time.
#
# For the equations of this chapter the drift is linear, $\mathbf f(\mathbf x,t)=f(t)\,\mathbf x$, and mean and
# variance of each coordinate follow from two lines. One step multiplies $x$ by $1+f h$ and adds an independent
# $g\sqrt h\,z$, so the mean $m$ goes to $(1+fh)\,m$ and the variance $V$ to $(1+fh)^2V+g^2h$. **Keep what is of
# order** $h$:
#
# $$ \frac{dm}{dt}=f(t)\,m,\qquad\frac{dV}{dt}=2f(t)\,V+g(t)^2 \tag{3.7}\label{eq:3-7} $$
#
# These *moment equations* are nearly all the stochastic calculus that we shall need. Two checks. For a drift that is
# not linear, $f=x-x^3$, which pulls towards $-1$ and $+1$, we follow the whole density through $\eqref{eq:3-6}$,
# step by step on a grid, without any random number: halving the step must halve the change, and with another power of
# $h$ there must be no limit at all. For a linear drift the program's exact moments must tend to the solution of
# $\eqref{eq:3-7}$.

# %%
# check: SDE 5, 3.6, 3.7
from scipy.integrate import solve_ivp

grid = torch.linspace(-3.2, 3.2, 641, dtype=double)
width = grid[1] - grid[0]


def density_after(n, power=0.5):
    """Density at time 1 of n steps from N(0.3, 0.2²), with kicks of 0.8 h^power."""
    h = 1 / n
    at, kick = grid + (grid - grid**3) * h, 0.8 * h**power
    # step[i, j]: from grid[i] to grid[j]
    step = torch.exp(-((grid - at[:, None]) ** 2) / (2 * kick**2))
    step = step / step.sum(1, keepdim=True)
    p = torch.exp(-((grid - 0.3) ** 2) / (2 * 0.2**2))
    return (p / p.sum()) @ torch.linalg.matrix_power(step, n) / width


print(
    "kicks of size h^a: how far the density moves when 100 steps become 200, and 200 become 400"
)
for power in (0.4, 0.5, 0.6):
    p = [density_after(n, power) for n in (100, 200, 400)]
    moves = [(b - a).abs().sum() * width for a, b in itertools.pairwise(p)]
    print(f"   a = {power}:  {moves[0]:.4f}  {moves[1]:.4f}")
    # with a = 1/2 the moves halve, so that their sum stays finite; else they do not
    assert (abs(moves[0] / moves[1] - 2) < 0.1) == (power == 0.5)


def f(t):
    return -0.5 - 2 * t


def g(t):
    return 1 + math.sin(3 * t)


truth = solve_ivp(
    lambda t, y: [f(t) * y[0], 2 * f(t) * y[1] + g(t) ** 2], (0, 1), [1.5, 0.2], rtol=1e-10
)
off = []
for n in (1000, 2000):
    mean, variance = 1.5, 0.2
    for i in range(n):
        mean, variance = (
            mean * (1 + f(i / n) / n),
            (1 + f(i / n) / n) ** 2 * variance + (g(i / n) / n**0.5) ** 2,
        )
    off.append((abs(mean - truth.y[0, -1]), abs(variance - truth.y[1, -1])))
    print(
        f"{n} steps: mean {mean:.5f}, variance {variance:.5f};  "
        f"(3.7): {truth.y[0, -1]:.5f}, {truth.y[1, -1]:.5f}"
    )
assert all(abs(a / b - 2) < 0.02 for a, b in zip(*off, strict=True))

# %% [markdown]
# ## 3.14 Two chains, two equations
#
# **NCSN's list as a chain.** Annealed Langevin (section 3.4) asks for data with noise of
# $\sigma_1<\sigma_2<\dots<\sigma_N$ (the paper counts upwards here). One can reach these levels one after the other,
# adding each time what is missing:
#
# $$ \mathbf x_i=\mathbf x_{i-1}+\sqrt{\sigma_i^2-\sigma_{i-1}^2}\;\mathbf z_{i-1},\qquad i=1,\dots,N \tag{SDE 8}\label{eq:sde-8} $$
#
# The variances **telescope**. Now let the levels lie on a curve, $\sigma_i=\sigma(i/N)$, and let $N\to\infty$. What
# one step adds is $\sigma^2(t+h)-\sigma^2(t)=\frac{d[\sigma^2(t)]}{dt}h$ to first order. **Compare with**
# $\eqref{eq:3-6}$, whose kick has the variance $g^2h$:
#
# $$ d\mathbf x=\sqrt{\frac{d[\sigma^2(t)]}{dt}}\;d\mathbf w \tag{SDE 9}\label{eq:sde-9} $$
#
# There is no drift. The variance grows as $\sigma^2$ does, and the paper calls the equation *variance exploding*,
# **VE**. Its curve is geometric, $\sigma(t)=\sigma_{\min}(\sigma_{\max}/\sigma_{\min})^t$.
#
# **DDPM's chain** is, in the same letters,
#
# $$ \mathbf x_i=\sqrt{1-\beta_i}\;\mathbf x_{i-1}+\sqrt{\beta_i}\;\mathbf z_{i-1} \tag{SDE 10}\label{eq:sde-10} $$
#
# If we are to take $N$ times as many steps, each must add less noise. So let $\beta_i=\beta(i/N)/N$ with one function
# $\beta(t)$ for all $N$, and $h=1/N$. **Expand the root**, $\sqrt{1-\beta h}=1-\frac12\beta h+O(h^2)$, and compare
# with $\eqref{eq:3-6}$ again:
#
# $$ d\mathbf x=-\tfrac12\beta(t)\,\mathbf x\,dt+\sqrt{\beta(t)}\;d\mathbf w \tag{SDE 11}\label{eq:sde-11} $$
#
# The moment equation is $\dot V=\beta\,(1-V)$: unit variance stays, and any other tends to it. *Variance preserving*,
# **VP**. DDPM's $\beta_i=10^{-4}\dots0.02$ with $N=1000$ are $\beta(t)/1000$ with $\beta$ from $0.1$ to $20$, up to
# one step's shift: the chain has $\beta_1=\beta(0)/N$, and $\eqref{eq:sde-11}$ would read $\beta(1/N)/N$.
#
# **A third one by design.** Keep the drift of VP, so that the data fade in the same way, but ask for less noise: the
# variance $V=(1-e^{-B})^2$ with $B(t)=\int_0^t\beta$, in place of VP's $1-e^{-B}$. Which $g$ gives that? **Solve the
# moment equation for** $g^2$, with $e=e^{-B}$ and $\dot e=-\beta e$:
#
# $$ g^2=\dot V-2fV=2(1-e)\,\beta e+\beta(1-e)^2=\beta(1-e)(1+e)=\beta(1-e^2), $$
#
# so the third equation is
#
# $$ d\mathbf x=-\tfrac12\beta(t)\,\mathbf x\,dt+\sqrt{\beta(t)\big(1-e^{-2\int_0^t\beta(s)\,ds}\big)}\;d\mathbf w \tag{SDE 12}\label{eq:sde-12} $$
#
# Since $1-e<1$, its square is smaller: the variance lies below VP's at every time, hence *sub-VP*. The paper finds it
# good for likelihoods.
#
# The check takes each equation by a consequence. The chains are stepped exactly, with many levels and with twice as
# many, and must approach the moment equations of their limit, with an error that halves. And the $g$ of the library,
# which knows only $s(t)$ and $\sigma(t)$ (next section), must be the roots in the equations.

# %%
# check: SDE 8, SDE 9, SDE 10, SDE 11, SDE 12
ve, vp, sub_vp = md.GeometricVEPath(0.02, 100.0), md.VPPath(), md.SubVPPath()


def beta_of(t):
    return 0.1 + 19.9 * t


def B(t):
    """∫_0^t β."""
    return 0.1 * t + 0.5 * 19.9 * t**2


def sigma_ve(t):
    return 0.02 * (100 / 0.02) ** t


def limit(drift, g2, until=1.0):
    """The moment equations (3.7) from (1, 0), solved numerically."""
    rates = lambda t, y: [drift(t) * y[0], 2 * drift(t) * y[1] + g2(t)]
    return solve_ivp(rates, (0, until), [1.0, 0.0], rtol=1e-10, atol=1e-12).y[:, -1]


def ve_g2(t, h=1e-5):
    """dσ²/dt by a central difference."""
    return (sigma_ve(t + h) ** 2 - sigma_ve(t - h) ** 2) / (2 * h)


# (SDE 8): whatever the list, the variance after N steps is σ_N² − σ_0²; (SDE 9) has the same, for the curve
for N in (10, 1000):
    levels = [sigma_ve(i / N) for i in range(N + 1)]
    kicks = [(b**2 - a**2) ** 0.5 for a, b in itertools.pairwise(levels)]
    assert math.isclose(sum(kick**2 for kick in kicks), 100**2 - 0.02**2)
assert math.isclose(limit(lambda t: 0.0, ve_g2)[1], 100**2 - 0.02**2, rel_tol=1e-7)

# (SDE 10): the chain, in N steps and in 2N, against (SDE 11) at t = 0.3
truth, off = limit(lambda t: -0.5 * beta_of(t), beta_of, 0.3), []
for N in (1000, 2000):
    mean, variance = 1.0, 0.0
    for i in range(1, round(0.3 * N) + 1):
        b = beta_of(i / N) / N
        mean, variance = (1 - b) ** 0.5 * mean, (1 - b) * variance + b
    off.append((abs(mean - truth[0]), abs(variance - truth[1])))
    print(
        f"DDPM's chain of {N}, at t = 0.3: mean {mean:.4f} of x(0), variance {variance:.4f};  "
        f"the SDE: {truth[0]:.4f}, {truth[1]:.4f}"
    )
assert all(abs(a / b - 2) < 0.02 for a, b in zip(*off, strict=True))
# (SDE 12): the variance that was ordered, and always below VP's
for t in (0.05, 0.3, 1.0):
    _, variance = limit(
        lambda t: -0.5 * beta_of(t), lambda t: beta_of(t) * (1 - math.exp(-2 * B(t))), t
    )
    assert math.isclose(variance, (1 - math.exp(-B(t))) ** 2, rel_tol=1e-6)
    assert variance < limit(lambda t: -0.5 * beta_of(t), beta_of, t)[1]
# the library's f and g
t = torch.linspace(0.01, 1, 50, dtype=double)
torch.testing.assert_close(
    ve.g(t), torch.tensor([ve_g2(k) for k in t.tolist()]).double().sqrt()
)
assert ve.f(t).abs().max() == 0
torch.testing.assert_close(vp.f(t), -0.5 * beta_of(t))
torch.testing.assert_close(vp.g(t), beta_of(t).sqrt())
torch.testing.assert_close(sub_vp.f(t), vp.f(t))
torch.testing.assert_close(sub_vp.g(t), (beta_of(t) * (1 - torch.exp(-2 * B(t)))).sqrt())

chain = md.GaussianDiffusion(md.linear_betas(1000))
print("noise over signal:            first step   t = 1/1000        last step     t = 1")
print(
    f"{'DDPM, and the VP equation':<30}{chain.sigma[0]:>10.5f}{vp.sigma(1e-3):>13.5f}"
    f"{chain.sigma[-1]:>17.1f}{vp.sigma(1.0):>10.1f}"
)
assert abs(vp.sigma(1e-3) / chain.sigma[0] - 1.05) < 0.005
assert abs(vp.sigma(1.0) / chain.sigma[-1] - 0.97) < 0.005

# %% [markdown]
# The last line is a caution: a trained DDPM network under the VP equation is a network asked at slightly wrong noise
# levels, some five per cent off at the start of the chain and three at its end. (At the start the reason is that
# shift by a step, at the end it is $1-\beta/N$ against $e^{-\beta/N}$.) Where we sample the shipped model by an ODE
# we shall therefore use the chain's own $\sigma_t$.
#
# ## 3.15 Where each process is at time $t$
#
# The drift is linear and the noise Gaussian, so every step $\eqref{eq:3-6}$ makes a Gaussian from a Gaussian, and
# $p_{0t}$ is known when its two moments are. **Solve the moment equations by an integrating factor.** For VP,
# $\dot m=-\frac12\beta m$ gives $m=\mathbf x(0)\,e^{-\frac12B}$, and $\frac{d}{dt}(1-V)=-\beta(1-V)$ from $V(0)=0$
# gives $1-V=e^{-B}$. For VE the mean stays and $V$ is the integral of $g^2$. For sub-VP we ordered the variance
# ourselves. With $B=\int_0^t\beta$,
#
# $$ p_{0t}(\mathbf x(t)\mid\mathbf x(0))=\begin{cases}
# \mathcal N\big(\mathbf x(0),\ [\sigma^2(t)-\sigma^2(0)]\,\mathbf I\big)&\text{VE}\\
# \mathcal N\big(\mathbf x(0)\,e^{-\frac12B},\ \big(1-e^{-B}\big)\mathbf I\big)&\text{VP}\\
# \mathcal N\big(\mathbf x(0)\,e^{-\frac12B},\ \big(1-e^{-B}\big)^2\mathbf I\big)&\text{sub-VP}
# \end{cases} \tag{SDE 29}\label{eq:sde-29} $$
#
# In VE's line stands $\sigma^2(t)-\sigma^2(0)$, and it has to: the geometric curve begins at $\sigma_{\min}$ and not
# at 0. The paper's code uses $\sigma^2(t)$. The two agree where $\sigma\gg\sigma_{\min}$ and are quite different
# things at the start, where the code says that data at $t=0$ have noise $\sigma_{\min}$, and the equation says that
# they have none. The library's `GeometricVEPath` does as the equation does.
#
# **One coordinate for all.** All three are of the form $\mathbf x(t)=s(t)\,(\mathbf x(0)+\sigma(t)\,\mathbf n)$ with
# normal $\mathbf n$: data with noise of a *level* $\sigma$, shown at a *scale* $s$ (from here on $\sigma(t)$ is this
# level, for every process). How do $f$ and $g$ hang together with them? The mean says $s\,\mathbf x(0)$, so
# $\dot s=fs$. The variance is $V=s^2\sigma^2$, so $\dot V=2s\dot s\,\sigma^2+2s^2\sigma\dot\sigma$. **Put both into
# the moment equation**; the first part is $2fV$ and cancels:
#
# $$ f=\frac{\dot s}{s},\quad g=s\sqrt{2\dot\sigma\sigma};\qquad s(t)=e^{\int_0^tf},\quad\sigma^2(t)=\int_0^t\frac{g^2}{s^2}
#    \tag{3.8}\label{eq:3-8} $$
#
# So a process is two curves, $s$ and $\sigma$, and in `minidiff` a `Path` is these two curves with their derivatives
# and nothing more. $f$, $g$, the marginals, the equations of the coming sections are computed from them, once for all
# processes. The check goes the other way: from the $f$ and $g$ of $\eqref{eq:sde-9}$, $\eqref{eq:sde-11}$ and
# $\eqref{eq:sde-12}$, numerically, to the moments and to the path.

# %%
# check: SDE 29, 3.8
cases = {
    "VE": (ve, lambda t: 0.0, ve_g2),
    "VP": (vp, lambda t: -0.5 * beta_of(t), beta_of),
    "sub-VP": (
        sub_vp,
        lambda t: -0.5 * beta_of(t),
        lambda t: beta_of(t) * (1 - math.exp(-2 * B(t))),
    ),
}
kernel = {
    "VE": lambda t: (1.0, sigma_ve(t) ** 2 - sigma_ve(0) ** 2),
    "VP": lambda t: (math.exp(-B(t) / 2), 1 - math.exp(-B(t))),
    "sub-VP": lambda t: (math.exp(-B(t) / 2), (1 - math.exp(-B(t))) ** 2),
}
for name, (path, drift, g2) in cases.items():
    for t in (0.02, 0.4, 1.0):
        mean, variance = limit(drift, g2, t)
        # (SDE 29)
        assert math.isclose(mean, kernel[name](t)[0], rel_tol=1e-6)
        assert math.isclose(variance, kernel[name](t)[1], rel_tol=1e-5)
        # (3.8): the level is the integral of g²/s², with s the exponential of the integral of f
        y = solve_ivp(
            lambda t, y, drift=drift, g2=g2: [drift(t), g2(t) / math.exp(2 * y[0])],
            (0, t),
            [0, 0],
            rtol=1e-10,
        ).y[:, -1]
        torch.testing.assert_close(path.s(t).item(), math.exp(y[0]), rtol=1e-7, atol=0)
        torch.testing.assert_close(path.sigma(t).item(), y[1] ** 0.5, rtol=1e-6, atol=0)
        assert math.isclose(path.std(t) ** 2, variance, rel_tol=1e-5)

# and random paths: 20,000 of them, 1,000 Euler–Maruyama steps, against (SDE 29) at t = 1
x, h = torch.full((3, 20_000), 2.0, dtype=double), 1e-3
for i in range(1000):
    z = torch.randn(20_000, generator=rng(1000 + i), dtype=double)
    for row, (_, drift, g2) in enumerate(cases.values()):
        # the middle of the step, for less error
        t = (i + 0.5) * h
        x[row] += drift(t) * h * x[row] + (g2(t) * h) ** 0.5 * z
for row, name in enumerate(cases):
    mean, variance = kernel[name](1.0)
    spread = variance**0.5
    print(
        f"{name:<7} x(1) from x(0) = 2:  mean {x[row].mean():7.3f} ± {spread / 20_000**0.5:.3f} "
        f"({2 * mean:.3f} by SDE 29),  deviation {x[row].std():7.3f} ({spread:.3f})"
    )
    assert abs(x[row].mean() - 2 * mean) < 4 * spread / 20_000**0.5
    assert abs(x[row].std() / spread - 1) < 4 / 40_000**0.5

t = torch.linspace(0.001, 1, 300, dtype=double)
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.8))
for name, colour, style in (
    ("VP", plots.BLUE, "-"),
    ("sub-VP", plots.ORANGE, "--"),
    ("VE", plots.INK, ":"),
):
    path = cases[name][0]
    if name != "VE":
        left.plot(t, path.std(t), style, color=colour, label=f"{name}: noise $s\\sigma$")
    right.semilogy(t, path.sigma(t), style, color=colour, label=name)
left.plot(t, vp.s(t), color=plots.GREEN, label="both: signal $s$")
left.set(
    xlabel="time $t$", ylabel="share in $x(t)$", title="sub-VP: the same signal, less noise"
)
right.set(
    xlabel="time $t$",
    ylabel=r"noise level $\sigma(t)$",
    title="Three climbs over the same levels",
)
left.legend(fontsize=7.5)
right.legend(fontsize=7.5)
fig.suptitle(
    "Three processes are three ways to run through the same noise levels",
    fontsize=10.5,
    fontweight="bold",
)
plt.show()

# %% [markdown]
# Look at the right panel. Divided by its scale, $\mathbf x(t)/s(t)=\mathbf x(0)+\sigma\mathbf n$ is the same for all
# processes when they have the same $\sigma$; VP, sub-VP and VE differ in how long they stay at each level and in the
# units they use. A network trained under one can be used under another.
#
# For experiments we take a distribution where everything is known: three bumps on a line, with mean zero, whose
# density $p_t$ under any path is a mixture of three wider bumps.

# %%
toy = md.Mixture(
    torch.tensor([0.4, 0.35, 0.25]), torch.tensor([[-1.0], [0.2], [1.32]]), std=0.15
)


def toy_denoise(x, sigma):
    """E[x(0) | x(0) + σ n = x]: the perfect network."""
    return toy.denoise(x, 1.0, sigma)


def toy_log_prob(x, t, path):
    """log p_t(x) under a path; x: (n, 1)."""
    return toy.log_prob(x, path.s(t).item(), path.std(t).item())


def toy_score(x, t, path):
    """∇ log p_t(x)."""
    return path.score(x, path.denoised(toy_denoise, x, t), t)


def toy_cdf(x, t, path):
    """Share of p_t to the left of x; x: (n,)."""
    s, std = path.s(t), (path.s(t) ** 2 * toy.std**2 + path.std(t) ** 2).sqrt()
    return (toy.weights * torch.special.ndtr((x[:, None] - s * toy.means[:, 0]) / std)).sum(1)


def gap(x, t, path):
    """Largest distance of the sample's distribution function to the true one (Kolmogorov)."""
    x = x.flatten().sort().values
    return (toy_cdf(x, t, path) - (torch.arange(len(x)) + 0.5) / len(x)).abs().max().item()


# %% [markdown]
# ## 3.16 Turning time round
#
# To draw a sample we want to run $\eqref{eq:sde-5}$ backwards. First, how do densities move forwards? Chapter 00
# derived it on a line; here is the derivation again, in $d$ dimensions and five lines. Take any smooth function
# $\varphi$ that is zero outside some ball. **Expand** $\varphi$ over one step of $\eqref{eq:3-6}$: the push gives
# $h\,\mathbf f\cdot\nabla\varphi$; the kick has mean zero, and its square, of mean $g^2h$ in every coordinate and
# independent between coordinates, gives $\frac12g^2h\,\Delta\varphi$; the rest is smaller than $h$. **Take the mean
# over** $p_t$, divide by $h$, and **integrate by parts** (nothing remains at the edge of the ball):
#
# $$ \int\!\varphi\,\partial_tp_t=\int\!\Big(\mathbf f\cdot\nabla\varphi+\tfrac12g^2\Delta\varphi\Big)p_t
#    =\int\!\varphi\,\Big(\!-\nabla\!\cdot(\mathbf f\,p_t)+\tfrac12g^2\Delta p_t\Big) $$
#
# This holds for every $\varphi$, so the factors of $\varphi$ are equal. That is the **Fokker–Planck equation**:
#
# $$ \partial_tp_t=-\nabla\!\cdot(\mathbf f\,p_t)+\tfrac12g^2\Delta p_t \tag{3.9}\label{eq:3-9} $$
#
# **The backward process.** Undo one small step by **Bayes' rule**: given where we are now,
# $\mathbf x'=\mathbf x(t+h)$, where were we before?
#
# $$ p(\mathbf x\mid\mathbf x')\ \propto\ \underbrace{e^{-\|\mathbf x'-\mathbf x-\mathbf f h\|^2/(2g^2h)}}_{\text{one step}}
#    \ \cdot\ \underbrace{p_t(\mathbf x)}_{\text{before}} $$
#
# The first factor is narrow, of width $g\sqrt h$ around $\mathbf x'-\mathbf fh$. Within that width **$\log p_t$ is a
# straight line** up to terms that vanish with $h$:
# $\log p_t(\mathbf x)\approx\text{const}+\nabla\log p_t(\mathbf x')\cdot(\mathbf x-\mathbf x')$. A Gaussian times the
# exponential of a straight line is the same Gaussian, with its mean moved by variance times slope (**complete the
# square**):
#
# $$ p(\mathbf x\mid\mathbf x')\approx\mathcal N\Big(\mathbf x;\ \mathbf x'-\big[\mathbf f-g^2\nabla\log p_t(\mathbf x')\big]h,\
#    g^2h\,\mathbf I\Big) \tag{3.10}\label{eq:3-10} $$
#
# with an error of order $h^2$ in mean and variance. This is again one step of an Euler–Maruyama program, in time that
# runs backwards. There is nothing left to guess, the limit is
#
# $$ d\mathbf x=\big[\mathbf f(\mathbf x,t)-g(t)^2\,\nabla_{\mathbf x}\log p_t(\mathbf x)\big]dt+g(t)\,d\bar{\mathbf w}
#    \tag{SDE 6}\label{eq:sde-6} $$
#
# Here $dt$ is negative and $d\bar{\mathbf w}$ are Wiener increments of the time that runs back. The one thing we have
# to know of the data is the score, at every time. (Anderson found the equation in 1982, and for far more general
# $g$.) This is the equation that section 3.5 promised. For VP, one step of length $h$ with $\beta_i=\beta h$ reads
# $\mathbf x+\frac12\beta_i\mathbf x+\beta_i\nabla\log p_t+\sqrt{\beta_i}\,\mathbf z$, and with
# $1/\sqrt{1-\beta_i}=1+\frac12\beta_i+O(h^2)$ that is DDPM's step back $\eqref{eq:sde-4}$, up to $O(h^2)$.
#
# An expansion with "approximately" in it is not a proof for the whole way back, where a million small errors might
# add up. So we **prove the densities directly**. Let $\tau=T-t$ run forwards when $t$ runs back. The claim is that
# $\eqref{eq:sde-6}$, started from $p_T$, has the density $\tilde p_\tau=p_{T-\tau}$ at every $\tau$. In $\tau$ its
# drift is $-\mathbf f+g^2\nabla\log p_t$, and its Fokker–Planck equation $\eqref{eq:3-9}$ asks for
#
# $$ \partial_\tau\tilde p=\nabla\!\cdot(\mathbf f\tilde p)-\nabla\!\cdot\big(g^2\,\tilde p\,\nabla\log\tilde p\big)
#    +\tfrac12g^2\Delta\tilde p=\nabla\!\cdot(\mathbf f\tilde p)-\tfrac12g^2\Delta\tilde p, $$
#
# **because** $\tilde p\,\nabla\log\tilde p=\nabla\tilde p$, whose divergence is the Laplacian. The right side is
# minus that of $\eqref{eq:3-9}$, and so is the left side, for $\partial_\tau=-\partial_t$. So $p_{T-\tau}$ solves
# the equation of the backward process and begins where it begins. (That nothing else does is a theorem on the
# uniqueness of solutions which we borrow. What the equation gives is each density, at one time; that also the joint
# law of several times is right is what $\eqref{eq:3-10}$ adds, step by step.)
#
# The check for $\eqref{eq:3-9}$ lets autograd differentiate the toy's density in time and place. The one for
# $\eqref{eq:3-10}$ applies Bayes' rule on a grid, with no algebra: mean and variance of the undoing must differ from
# the formula by a term that falls to a quarter when $h$ is halved. For $\eqref{eq:sde-6}$ we put its density into its
# own Fokker–Planck equation, compare its step with DDPM's, and then run it.


# %%
# check: SDE 6, 3.9, 3.10
def fokker_planck(drift, t, path, x):
    """−∂(drift p) + ½ g² ∂²p at the points x, by autograd; p is p_t."""
    x = x.clone().requires_grad_(True)
    p = toy_log_prob(x, t, path).exp()
    (dp,) = torch.autograd.grad(p.sum(), x, create_graph=True)
    (d2p,) = torch.autograd.grad(dp.sum(), x, retain_graph=True)
    (flow,) = torch.autograd.grad((drift(x) * p[:, None]).sum(), x)
    return (-flow + 0.5 * path.g(t) ** 2 * d2p)[:, 0].detach()


x, t, dt = torch.linspace(-2.5, 2.5, 201, dtype=double)[:, None], 0.3, 1e-5
for path in (vp, sub_vp, md.GeometricVEPath(0.05, 5.0)):
    rise = (toy_log_prob(x, t + dt, path).exp() - toy_log_prob(x, t - dt, path).exp()) / (
        2 * dt
    )
    f, g = path.f(t), path.g(t)
    # (3.9)
    torch.testing.assert_close(
        fokker_planck(lambda x, f=f: f * x, t, path, x), rise, rtol=1e-5, atol=1e-7
    )
    # (SDE 6), in the time that runs back: the density falls where it rose
    back = lambda x, f=f, g=g, path=path: -f * x + g**2 * toy_score(x, t, path)
    torch.testing.assert_close(fokker_planck(back, t, path, x), -rise, rtol=1e-5, atol=1e-7)

# (3.10): Bayes on a grid, from x' at t + h
here, fine = 0.6, torch.linspace(-4, 4, 160_001, dtype=double)[:, None]
off = []
for h in (1e-3, 5e-4):
    f, g = vp.f(t), vp.g(t)
    log_step = -((here - fine - f * fine * h) ** 2) / (2 * g**2 * h)
    share = torch.softmax(log_step[:, 0] + toy_log_prob(fine, t, vp), 0)
    mean = (share * fine[:, 0]).sum()
    variance = (share * (fine[:, 0] - mean) ** 2).sum()
    score = toy_score(torch.tensor([[here]], dtype=double), t, vp).item()
    expected = here - (f * here - g**2 * score) * h
    off.append((abs(mean - expected), abs(variance - g**2 * h)))
    print(
        f"h = {h}: mean of the undoing {mean:.6f}, by (3.10) {expected:.6f};  "
        f"variance {variance:.6f}, by (3.10) {g**2 * h:.6f}"
    )
assert all(3.8 < a / b < 4.2 for a, b in zip(*off, strict=True))

# (SDE 6) and DDPM's step (SDE 4), without their noise, which is the same: apart by O(h²)
apart = []
for h in (1e-3, 5e-4):
    b, score = vp.beta(t) * h, toy_score(x, t, vp)
    ddpm, reverse = (
        (x + b * score) / (1 - b).sqrt(),
        x - (vp.f(t) * x - vp.g(t) ** 2 * score) * h,
    )
    apart.append((ddpm - reverse).abs().max())
assert apart[0] < 1e-3 and 3.8 < apart[0] / apart[1] < 4.2

# (SDE 6), run: 4,000 points from noise, 400 steps down to t = 0.001, where the next step would end
count = 4000
noise_1d = md.batch_noise(rng(1), count, (1,))
times = torch.linspace(1.0, 1e-3, 401, dtype=double)
gaps_sde = {}


def watch(step, x, sigma, x0_hat):
    gaps_sde[times[step].item()] = gap(x, times[step].item(), vp)


x_sde = md.sde(toy_denoise, noise_1d(0), vp, times, noise_1d, callback=watch)
print(
    f"largest gap to the true distribution function, over all 400 times: {max(gaps_sde.values()):.3f}"
)
# true draws stay below 0.031 at one time in 999 of 1,000 cases, and Euler's error comes on top
assert max(gaps_sde.values()) < 0.035

# %% [markdown]
# ## 3.17 The same densities without noise
#
# Write the heat term of $\eqref{eq:3-9}$ as something that flows, **with the same identity once more**,
# $\frac12g^2\Delta p=\nabla\!\cdot\big(p\cdot\frac12g^2\nabla\log p\big)$, and join it with the drift:
#
# $$ \partial_tp_t=-\nabla\!\cdot\Big(\big[\mathbf f-\tfrac12g^2\nabla\log p_t\big]p_t\Big) $$
#
# This is the Fokker–Planck equation of a process with another drift and no noise at all. So the points that follow
#
# $$ \frac{d\mathbf x}{dt}=\mathbf f(\mathbf x,t)-\tfrac12g(t)^2\,\nabla_{\mathbf x}\log p_t(\mathbf x) \tag{SDE 13}\label{eq:sde-13} $$
#
# have at every time the density of the random process: the **probability-flow** ODE, chapter 00's (0.19) in $d$
# dimensions. Mind the $\frac12$. The reverse SDE has the whole $g^2$ before the score, and its noise takes half of it
# back. (Every mixture works as well: with $\frac12(1+\lambda^2)g^2$ before the score and $\lambda g$ before the noise
# the densities are the same, which was exercise 0.2.) An ordinary equation has no preferred direction of time, so the
# same equation carries data to noise and noise to data, and it is what the next sections live on.
#
# In the coordinates of $\eqref{eq:3-8}$, with Tweedie's lemma for the score,
# $\nabla\log p_t=(s\,\hat{\mathbf x}_0-\mathbf x)/(s\sigma)^2$, it becomes
# $\dot{\mathbf x}=(\dot\sigma/\sigma+\dot s/s)\,\mathbf x-(\dot\sigma s/\sigma)\,\hat{\mathbf x}_0$. This is what the
# library computes, without the detour over a score that is large at small times.
#
# On a line there is a strict test, used in chapter 00 for one process: flowing points cannot overtake each other, so
# the share of probability to the left of each must stay what it was. Here it is put to all three paths. In many
# dimensions the test is a sample at every time, and we make it for the SDE and the ODE together.

# %%
# check: SDE 13
shares = torch.linspace(0.02, 0.98, 25, dtype=double)
for name, path in (("VP", vp), ("sub-VP", sub_vp), ("VE", md.GeometricVEPath(0.05, 5.0))):
    begin = torch.quantile(toy.sample(200_000, rng(2))[:, 0], shares)[:, None]
    begin = begin * path.s(0.01)
    F = toy_cdf(begin[:, 0], 0.01, path)

    def slope(t, state, path=path):
        x = torch.from_numpy(state)[:, None]
        return (path.f(t) * x - 0.5 * path.g(t) ** 2 * toy_score(x, t, path))[:, 0].numpy()

    y = solve_ivp(slope, (0.01, 1), begin[:, 0].numpy(), rtol=1e-9, atol=1e-10).y
    moved = (toy_cdf(torch.from_numpy(y[:, -1]), 1.0, path) - F).abs().max()
    assert moved < 1e-6
    print(
        f"{name:<7} the share to the left of each of 25 points stays the same to six digits"
    )
    # the library's form of the velocity
    xt = torch.from_numpy(y[:, -1])[:, None]
    torch.testing.assert_close(
        path.velocity(xt, path.denoised(toy_denoise, xt, 1.0), 1.0)[:, 0],
        torch.from_numpy(slope(1.0, y[:, -1])),
        rtol=1e-7,
        atol=1e-9,
    )

gaps_ode, lines = {}, {"ODE": [], "SDE": []}


def watch(step, x, sigma, x0_hat):
    gaps_ode[times[step].item()] = gap(x, times[step].item(), vp)
    lines["ODE"].append(x[:40, 0])


md.ode(toy_denoise, noise_1d(0), vp, times, "euler", callback=watch)
md.sde(
    toy_denoise,
    noise_1d(0)[:40],
    vp,
    times,
    lambda i: noise_1d(i)[:40],
    callback=lambda step, x, sigma, x0_hat: lines["SDE"].append(x[:, 0]),
)
print(
    f"largest gap over all times:  SDE {max(gaps_sde.values()):.3f}   ODE {max(gaps_ode.values()):.3f}"
)
assert max(gaps_ode.values()) < 0.035

place = torch.linspace(-3, 3, 241, dtype=double)[:, None]
picture = torch.stack([toy_log_prob(place, t, vp).exp() for t in times.tolist()[::4]], 1)
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), sharey=True)
for ax, (name, line) in zip(axes, lines.items(), strict=True):
    ax.imshow(
        picture.clamp(max=1.0),
        origin="lower",
        extent=(1, 0, -3, 3),
        aspect="auto",
        cmap="Greys",
    )
    ax.plot(times[:-1], torch.stack(line), color=plots.BLUE, lw=0.6, alpha=0.8)
    ax.set(xlabel="time $t$, from noise to data", title=name, xlim=(1, 0), ylim=(-3, 3))
axes[0].set_ylabel("$x(t)$")
fig.suptitle(
    "Smooth paths or rough ones: at every time the same crowd",
    fontsize=10.5,
    fontweight="bold",
)
plt.show()

# %% [markdown]
# ## 3.18 One loss for all times
#
# Everything above needs $\nabla\log p_t$ for real data, where $p_t$ is unknown and only $p_{0t}$ is not. The first
# part of this chapter has the remedy: denoising score matching learns the slope of the blurred density by regression
# on the slope of the blur. **Apply it at every** $t$, and average over times with some positive weight $\lambda(t)$:
#
# $$\begin{aligned}
# \boldsymbol\theta^*=\arg\min_{\boldsymbol\theta}\ \mathbb E_t\Big\{\lambda(t)\,&\mathbb E_{\mathbf x(0)}\,\mathbb E_{\mathbf x(t)\mid\mathbf x(0)}\\
# &\big\|\mathbf s_{\boldsymbol\theta}(\mathbf x(t),t)-\nabla\log p_{0t}(\mathbf x(t)\mid\mathbf x(0))\big\|^2\Big\}
# \end{aligned}\tag{SDE 7}\label{eq:sde-7}$$
#
# Why is the best answer the score of $p_t$ and not something that depends on $\lambda$? **The minimiser of a mean
# square is the conditional mean**, at each $(\mathbf x,t)$ for itself, so the positive factor $\lambda(t)$ cannot
# move it; and the conditional mean of $\nabla\log p_{0t}$ given $\mathbf x(t)$ is $\nabla\log p_t$ (section 3.3).
# What $\lambda$ decides is where a network that cannot be perfect everywhere spends its effort.
#
# By $\eqref{eq:sde-29}$ the target is $\nabla\log p_{0t}=-\mathbf n/(s\sigma)$, with mean square $d/(s\sigma)^2$,
# which explodes at small times. The paper takes $\lambda\propto1/\mathbb E\|\nabla\log p_{0t}\|^2=(s\sigma)^2/d$;
# then $\lambda\|\cdot\|^2$ is the squared error of $-s\sigma\,\mathbf s_\theta$ as a guess of $\mathbf n$, per
# dimension: the $L_{\mathrm{simple}}$ of chapter 02, on a continuous axis. The library's `ScoreMatching` is this, and
# it takes any path.

# %%
# check: SDE 7
points = toy.sample(40_000, rng(3))
n = torch.randn(points.shape, generator=rng(4), dtype=double)
for path in (vp, sub_vp, md.GeometricVEPath(0.05, 5.0)):
    for t in (0.05, 0.5):
        # the loss in the letters above; the slope of log p_{0t} by autograd
        s, std = path.s(t), path.std(t)
        xt = (s * points + std * n).requires_grad_(True)
        log_kernel = torch.distributions.Normal(s * points, std).log_prob(xt)
        (target,) = torch.autograd.grad(log_kernel.sum(), xt)
        xt = xt.detach()

        def loss(move, xt=xt, t=t, path=path, target=target):
            return (
                path.std(t) ** 2 * ((toy_score(xt, t, path) + move(xt)) - target)[:, 0] ** 2
            )

        best = loss(lambda x: 0 * x)
        torch.testing.assert_close(
            md.ScoreMatching(path).loss(
                lambda x, t, path=path: toy_score(x, t, path), points, t, n
            )["loss"],
            best,
        )
        # any move away from ∇log p_t costs its square on average, times λ, and gains nothing
        for move in (
            lambda x: 0.1 + 0 * x,
            lambda x: 0.2 * torch.sin(3 * x),
            lambda x: -0.1 * x,
        ):
            extra = loss(move) - best - std**2 * move(xt)[:, 0] ** 2
            assert abs(extra.mean()) < 4 * extra.std() / len(points) ** 0.5
        # λ evens out the targets
        assert abs(std**2 * (target**2).mean() - 1) < 0.03
print("the exact score is the best answer at every time tried, on all three paths")

# %% [markdown]
# ## 3.19 Samples with a wish
#
# Someone wants not any $\mathbf x(0)$ but one with a property $\mathbf y$: a class, a drawing to be coloured, the
# left half of the picture. Then the data are drawn from $p(\mathbf x(0)\mid\mathbf y)$, the noising is the same, and
# $\eqref{eq:sde-6}$ needs $\nabla\log p_t(\mathbf x\mid\mathbf y)$. **Bayes' rule** under the logarithm,
# $\log p_t(\mathbf x\mid\mathbf y)=\log p_t(\mathbf x)+\log p_t(\mathbf y\mid\mathbf x)-\log p(\mathbf y)$; the last
# term has no slope in $\mathbf x$:
#
# $$ d\mathbf x=\Big\{\mathbf f-g^2\big[\nabla_{\mathbf x}\log p_t(\mathbf x)
#    +\nabla_{\mathbf x}\log p_t(\mathbf y\mid\mathbf x)\big]\Big\}dt+g\,d\bar{\mathbf w} \tag{SDE 14}\label{eq:sde-14} $$
#
# The unconditional model stays as it is, and the wish comes in as a second slope. Two things deserve to be said. What
# $\mathbf y$ has to say must be asked of *noisy* data: $p_t(\mathbf y\mid\mathbf x)$ is not
# $p_0(\mathbf y\mid\mathbf x)$. For a class this means a classifier trained on noisy pictures, which a later chapter
# does (guided diffusion). And the equation is exact, where chapter 01's multiplication by $r(\mathbf x)$ at every
# level was so only for a suitable $r$: the suitable one is this probability.
#
# On the toy, let $y$ be a crude measurement, $y=x(0)+\text{noise}$ of deviation $0.5$, and let it read $0.7$. Each
# bump is conditioned as in chapter 00, (0.5), so that all is known: $p_t(y\mid x)$, and the answer, three bumps with
# other weights, other means and less width.

# %%
# check: SDE 14
y, r = 0.7, 0.5
v, m = toy.std**2, toy.means[:, 0]
wanted = md.Mixture(
    toy.weights * torch.exp(-((y - m) ** 2) / (2 * (v + r**2))),
    (m + v / (v + r**2) * (y - m))[:, None],
    (v * r**2 / (v + r**2)) ** 0.5,
)


def wish_slope(x, t, noisy=True):
    """∇ log p_t(y | x); noisy=False asks the clean p_0(y | x) at noisy x."""
    s, std = (vp.s(t).item(), vp.std(t).item()) if noisy else (1.0, 0.0)
    spread = s**2 * v + std**2
    # samplers run without gradients; this one slope needs them
    with torch.enable_grad():
        x = x.clone().requires_grad_(True)
        share = (toy.weights.log() - (x - s * m) ** 2 / (2 * spread)).log_softmax(1)
        # x(0) given x(t), within each bump
        mean, variance = m + s * v / spread * (x - s * m), v * std**2 / spread
        log_y = (share - (y - mean) ** 2 / (2 * (variance + r**2))).logsumexp(1)
        return torch.autograd.grad(log_y.sum(), x)[0]


x = torch.linspace(-3, 3, 61, dtype=double)[:, None]
for t in (0.05, 0.3, 0.8):
    torch.testing.assert_close(
        toy_score(x, t, vp) + wish_slope(x, t),
        wanted.score(x, vp.s(t).item(), vp.std(t).item()),
        rtol=1e-7,
        atol=1e-9,
    )

print(
    "share of each bump:       " + "  ".join(f"{w:.3f}" for w in toy.weights) + "   all data"
)
print(
    "                          " + "  ".join(f"{w:.3f}" for w in wanted.weights) + "   wanted"
)
for noisy in (True, False):

    def wish(x, sigma, noisy=noisy):
        """The x̂_0 whose score is the sum of both slopes; x is x(t)/s(t)."""
        t = vp.t_of_sigma(sigma)
        return toy_denoise(x, sigma) + vp.s(t) * sigma**2 * wish_slope(vp.s(t) * x, t, noisy)

    drawn = md.sde(wish, noise_1d(0), vp, times, noise_1d)
    share = torch.cdist(drawn, toy.means).argmin(1).bincount(minlength=3) / count
    label = "noisy x is asked" if noisy else "as if x were clean"
    print("                          " + "  ".join(f"{w:.3f}" for w in share) + f"   {label}")
    # four standard errors
    off = (share - wanted.weights).abs()
    right = (off < 4 * (wanted.weights * (1 - wanted.weights) / count).sqrt()).all()
    assert right == noisy

# %% [markdown]
# ## 3.20 Predictor and corrector
#
# A numerical step down the reverse SDE puts the points a little wrong, and so their density is not quite $p_t$. The
# density can be mended without knowing which point is wrong. At every $t$ we hold the score of the density that the
# points *should* have, and Langevin dynamics (section 3.2) brings points from any density towards that one. So
# alternate: a **predictor** step takes the points to the next time, a **corrector** step or two of Langevin dynamics
# repairs their density there. NCSN's annealed Langevin is all corrector, DDPM's ancestral sampling all predictor.
#
# The size of a Langevin step should depend on how steep the density is. The paper asks that push and kick keep a
# fixed ratio $r$, their *signal-to-noise ratio*. The push is $\epsilon\,\nabla\log p_t$ and the kick
# $\sqrt{2\epsilon}\,\mathbf z$; **set** $\epsilon\|\nabla\log p_t\|=r\sqrt{2\epsilon}\,\|\mathbf z\|$ and solve:
#
# $$ \epsilon=2\Big(r\,\frac{\|\mathbf z\|}{\|\nabla\log p_t\|}\Big)^2 \tag{3.11}\label{eq:3-11} $$
#
# (The paper's Algorithms 4 and 5 have a factor $\alpha$ in front, 1 for VE and $\alpha_i=1-\beta_i$ for VP; its code
# takes the norms as means over the batch, its text those of the one point.) The norms make sense in many dimensions,
# where they hardly vary. So the experiment has 64: three bumps again, in directions at random, and the VE path. The
# question is what to do with a fixed number of network calls: twice as many predictor steps, or each corrected once?

# %%
# check: 3.11
D = 64
centres = torch.randn(3, D, generator=rng(5), dtype=double)
wide = md.Mixture(torch.tensor([0.5, 0.3, 0.2]), centres, std=0.15)


def wide_denoise(x, sigma):
    return wide.denoise(x, 1.0, sigma)


# one corrector step and one predictor step by hand, against the library
path, (t, t_next) = md.GeometricVEPath(0.02, 50.0), (0.5, 0.48)
start, z, z_next = torch.randn(3, 500, D, generator=rng(6), dtype=double)
x = wide.sample(500, rng(7)) + path.sigma(t) * start
by_library = md.sde(
    wide_denoise,
    x,
    path,
    torch.tensor([t, t_next], dtype=double),
    lambda i: [None, z, z_next][i],
    corrections=1,
    snr=0.16,
)
score = wide.score(x, 1.0, path.sigma(t).item())
epsilon = 2 * (0.16 * z.norm(dim=1) / score.norm(dim=1))[:, None] ** 2
push, kick = epsilon * score, (2 * epsilon).sqrt() * z
# what (3.11) was made for
torch.testing.assert_close(push.norm(dim=1), 0.16 * kick.norm(dim=1))
x = x + push + kick
score = wide.score(x, 1.0, path.sigma(t).item())
x = x + path.g(t) ** 2 * (t - t_next) * score + path.g(t) * (t - t_next) ** 0.5 * z_next
torch.testing.assert_close(x, by_library)

print("mean squared distance to the nearest centre, in units in which data have 1.00")
print(f"{'score':<10}{'network calls':>15}{'predictor':>12}{'each corrected once':>22}")
width_of = {}
for trust in (1.0, 0.9):
    for calls in (40, 80, 320):
        for corrections in (0, 1):
            down = torch.linspace(1.0, 1e-5, calls // (1 + corrections), dtype=double)
            noise_wide = md.batch_noise(rng(8), 500, (D,))
            x = md.sde(
                # the score times `trust`
                lambda x, sigma, trust=trust: x + trust * (wide_denoise(x, sigma) - x),
                path.std(1.0) * noise_wide(0),
                path,
                torch.cat([down, torch.zeros(1)]),
                noise_wide,
                "reverse-diffusion",
                corrections,
            )
            distance = torch.cdist(x, centres).min(1).values
            width_of[trust, calls, corrections] = (distance**2).mean() / D / wide.std**2
        one, two = (width_of[trust, calls, k] for k in (0, 1))
        print(
            f"{'exact' if trust == 1 else 'times 0.9':<10}{calls:>15}{one:>12.2f}{two:>22.2f}"
        )
        # the corrector earns its calls only where the score is wrong and the steps are many
        assert (two < one) == (trust < 1 and calls >= 80)

# %% [markdown]
# With the exact score the corrector is a waste here: the calls are better spent on finer steps, and where the steps
# are fine, the corrector's own error is what is left (a Langevin step of finite size widens the density, and with
# $r=0.16$ that can be seen). It pays when the score is not right and the steps are many: then the predictor's errors
# add up from time to time, while the corrector at each time pulls towards nearly the right density and forgets. The
# paper reports a gain at equal cost for its networks on CIFAR-10; the toy suggests that such a gain comes from the
# errors of the network. But it is an example and no law: one predictor, one $r$, one way of spoiling the score.
#
# ## 3.21 DDIM is Euler's method, in the right coordinate
#
# DDIM walks without noise too. Is its walk the flow of $\eqref{eq:sde-13}$? **Divide the scale out**:
# $\bar{\mathbf x}=\mathbf x/s$ has $s=1$, and $\eqref{eq:3-8}$ leaves $f=0$, $g^2=2\dot\sigma\sigma$. Then
# $\eqref{eq:sde-13}$ says $\dot{\bar{\mathbf x}}=-\dot\sigma\sigma\,\nabla\log p(\bar{\mathbf x};\sigma)$ with the
# density of $\mathbf x(0)+\sigma\mathbf n$. **Tweedie**: the slope is $-\boldsymbol\epsilon/\sigma$, with
# $\boldsymbol\epsilon=\mathbb E[\mathbf n\mid\bar{\mathbf x}]=(\bar{\mathbf x}-\hat{\mathbf x}_0)/\sigma$. And **the
# chain rule** removes the clock:
#
# $$ \frac{d\bar{\mathbf x}}{d\sigma}=\boldsymbol\epsilon(\bar{\mathbf x},\sigma)
#    =\frac{\bar{\mathbf x}-\hat{\mathbf x}_0(\bar{\mathbf x},\sigma)}{\sigma} \tag{3.12}\label{eq:3-12} $$
#
# It is $\eqref{eq:ddim-14}$, met from the other side. VP, sub-VP and VE have disappeared from it: **their flows are
# one and the same family of curves**, and they differ only in how fast these are traversed and at what scale they are
# drawn. And $\eqref{eq:ddim-13}$ is Euler's step for it.
#
# A solver is not indifferent to the coordinate, and DDIM's authors say that theirs, with steps in $d\sigma$ and not
# in $dt$, makes a difference when the steps are few. Two extreme cases show what to expect. If all data are one
# point, the guess $\hat{\mathbf x}_0$ stays where it is, the curves of $\eqref{eq:3-12}$ are **straight lines**, and
# Euler in $\sigma$ is exact. If the data are $\mathcal N(\mathbf 0,\mathbf I)$, then $p_t$ does not change under VP,
# its flow **stands still**, and Euler in VP's time is exact. Anything else lies in between, and has to be measured.
#
# The check first: DDIM, as the library has it for chains, against Euler in $\sigma$, as it has it for paths, to the
# last digit; the one family of curves; and the two extremes.


# %%
# check: 3.12
def toy_eps(x, t):
    """The perfect network of DDPM's chain; t counts from 0."""
    level = chain.sigma[int(t[0])]
    z = x * (1 + level**2).sqrt()
    return (z - toy_denoise(z, level.item())) / level


kept = md.subsequence(1000, 20)
start = torch.randn(200, 1, generator=rng(9), dtype=double)
by_ddim = md.ddim(chain, toy_eps, start, noise=None, steps=kept, clip=False)
levels = torch.cat([chain.sigma[kept].flip(0), torch.zeros(1, dtype=double)])
wide_start = start * (1 + levels[0] ** 2).sqrt()
by_euler = md.ode(toy_denoise, wide_start, md.EDMPath(), levels, "euler")
torch.testing.assert_close(by_ddim, by_euler, rtol=1e-9, atol=1e-9)

# the same curve under every path: from σ = 0.05 to σ = 4, adaptively
begin, ends = toy.sample(50, rng(10)), {}
for name, path in (
    ("VP", md.VPPath),
    ("sub-VP", md.SubVPPath),
    ("VE", md.GeometricVEPath),
    ("EDM", md.EDMPath),
):
    t0, t1 = (path().t_of_sigma(level).item() for level in (0.05, 4.0))
    part = path(t_min=t0, t_max=t1) if name != "EDM" else path(0.05, 4.0)
    x = md.ode_encode(toy_denoise, part.s(t0) * begin, part, rtol=1e-9, atol=1e-9)
    ends[name] = x / part.s(t1)
    torch.testing.assert_close(ends[name], ends["VP"], rtol=1e-6, atol=1e-6)
    # and its slope is (3.12)
    x, t = part.s(t1) * begin, torch.tensor(t1, dtype=double)
    v = part.velocity(x, part.denoised(toy_denoise, x, t), t)
    d_by_dt = v / part.s(t) - part.s_dot(t) / part.s(t) ** 2 * x
    eps = (begin - toy_denoise(begin, 4.0)) / 4.0
    torch.testing.assert_close(d_by_dt / part.sigma_dot(t), eps, rtol=1e-7, atol=1e-9)
print("DDIM = Euler in σ; VP, sub-VP, VE and EDM carry 50 points to the same places")

# the two extremes, in three steps: one data point at 0.3; and N(0, 1)
sigmas = torch.tensor([40.0, 9.0, 1.5, 0.2], dtype=double)
ends_of = {}
for data, perfect in (
    ("point", lambda x, sigma: torch.full_like(x, 0.3)),
    ("normal", lambda x, sigma: x / (1 + sigma**2)),
):
    for name, path in (("σ", md.EDMPath()), ("VP", vp)):
        t = path.t_of_sigma(sigmas)
        x = 40.0 * torch.ones(1, 1, dtype=double)
        ends_of[data, name] = md.ode(perfect, x * path.s(t[0]), path, t, "euler") / path.s(
            t[-1]
        )
at_point = 0.3 + (40 - 0.3) * 0.2 / 40
at_normal = 40 * ((1 + 0.2**2) / (1 + 40**2)) ** 0.5
assert (
    abs(ends_of["point", "σ"] - at_point)
    < 1e-12
    < 0.1
    < abs(ends_of["point", "VP"] - at_point)
)
assert (
    abs(ends_of["normal", "VP"] - at_normal)
    < 1e-9
    < 0.1
    < abs(ends_of["normal", "σ"] - at_normal)
)

# %%
low, high = 0.2, 40.0
top = high * torch.randn(400, 1, generator=rng(11), dtype=double)
flat_path, ve_part = md.EDMPath(low, high), md.VEPath(low, high)
vp_part = md.VPPath(t_min=vp.t_of_sigma(low).item(), t_max=vp.t_of_sigma(high).item())
truth = md.ode_decode(toy_denoise, top, flat_path, rtol=1e-11, atol=1e-11)
calls, errors = [16, 32, 64, 128, 256, 512], {}
for name, path, solver in (
    ("Euler in VE's time", ve_part, "euler"),
    ("Euler in VP's time", vp_part, "euler"),
    ("Euler in σ (DDIM)", flat_path, "euler"),
    ("Heun in VP's time", vp_part, "heun"),
    ("Heun in σ", flat_path, "heun"),
):
    errors[name] = []
    for n in calls:
        # the same noise levels for all; Heun calls the network twice a step
        t = torch.linspace(
            vp_part.t_max,
            vp_part.t_min,
            n // (2 if solver == "heun" else 1) + 1,
            dtype=double,
        )
        times_ = path.t_of_sigma(vp.sigma(t))
        begin = top * path.s(times_[0])
        x = md.ode(toy_denoise, begin, path, times_, solver) / path.s(times_[-1])
        errors[name].append((x - truth).abs().median().item())
fig, ax = plt.subplots(figsize=(6.0, 3.2))
looks = (
    (plots.INK, "o:"),
    (plots.ORANGE, "o--"),
    (plots.ORANGE, "o-"),
    (plots.BLUE, "s--"),
    (plots.BLUE, "s-"),
)
for (name, error), (colour, look) in zip(errors.items(), looks, strict=True):
    order = math.log2(error[-2] / error[-1])
    ax.loglog(calls, error, look, color=colour, ms=4, label=f"{name}: order {order:.2f}")
    print(f"{name:<20}" + "".join(f"{e:>10.1e}" for e in error) + f"   order {order:.2f}")
    assert abs(order - (2 if "Heun" in name else 1)) < 0.12
ax.set(
    xlabel="network calls",
    ylabel=r"median error at $\sigma=0.2$",
    title="The order is the method's; the factor in front is the coordinate's",
)
ax.set_xticks(calls, calls)
ax.minorticks_off()
ax.legend()
plt.show()
for k in range(len(calls)):
    in_ve, in_vp, in_sigma = (
        errors[f"Euler in {name}"][k] for name in ("VE's time", "VP's time", "σ (DDIM)")
    )
    assert 1.3 * in_vp < in_sigma < 2 * in_vp and in_sigma < in_ve

# %% [markdown]
# The order of section 0.9 comes out in every coordinate. The factor differs: in VE's clock, where $t=\sigma^2$ as in
# the paper's code, Euler is the worst, and $\sigma$ is better, as DDIM's authors say. But $\sigma$ is not the best
# for these data and these levels. The data's deviation is near 1, and VP's scale, which keeps a unit Gaussian still,
# has errors smaller by a factor of about one and a half. What is special about $\sigma$ is something else: the result
# of $\eqref{eq:ddim-13}$ depends on the list of levels alone, and not on a clock that somebody chose. Which levels
# one should step through, and whether Heun's correction is worth its second call, is what EDM is about.
#
# ## 3.22 Likelihood without a bound
#
# A flow gives more than samples. Where points spread out, the density falls, by as much as a small volume around the
# point has grown. Follow a point for a short time $h$, $\mathbf x'=\mathbf x+h\,\mathbf v(\mathbf x,t)$. **Change of
# variables**, chapter 00's (0.13):
# $\log p_{t+h}(\mathbf x')=\log p_t(\mathbf x)-\log\big|\det(\mathbf I+h\,\partial\mathbf v/\partial\mathbf x)\big|$.
# **Expand the determinant**: each product in it other than that of the diagonal contains at least two entries beside
# the diagonal, hence $h^2$. The diagonal gives
# $\prod_k(1+h\,\partial v_k/\partial x_k)=1+h\sum_k\partial v_k/\partial x_k+O(h^2)$. So along the path of a point
#
# $$ \frac{d}{dt}\log p_t(\mathbf x(t))=-\nabla\!\cdot\mathbf v(\mathbf x(t),t), $$
#
# the *instantaneous change of variables*. **Integrate from 0 to** $T$, with $\mathbf v=\tilde{\mathbf f}_\theta$ the
# right side of $\eqref{eq:sde-13}$ in which the network stands for the score:
#
# $$ \log p_0(\mathbf x(0))=\log p_T(\mathbf x(T))+\int_0^T\nabla\!\cdot\tilde{\mathbf f}_\theta(\mathbf x(t),t)\,dt \tag{SDE 39}\label{eq:sde-39} $$
#
# Send the data point up to the noise, look up its density there, and add what has been collected on the way. Nothing
# is an inequality. It is the likelihood of *this model*: of the distribution that the ODE with this network makes of
# $p_T$. (The reverse SDE with the same imperfect network makes another one, and the bound of chapter 02 speaks of a
# third, that of the chain.) Both integrals are one system for one adaptive solver; the library, like the paper, uses
# SciPy's Runge–Kutta 4(5).
#
# The check has four parts: the determinant itself; the equation, by hand and by the library, at one point of the toy;
# the toy at many points and on all paths; and a case where the paper's recipe needs care. For $p_T$ one takes a
# normal distribution, $\mathcal N(\mathbf 0,s^2\sigma^2\mathbf I)$ or, for VP, $\mathcal N(\mathbf 0,\mathbf I)$,
# because $p_T$ itself is unknown. But $p_T$ still contains $s(T)\,\mathbf x(0)$, with $s(T)\approx e^{-5}$. If the
# data have mean $\mu$, a small $e^{-5}\mu$ remains. We move the toy by 3 and see.

# %%
# check: SDE 39
# the determinant of I + hJ, and 1 + h tr J: the difference is of order h²
J = torch.randn(5, 5, generator=rng(12), dtype=double)
off = [abs(torch.det(torch.eye(5) + h * J) - 1 - h * J.trace()).item() for h in (1e-4, 5e-5)]
assert abs(off[0] / off[1] - 4) < 0.01


# (SDE 39) by hand, for one point: the path, and beside it the integral of the divergence
def slope(t, state):
    x = torch.tensor([[state[0]]], dtype=double, requires_grad=True)
    v = vp.f(t) * x - 0.5 * vp.g(t) ** 2 * toy_score(x, t, vp)
    (divergence_of_v,) = torch.autograd.grad(v.sum(), x)
    return [v.item(), divergence_of_v.item()]


begin = torch.tensor([[0.5]], dtype=double)
y = solve_ivp(slope, (0.01, 1), [0.5, 0.0], rtol=1e-9, atol=1e-10).y[:, -1]
by_hand = toy_log_prob(torch.tensor([[y[0]]], dtype=double), 1.0, vp) + y[1]
torch.testing.assert_close(by_hand, toy_log_prob(begin, 0.01, vp), rtol=0, atol=1e-6)
by_library = md.ode_log_prob(
    toy_denoise,
    begin,
    md.VPPath(t_min=0.01),
    log_prior=lambda z: toy_log_prob(z, 1.0, vp),
    rtol=1e-9,
    atol=1e-9,
)
torch.testing.assert_close(by_library, by_hand, rtol=0, atol=1e-6)

x = toy.sample(40, rng(13))
tight = {"rtol": 1e-8, "atol": 1e-8}
for name, path in (("VP", vp), ("sub-VP", sub_vp), ("VE", md.GeometricVEPath(0.02, 100.0))):
    xt = path.s(path.t_min) * x
    # what is exactly true at t_min, and at t = 0
    exact = toy_log_prob(xt, path.t_min, path)
    log_p = md.ode_log_prob(toy_denoise, xt, path, **tight)
    known_end = md.ode_log_prob(
        toy_denoise,
        xt,
        path,
        log_prior=lambda z, path=path: toy_log_prob(z, 1.0, path),
        **tight,
    )
    print(
        f"{name:<7} largest error: {(log_p - exact).abs().max():.5f} nats with a normal p_T"
    )
    assert (log_p - exact).abs().max() < 1e-3 and (known_end - exact).abs().max() < 1e-5

moved = md.Mixture(toy.weights, toy.means + 3, toy.std)
moved_denoise = lambda x, sigma: moved.denoise(x, 1.0, sigma)
s, std = vp.s(1.0).item(), vp.std(1.0).item()
xt = vp.s(vp.t_min) * (x + 3)
exact = moved.log_prob(xt, vp.s(vp.t_min).item(), vp.std(vp.t_min).item())
careless = md.ode_log_prob(moved_denoise, xt, vp, **tight)
careful = md.ode_log_prob(
    moved_denoise, xt, vp, log_prior=lambda z: moved.log_prob(z, s, std), **tight
)
print(
    f"moved by 3, under VP: error up to {(careless - exact).abs().max():.3f} nats with a normal p_T"
)
assert (careless - exact).abs().max() > 0.02 and (careful - exact).abs().max() < 1e-5

# %% [markdown]
# With centred data the normal $p_T$ is good to a thousandth of a nat; off centre, to a few hundredths, in one
# dimension, which in a thousand dimensions would no longer be small. Centre the data, or use what is known of $p_T$.
#
# ## 3.23 A divergence from one random vector
#
# In $d$ dimensions the divergence is the trace of a $d\times d$ matrix $J$ of derivatives. Backpropagation gives one
# row, $\mathbf e^\top J$, at the cost of one or two more network calls, and the trace needs $d$ rows: 64 for our
# digits, 3,072 for CIFAR-10. The way out is a random vector $\boldsymbol\epsilon$ with mean zero and covariance
# $\mathbf I$, and **linearity of the mean**, $\mathbb E[\epsilon_i\epsilon_j]=\delta_{ij}$:
#
# $$ \nabla\!\cdot\tilde{\mathbf f}_\theta=\sum_{ij}J_{ij}\,\mathbb E[\epsilon_i\epsilon_j]
#    =\mathbb E_{\boldsymbol\epsilon}\big[\boldsymbol\epsilon^\top\,\nabla\tilde{\mathbf f}_\theta\,\boldsymbol\epsilon\big]
#    \tag{SDE 40}\label{eq:sde-40} $$
#
# This is the **Skilling–Hutchinson** estimator: one backpropagation gives $\boldsymbol\epsilon^\top J$, and a dot
# product the rest. How noisy is it? Only the symmetric part $S=\frac12(J+J^\top)$ counts in
# $\boldsymbol\epsilon^\top J\boldsymbol\epsilon$. For signs, $\epsilon_i=\pm1$ with probability one half
# (*Rademacher*), the diagonal contributes $\epsilon_i^2=1$, exactly; what is random is
# $2\sum_{i<j}S_{ij}\,\epsilon_i\epsilon_j$, and **the products $\epsilon_i\epsilon_j$ are uncorrelated**, with
# variance 1. For normal $\boldsymbol\epsilon$, turn the coordinates so that $S$ is diagonal with entries $\lambda_i$
# (a normal vector stays normal); then the sum is $\sum\lambda_i\epsilon_i^2$, and **$\epsilon_i^2$ has variance 2**:
#
# $$ \operatorname{Var}_{\pm1}=4\sum_{i<j}S_{ij}^2,\qquad\operatorname{Var}_{\text{normal}}=2\sum_{ij}S_{ij}^2 \tag{3.13}\label{eq:3-13} $$
#
# The signs are never worse, for the second is the first plus $2\sum_iS_{ii}^2$, and exact where the coordinates do
# not act on each other. One probe is drawn for the *whole* path, not one for each evaluation: the integral of an
# unbiased estimate is unbiased, and the adaptive solver sees a smooth right side. With new dice in every call it
# would take the noise for error and shorten its steps (section 3.27).

# %%
# check: SDE 40, 3.13
d = 6
J = torch.randn(d, d, generator=rng(14), dtype=double)
S = (J + J.T) / 2
# all 64 vectors of signs: mean and variance without any randomness
signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d)), dtype=double)
values = ((signs @ J) * signs).sum(1)
torch.testing.assert_close(values.mean(), J.trace())
torch.testing.assert_close(values.var(correction=0), 4 * (S.triu(1) ** 2).sum())
probes = torch.randn(400_000, d, generator=rng(15), dtype=double)
values = ((probes @ J) * probes).sum(1)
assert abs(values.mean() - J.trace()) < 4 * values.std() / len(values) ** 0.5
assert abs(values.var() / (2 * (S**2).sum()) - 1) < 0.02
print(
    f"trace {J.trace():.3f}; variance with signs {4 * (S.triu(1) ** 2).sum():.1f}, normal {2 * (S**2).sum():.1f}"
)

# on a path: 300 probes for one point of a mixture in three dimensions
cloud = md.Mixture(
    torch.ones(3), torch.tensor([[1.0, 1, 0], [-1, 0, 1], [0, -1, -1.0]]), std=0.3
)
cloud_denoise = lambda x, sigma: cloud.denoise(x, 1.0, sigma)
short = md.EDMPath(0.05, 80.0)
x = torch.tensor([[0.8, 1.1, 0.2]], dtype=double)
exact = md.ode_log_prob(cloud_denoise, x, short, rtol=1e-6, atol=1e-6)
many_x = x.repeat(300, 1)
probed = md.ode_log_prob(
    cloud_denoise, many_x, short, md.rademacher(many_x, rng(16)), rtol=1e-6, atol=1e-6
)
error = probed.std() / 300**0.5
print(
    f"log p exactly {cloud.log_prob(x, 1.0, 0.05).item():.4f}, by the ODE {exact.item():.4f}, "
    f"by 300 probes {probed.mean():.3f} ± {error:.3f}"
)
assert abs(exact - cloud.log_prob(x, 1.0, 0.05)).item() < 1e-3
assert abs(probed.mean() - exact.item()) < 4 * error

# %% [markdown]
# ## 3.24 Bits for the digits
#
# Now the digits that the shipped model has never seen. Its network was trained on a chain, and is asked here between
# the chain's steps; `ContinuousDenoiser` does that, and its path runs over the chain's own levels, from
# $\sigma_1=0.0100$ to $\sigma_T=157$. We do not clip $\hat{\mathbf x}_0$: that would squeeze all that lies outside of
# $[-1,1]$ to within $\sigma_1$ of the ends, while the bins of the digits reach $1/16$ beyond, and it would put
# corners into what the solver wants smooth. Digits are integers, so they are **dequantised**, spread uniformly over
# their bins, and by chapter 00's (0.14)
#
# $$ \text{bits per dimension}\ \le\ -\frac{\log_2p(\mathbf x)}{D}+\log_2\frac{L-1}2 $$
#
# with $L=17$ levels, where the last term is 3. (The paper's code adds 7 for $L=256$. On $[-1,1]$ with $x=k/127.5-1$
# it is $\log_2127.5=6.994$; the 7 belongs to data divided by 128.)

# %% tags=["nbval-ignore-output"]
held_out = md.digits("test").x[:24].double()
D, side = 64, 2 / 16
denoise = md.ContinuousDenoiser(model.process, model.net, clip=False)
path = denoise.path()


def nats_at(x, path, seed=2):
    """log density of x at the path's first level, by the ODE of the shipped network with one probe."""
    # N(0, 1) of x_T, seen at the scale of x_T / √ᾱ_T
    prior = torch.distributions.Normal(0.0, (1 + path.sigma_max**2) ** 0.5)
    return md.ode_log_prob(
        denoise,
        x,
        path,
        md.rademacher(x, rng(seed)),
        lambda z: prior.log_prob(z).flatten(1).sum(1),
        rtol=1e-3,
        atol=1e-3,
    )


bound = md.likelihood_bound(model.process, model.net, held_out, rng(1), count=100)
uniform = md.dequantise(held_out, 17, rng(1))
flow_bits = md.bits_per_dim(nats_at(uniform, path), D, 17)
for name, bits in (("the chain's bound", bound.per_example), ("the ODE", flow_bits)):
    print(f"{name:<20}{bits.mean():.3f} ± {md.standard_error(bits):.3f} bits/dim")
paired = flow_bits - bound.per_example
print(f"difference, digit by digit: {paired.mean():.3f} ± {md.standard_error(paired):.3f}")

# %%
assert abs(flow_bits.mean() - 2.08) < 0.15 and abs(bound.total - 2.74) < 0.25
assert paired.mean() < -8 * md.standard_error(paired)

# %% [markdown]
# Two thirds of a bit less than the bound, and below the table of counts that beat the bound in section 2.15. Has the
# model become better? It is the same network. Some of the difference may be honest: the bound pays for Gaussian
# undoings with a fixed variance, and the flow has none. But one should be suspicious of a recipe that adds noise of
# one kind, uniform over a bin of width $\Delta=1/8$, and then asks for the density of data with noise of another
# kind, normal with $\sigma_1\approx\Delta/12$. Suppose a network were perfect and knew that digits are integers. Its
# density at $\sigma_1$ is a comb, a narrow normal tooth at every level, and most of a bin is empty. With
# $x=x_k+\Delta u$, $u$ uniform on $[-\frac12,\frac12]$, and **the second moment of a uniform number** $\frac1{12}$,
# the uniform recipe charges for a level of true probability $P_k$, in bits and as long as the teeth do not overlap,
#
# $$ -\log_2P_k+\underbrace{\frac{\Delta^2\log_2e}{24\,\sigma^2}+\log_2\frac{\sigma\sqrt{2\pi}}{\Delta}}_{\text{what the recipe costs a perfect model}} \tag{3.14}\label{eq:3-14} $$
#
# which is the divergence of the uniform distribution from the tooth. It is smallest at $\sigma=\Delta/\sqrt{12}$,
# where both have the same variance: $\frac12\log_2\frac{2\pi e}{12}=0.25$ bits. At $\sigma_1$ it is seven bits per
# pixel.
#
# There is a recipe that costs a perfect model nothing: put the noise of $\sigma$ itself on the level, which stays
# within the bin almost surely when $\sigma\ll\Delta$. By **Jensen** in the form of chapter 00's (0.12), with that
# noise as $q$,
#
# $$ -\log_2P_k\le\mathbb E\big[-\log_2p(x_k+\sigma n)\big]-\underbrace{\tfrac12\log_2(2\pi e\,\sigma^2)}_{\text{entropy of the noise}} $$
#
# So three recipes, each an upper bound of a code for the same integers: uniform at $\sigma_1$, normal at $\sigma_1$,
# and uniform at $\sigma=\Delta/\sqrt{12}$, where the ODE begins a little higher. And two models: the shipped network,
# and the perfect model of independent pixels with the counted probabilities of section 2.15, whose density is a sum
# that needs no ODE.

# %% tags=["nbval-ignore-output"]
# check: 3.14
grey = 2 * torch.arange(17, dtype=double) / 16 - 1
pixels = md.digits("train").pixels.flatten(1)
tally = torch.stack([(pixels == k).sum(0) for k in range(17)], 1).double() + 0.5
log_share = (tally / tally.sum(1, keepdim=True)).log()
k = md.digits("test").pixels[:24].flatten(1).long()
u = (torch.arange(400, dtype=double) + 0.5) / 400 - 0.5
q = torch.special.ndtri(u + 0.5)


def comb_bits(sigma, shifts, extra):
    """Bits/dim of each digit under independent combs, averaged over the shifts; `extra` is the price of the unit."""
    # (17 true levels, shifts, 17 teeth)
    apart = grey[:, None, None] + shifts[:, None] - grey
    log_tooth = -(apart**2) / (2 * sigma**2) - 0.5 * math.log(2 * math.pi * sigma**2)
    nats = -torch.stack([(row + log_tooth).logsumexp(2).mean(1) for row in log_share])
    return nats.gather(1, k.T).mean(0) / math.log(2) + extra


def cost(sigma):
    """What (3.14) adds."""
    return side**2 / (24 * sigma**2) / math.log(2) + math.log2(
        sigma * (2 * math.pi) ** 0.5 / side
    )


def entropy(sigma):
    return 0.5 * math.log2(2 * math.pi * math.e * sigma**2)


code = -log_share.gather(1, k.T).mean(0) / math.log(2)
sigma_1, even = path.sigma_min, side / 12**0.5
assert abs(cost(even) - 0.5 * math.log2(2 * math.pi * math.e / 12)) < 1e-12
for sigma in (sigma_1, even):
    # a single tooth of probability 1, by quadrature
    tooth = torch.distributions.Normal(0.0, sigma).log_prob(side * u)
    assert abs(-tooth.mean() / math.log(2) + math.log2(1 / side) - cost(sigma)) < 1e-3
    # where the tails of neighbours overlap they help, so that (3.14) is the most it can cost
    extra = (comb_bits(sigma, side * u, 3) - code).mean()
    print(
        f"cost to a perfect model at σ = {sigma:.3f}: {extra:.2f} bits/dim, by (3.14) {cost(sigma):.2f}"
    )
    assert 0.4 * cost(sigma) < extra <= cost(sigma)

normal_digits = held_out + sigma_1 * torch.randn(
    held_out.shape, generator=rng(3), dtype=double
)
higher = md.EDMPath(even, path.sigma_max)
table = {
    "uniform, from σ = 0.010": (flow_bits, comb_bits(sigma_1, side * u, 3)),
    "normal,  from σ = 0.010": (
        -nats_at(normal_digits, path) / D / math.log(2) - entropy(sigma_1),
        comb_bits(sigma_1, sigma_1 * q, -entropy(sigma_1)),
    ),
    "uniform, from σ = 0.036": (
        md.bits_per_dim(nats_at(uniform, higher), D, 17),
        comb_bits(even, side * u, 3),
    ),
}
print(f"{'bits/dim':<28}{'shipped network':>16}{'perfect, independent':>24}")
for name, row in table.items():
    print(f"{name:<28}{row[0].mean():>16.2f}{row[1].mean():>24.2f}")
print(f"{'without the ODE':<28}{bound.total:>13.2f} or less{code.mean():>17.2f} exactly")

# %%
shipped, perfect = ([row[i].mean().item() for row in table.values()] for i in (0, 1))
assert perfect[0] > 4 * shipped[0]
# 256 levels, σ = 0.001
small = (2 / 255) ** 2 / (24 * 0.001**2) / math.log(2) + math.log2(
    0.001 * (2 * math.pi) ** 0.5 * 255 / 2
)
print(f"(3.14) for 256 levels and σ = 0.001: {small:.2f} bits/dim")
assert 2 < small < 2.1
assert abs(perfect[1] - code.mean()) < 0.02 and abs(shipped[1] - 2.55) < 0.15
assert shipped[2] < perfect[2] - 0.5 and abs(shipped[1] - perfect[1]) < 0.25
assert abs(shipped[2] - 1.86) < 0.15 and code.mean() < perfect[2] < code.mean() + 0.26

# %% [markdown]
# Read the first row again. By the standard recipe a model that knows the integers needs more than four times the bits
# of a network that cannot round: the recipe rewards the network for what it has not learned. In the second row, under
# noise of the right kind, the network has to pay for its smoothness, the perfect model gets its exact code, and the
# two come out nearly equal. The third row is fair to both, and there knowing what a digit looks like is worth about
# three quarters of a bit per pixel.
#
# All of these are upper bounds of codes for the same digits, and all are true; a number of bits per dimension from an
# ODE has to say with which noise, and from which $\sigma$. (The paper dequantises uniformly, and its code starts at
# $t=10^{-5}$, where $\sigma=0.001$ for VP, an eighth of a bin of 256 levels. By $\eqref{eq:3-14}$, as printed below
# the table, a model that resolved the grey levels would pay two bits per dimension there for it.)
#
# ## 3.25 One picture, one latent
#
# The ODE takes every $\mathbf x(0)$ to one $\mathbf x(T)$ and back. And which one does not depend on the network: if
# the score is right, the velocity is right, and there is only one. Two perfect models, of whatever architecture and
# seed, give the same picture the same latent. The paper calls this a **uniquely identifiable encoding**; the latents
# of a variational autoencoder or a GAN are not like that.
#
# On a line the map can be written down: points keep their share to the left, so $x(T)=F_T^{-1}(F_0(x(0)))$. We train
# two small networks on the toy, by $\eqref{eq:sde-7}$, that differ in width, seed, and the examples they have seen,
# and look at all their answers: latents and likelihoods.

# %% tags=["nbval-ignore-output"]
part = md.VPPath(t_min=0.01)
objective, nets = md.ScoreMatching(part), {}
for name, width_, seed in (("A", 64, 0), ("B", 96, 1)):
    torch.manual_seed(seed)
    mlp = md.MLP(1, width=width_)
    # the network says −sσ times the score, which is of size 1 at every t
    score_net = lambda x, t, mlp=mlp: -mlp(x, 1000 * t) / part.std(t).to(x)[:, None]
    optimiser = torch.optim.Adam(mlp.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    source = rng(seed)
    for _ in range(1500):
        x0 = toy.sample(512, source).float()
        # more often at small times, where there is more to learn
        t = (0.1 + 0.9 * torch.rand(512, generator=source)) ** 2
        loss = objective.loss(score_net, x0, t, objective.draw_noise(x0, source))[
            "loss"
        ].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()

    def learned(x, sigma, mlp=mlp):
        """x̂_0 at x = x_0 + σ n, from the noise that the network sees in x(t) = s x."""
        level = torch.as_tensor(sigma, dtype=double)
        t = 1000 * part.t_of_sigma(level).expand(len(x))
        return x - level * mlp(x / (1 + level**2).sqrt(), t)

    nets[name] = learned
    mlp.double()

point = torch.linspace(-1.3, 1.6, 59, dtype=double)[:, None]
likely = toy.log_prob(point) > math.log(0.02)
begin = part.s(0.01) * point
latent = {name: md.ode_encode(net, begin, part, 1e-4, 1e-4) for name, net in nets.items()}
latent["exact"] = torch.special.ndtri(toy_cdf(begin[:, 0], 0.01, part))[:, None]
fresh = part.q_sample(
    toy.sample(400, rng(17)), 0.01, torch.randn(400, 1, generator=rng(18), dtype=double)
)
true_nats = toy_log_prob(fresh, 0.01, part)
for name, net in nets.items():
    off = (latent[name] - latent["exact"])[likely].abs().mean()
    lost = (true_nats - md.ode_log_prob(net, fresh, part, rtol=1e-4, atol=1e-4)).mean()
    print(
        f"network {name}: latents off by {off:.3f} on average; "
        f"log-likelihood {lost:.3f} nats below the truth"
    )
    assert off < 0.1 and -0.01 < lost < 0.15
apart = (latent["A"] - latent["B"])[likely].abs().mean()
print(f"A and B are {apart:.3f} apart, where the latents have deviation 1")
assert apart < 0.12

fig, ax = plt.subplots(figsize=(5.6, 3.0))
ax.plot(
    point,
    latent["exact"],
    color=plots.INK,
    lw=4,
    alpha=0.3,
    label="exact: $F_T^{-1}(F_0(x))$",
)
ax.plot(point, latent["A"], color=plots.BLUE, label="network A")
ax.plot(point, latent["B"], "--", color=plots.ORANGE, label="network B")
ax.set(
    xlabel="data $x(0)$",
    ylabel="latent $x(1)$",
    title="Two networks that were trained apart agree on the latents",
)
ax.legend()
plt.show()

# %% [markdown]
# ## 3.26 At the paper's scale
#
# The commands of chapter 02 train DDPM's network on CIFAR-10. A trained run, ours or an imported one, is then sampled
# and measured with what this chapter derived:
#
# ```
# minidiff train ddpm-cifar10 --data.source cifar10.npz --out runs/cifar10
# minidiff sample runs/cifar10 -n 64 --sampler ddim --steps 50 --eta 0
# minidiff sample runs/cifar10 -n 64 --sampler heun --steps 18
# minidiff likelihood runs/cifar10 --ode
# ```
#
# What a table costs is the number of network calls for one image, times 50,000 images:

# %%
from torch.utils.flop_counter import FlopCounterMode

with torch.device("meta"):
    big = md.build(md.recipe("ddpm-cifar10"), (3, 32, 32), 256)
    with FlopCounterMode(display=False) as counter:
        big.net(torch.zeros(1, 3, 32, 32), torch.zeros(1))
flop = counter.get_total_flops()
assert 1e10 < flop < 1.5e10
print(f"one call {flop / 1e9:.1f} GFLOP; 50,000 images at a sustained 100 TFLOP/s:")
for name, calls in (
    ("DDIM, 10 steps", 10),
    ("Heun, 18 steps", 35),
    ("DDIM, 100 steps", 100),
    ("ancestral, 1000 steps", 1000),
    ("predictor–corrector, 1000 steps", 2000),
):
    print(f"   {name:<34}{calls:>5} calls{50_000 * calls * flop / 1e14 / 3600:>8.2f} hours")

# %% [markdown]
# | CIFAR-10, 50,000 samples | paper | official code | ours |
# |---|---|---|---|
# | DDIM, FID, 10 steps, $\eta=0$ | 13.36 | | not run here |
# | DDIM, FID, 100 steps, $\eta=0$ | 4.16 | | not run here |
# | DDIM, FID, 10 steps, $\eta=1$ | 41.07 | | not run here |
# | SDE, VE, NCSN++ deep: FID, Inception Score | 2.20, 9.89 | 2.20, 9.89 | not run here |
# | SDE, sub-VP, DDPM++ deep: bits/dim by the ODE | 2.99 | 2.99 | not run here |
# | the same: FID of the ODE's samples | 2.92 | 2.92 | not run here |
#
# The column "official code" is what the README of the paper's code states for its released weights.
#
# ## 3.27 What goes wrong
#
# **A network that is asked in steps.** A chain's network knows a thousand noise levels. If $\sigma$ is rounded to the
# nearest one, as the library's `GaussianDenoiser` does, the right side of the ODE jumps a thousand times, and an
# adaptive solver shortens its steps at the jumps it meets. **New dice in every call** do the same to it. **The
# missing half**: $g^2$ in place of $\frac12g^2$ in the ODE gives a crowd that is too narrow, and nothing crashes. **A
# step that is not the grid's**: the paper's code lets its Euler steps down the ODE have the length $1/N$, while its
# times are $(1-\epsilon)/(N-1)$ apart, with $\epsilon$ the last time; with few steps each falls short.


# %% tags=["nbval-ignore-output"]
def calls_needed(perfect, probe=None):
    """How often RK45 asks for x̂_0 on the way of five points up to the noise."""
    asked = []

    def counted(x, sigma):
        asked.append(sigma)
        return perfect(x, sigma)

    five = torch.linspace(-1, 1, 5, dtype=double)[:, None]
    part = md.EDMPath(chain.sigma[20].item(), chain.sigma[-1].item())
    md.ode_log_prob(counted, five, part, probe, rtol=1e-4, atol=1e-4)
    return len(asked)


def in_steps(x, sigma):
    """The perfect network, asked at the chain's nearest level."""
    level = chain.sigma[(chain.sigma.log() - math.log(sigma)).abs().argmin()]
    return x - sigma * (x - toy_denoise(x, level.item())) / level


smooth, rounded = calls_needed(toy_denoise), calls_needed(in_steps)
print(f"σ rounded to the chain's levels: {rounded} network calls instead of {smooth}")


def estimate(fresh):
    """Function calls of RK45 for the divergence along one path of a mixture in three dimensions."""
    dice, calls = rng(18), []
    fixed = md.rademacher(torch.zeros(3, dtype=double), rng(19))

    def slope(sigma, state):
        calls.append(sigma)
        here = torch.from_numpy(state[:3])[None].requires_grad_(True)
        v = (here - cloud_denoise(here, sigma)) / sigma
        probe = md.rademacher(fixed, dice) if fresh else fixed
        (row,) = torch.autograd.grad((v * probe).sum(), here)
        return torch.cat([v[0].detach(), (row[0] @ probe)[None]]).numpy()

    solve_ivp(slope, (0.05, 80.0), [0.8, 1.1, 0.2, 0.0], rtol=1e-3, atol=1e-3)
    return len(calls)


one_probe, many_probes = estimate(False), estimate(True)
print(f"a new probe in every call:       {many_probes} calls instead of {one_probe}")

start = noise_1d(0)
h, x = 1 / 400, start.clone()
for t in torch.linspace(1.0, 1e-3, 400, dtype=double).tolist():
    x = x - (vp.f(t) * x - vp.g(t) ** 2 * toy_score(x, t, vp)) * h
to_bump = torch.cdist(x, toy.means).min(1).values.square().mean().sqrt()
print(
    f"g² in place of ½ g²:             deviation within a bump {to_bump:.3f} instead of 0.150"
)

grid_10 = torch.linspace(1.0, 1e-3, 10, dtype=double)
off = {}
truth = md.ode_decode(toy_denoise, start, vp, rtol=1e-8, atol=1e-8)
for name, h in (("1/N", 1 / 10), ("(1 − ε)/(N − 1)", (1 - 1e-3) / 9)):
    x = start
    # all steps but the last, which would end at 0 or below
    for t in grid_10[:-1].tolist():
        x = x - h * vp.velocity(x, vp.denoised(toy_denoise, x, t), t)
    off[name] = (x - truth).abs().mean().item()
print(
    "ten times, steps of length       "
    + ",  ".join(f"{name}: off by {value:.3f}" for name, value in off.items())
)
assert rounded > 1.2 * smooth and many_probes > 2 * one_probe and to_bump < 0.1
assert off["1/N"] > 1.05 * off["(1 − ε)/(N − 1)"]

# %% [markdown]
# ## 3.28 Exercises
#
# Run the cells tagged `setup` and begin; nothing else of the chapter is needed. Points are given for what the tests,
# visible and hidden, accept; the two exercises on paper and the experiment are read by a person.
#
# **Exercise 3.1 (3 points, on paper).** In DDIM's family $\eqref{eq:ddim-7}$ the noise $\sigma_t$ is free as long as
# the root $\sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}$ is real. Find the largest $\sigma_t$ allowed, and show that with
# DDIM's value at $\eta=1$,
# $\sigma_t^2=\frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\big(1-\frac{\bar\alpha_t}{\bar\alpha_{t-1}}\big)$, the root is
# always real, while with the larger $\hat\sigma_t^2=1-\frac{\bar\alpha_t}{\bar\alpha_{t-1}}$ in its place it may fail
# to be.

# %% [markdown] nbgrader={"grade": true, "grade_id": "largest_noise", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# The condition is $\sigma_t^2\le1-\bar\alpha_{t-1}$. With $\eta=1$, and $\bar\alpha_t<\bar\alpha_{t-1}$,
#
# $$ \begin{aligned} 1-\frac{\bar\alpha_t}{\bar\alpha_{t-1}}\le1-\bar\alpha_t
#    \quad&\Longleftrightarrow\quad\bar\alpha_{t-1}-\bar\alpha_t\le\bar\alpha_{t-1}-\bar\alpha_t\bar\alpha_{t-1}\\
#    &\Longleftrightarrow\quad\bar\alpha_{t-1}\le1, \end{aligned} $$
#
# so $\sigma_t^2\le1-\bar\alpha_{t-1}$, and the root is real. With $\hat\sigma_t$ the condition reads
# $1-\bar\alpha_t/\bar\alpha_{t-1}\le1-\bar\alpha_{t-1}$, that is $\bar\alpha_{t-1}^2\le\bar\alpha_t$. For DDPM's
# chain of a thousand steps it holds except in the first ones; in a short sub-sequence $\bar\alpha_t$ may be much
# smaller than $\bar\alpha_{t-1}^2$, and it fails. (At the first step, $\bar\alpha_0=1$, only $\sigma_1=0$ is
# allowed.) Hence the larger noise can only be *added* to a mean that was computed with another $\sigma_t$, and then
# the marginals of the family are lost.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# **Exercise 3.2 (3 points, on paper).** A family that contains VP and sub-VP: the drift is
# $-\frac12\beta(t)\mathbf x$, and the variance is to be $V=(1-e^{-B})^p$ with $B=\int_0^t\beta$ and some $p>0$. Which
# $g$ does it need? For which $p$ is $g$ bounded as $t\to0$? How does the noise level $\sigma(t)$ begin, for small
# $B$?

# %% [markdown] nbgrader={"grade": true, "grade_id": "a_family_of_processes", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# Let $e=e^{-B}$ and $u=1-e$, so that $\dot u=\beta e$. The moment equation with $f=-\frac12\beta$ gives
#
# $$ \begin{aligned} g^2&=\dot V+\beta V=pu^{p-1}\beta e+\beta u^p\\
#    &=\beta\,u^{p-1}\big(pe+u\big)=\beta\,u^{p-1}\big(p-(p-1)u\big). \end{aligned} $$
#
# For $p=1$ it is $\beta$ (VP), for $p=2$ it is $\beta u(2-u)=\beta(1-e^{-2B})$ (sub-VP). It is never negative, since
# $0\le u\le1$. As $t\to0$, $u\to0$ and the bracket tends to $p$: bounded for $p\ge1$ only. With $s=e^{-B/2}$,
# $\sigma=\sqrt V/s\approx B^{p/2}$: VP begins like $\sqrt t$, sub-VP like $t$, where $\beta(0)>0$. The larger $p$,
# the longer the data stay nearly clean.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# **Exercise 3.3 (2 points).** Write one step of DDIM $\eqref{eq:ddim-12}$ with $\sigma$ by $\eqref{eq:ddim-16}$, from
# a level $\bar\alpha$ to the next one, $\bar\alpha_{\text{prev}}$ (1 in the last step).


# %% nbgrader={"grade": false, "grade_id": "ddim_step", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def ddim_step(xt, eps, kept, kept_prev, eta, z):
    """xt, eps, z: tensors of one shape; kept, kept_prev: the numbers ᾱ of this level and the next."""
    ### BEGIN SOLUTION
    sigma = eta * ((1 - kept_prev) / (1 - kept) * (1 - kept / kept_prev)) ** 0.5
    x0_hat = (xt - (1 - kept) ** 0.5 * eps) / kept**0.5
    return kept_prev**0.5 * x0_hat + (1 - kept_prev - sigma**2) ** 0.5 * eps + sigma * z
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ddim_step_test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# by hand: x̂_0 = (1 − 0.6 · 0.5) / 0.8 = 0.875, and nothing else at the end
three = torch.tensor([1.0, 0.5, 9.0], dtype=double)
assert abs(ddim_step(*three[:2], 0.64, 1.0, 1.0, three[2]) - 0.875) < 1e-12
### BEGIN HIDDEN TESTS
exercise_chain = md.GaussianDiffusion(md.linear_betas(1000), clip=False)
start_, eps_, z_ = torch.randn(3, 4, 2, generator=rng(40), dtype=double)
for eta in (0.0, 0.3, 1.0):
    for low_, high_ in ((0, 1), (100, 400), (700, 999)):
        # the library's walk over two kept steps
        x = start_
        for now, then in ((high_, low_), (low_, None)):
            a = exercise_chain.alpha_bar[now].item()
            b = 1.0 if then is None else exercise_chain.alpha_bar[then].item()
            x = ddim_step(x, eps_, a, b, eta, z_)
        expected = md.ddim(
            exercise_chain, lambda x, t: eps_, start_, lambda i: z_, [low_, high_], eta
        )
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 3.4 (3 points).** Write one Euler–Maruyama step *down* in time for the whole family of section 3.17:
# drift $f\mathbf x-\frac12(1+\lambda^2)g^2\nabla\log p_t$, noise $\lambda g$. `path` is one of the library's, and you
# may use its `f` and `g`; `score` is the score at $(\mathbf x,t)$; `t_next` is smaller than `t`.


# %% nbgrader={"grade": false, "grade_id": "step_down", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def step_down(x, score, path, t, t_next, lam, z):
    """x at t_next.  x, score, z: tensors of one shape; t, t_next, lam: numbers."""
    ### BEGIN SOLUTION
    h = t - t_next
    drift = path.f(t) * x - 0.5 * (1 + lam**2) * path.g(t) ** 2 * score
    return x - h * drift + lam * path.g(t) * h**0.5 * z
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "step_down_test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# λ = 0 is the probability flow: N(0, 1) data stand still under VP
x = torch.randn(5, 1, generator=rng(41), dtype=double)
torch.testing.assert_close(step_down(x, -x, md.VPPath(), 0.5, 0.4, 0.0, x), x)
### BEGIN HIDDEN TESTS
exercise_toy = md.Mixture(torch.tensor([0.6, 0.4]), torch.tensor([[-1.0], [1.5]]), 0.3)
exercise_denoise = lambda x, sigma: exercise_toy.denoise(x, 1.0, sigma)
z = torch.randn(5, 1, generator=rng(42), dtype=double)
down = torch.tensor([0.5, 0.45], dtype=double)
for part in (md.VPPath(), md.SubVPPath(), md.GeometricVEPath()):
    score = exercise_toy.score(x, part.s(0.5).item(), part.std(0.5).item())
    by_flow = md.ode(exercise_denoise, x, part, down, "euler")
    by_sde = md.sde(exercise_denoise, x, part, down, lambda i: z)
    for lam, expected in ((0.0, by_flow), (1.0, by_sde)):
        # λ = 0 is the library's Euler step of the ODE, λ = 1 that of the SDE
        torch.testing.assert_close(step_down(x, score, part, 0.5, 0.45, lam, z), expected)
    # and λ = 2: the drift is linear in λ², the noise in λ
    two = 4 * (by_sde - part.g(0.5) * 0.05**0.5 * z - by_flow) + by_flow
    torch.testing.assert_close(
        step_down(x, score, part, 0.5, 0.45, 2.0, z), two + 2 * part.g(0.5) * 0.05**0.5 * z
    )
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 3.5 (3 points).** Estimate a divergence $\eqref{eq:sde-40}$. `v` is a function that maps a batch of shape
# $(n,d)$ to one of the same shape, row by row; `probe` has the same shape. Use one backpropagation, and return both
# the values of `v` and the estimates, free of gradients.


# %% nbgrader={"grade": false, "grade_id": "divergence", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def divergence(v, x, probe):
    """v(x), shape (n, d), and one estimate for each row, shape (n,)."""
    ### BEGIN SOLUTION
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        value = v(x)
        (row,) = torch.autograd.grad((value * probe).sum(), x)
    return value.detach(), (row * probe).sum(1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "divergence_test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# a diagonal derivative: signs are exact
points_ = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=double)
value, estimate_ = divergence(
    lambda x: x**2, points_, torch.tensor([[1.0, -1.0]]).expand(2, 2)
)
torch.testing.assert_close(estimate_, 2 * points_.sum(1))
### BEGIN HIDDEN TESTS
matrix = torch.randn(3, 3, generator=rng(43), dtype=double)
points_ = torch.randn(7, 3, generator=rng(44), dtype=double)
dice = torch.randn(7, 3, generator=rng(45), dtype=double)
calls_ = []


def field(x):
    calls_.append(len(x))
    return torch.sin(x @ matrix.T)


with torch.no_grad():
    value, estimate_ = divergence(field, points_, dice)
# one evaluation of v, also under no_grad, and results without a graph
assert len(calls_) == 1 and not value.requires_grad and not estimate_.requires_grad
# the value of v
torch.testing.assert_close(value, torch.sin(points_ @ matrix.T))
# ε·Jε with J = diag(cos) A, by hand
slope_ = torch.cos(points_ @ matrix.T)
torch.testing.assert_close(estimate_, (dice * slope_ * (dice @ matrix.T)).sum(1))
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 3.6 (4 points, an experiment).** Section 3.24 found that with uniform dequantisation the bits of a
# perfect model depend on the $\sigma$ at which its density is asked. Take a single pixel with 17 levels of your own
# choice of probabilities (once all equal, once very unequal), whose perfect density at $\sigma$ is a comb of normal
# teeth. Plot the bits that uniform dequantisation charges above the entropy, against $\sigma$ from a twentieth of a
# bin to two bins. Mark $\Delta/\sqrt{12}$. Where is the minimum, why not at $\Delta/\sqrt{12}$, and may one report
# the minimum as the model's bits?

# %% nbgrader={"grade": true, "grade_id": "where_to_begin", "locked": false, "points": 2, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell", "nbval-ignore-output"]
### BEGIN SOLUTION
levels17, bin_ = 2 * torch.arange(17, dtype=double) / 16 - 1, 1 / 8
spread_u = ((torch.arange(500, dtype=double) + 0.5) / 500 - 0.5) * bin_
ratios = torch.logspace(math.log10(0.05), math.log10(2), 60, dtype=double)
for label, look, P in (
    ("equal", "-", torch.full((17,), 1 / 17, dtype=double)),
    ("unequal", "--", torch.softmax(-torch.arange(17, dtype=double), 0)),
):
    charged = []
    for ratio in ratios.tolist():
        apart_ = levels17[:, None, None] + spread_u[:, None] - levels17
        comb = torch.distributions.Normal(0.0, ratio * bin_).log_prob(apart_) + P.log()
        nats = -(P[:, None] * comb.logsumexp(2)).sum(0).mean() + (P * P.log()).sum()
        charged.append((nats / math.log(2) + math.log2(1 / bin_)).item())
    best = ratios[torch.tensor(charged).argmin()].item()
    print(f"{label}: least {min(charged):.3f} bits above the entropy, at σ = {best:.2f} bins")
    plt.loglog(ratios, charged, look, label=f"{label} probabilities")
plt.axvline(12**-0.5, color=plots.INK, linestyle=":", label=r"$\Delta/\sqrt{12}$")
plt.xlabel(r"$\sigma$ in bins")
plt.ylabel("bits above the entropy")
plt.title("A comb must be blurred before uniform noise is put on it")
plt.legend()
plt.show()
### END SOLUTION

# %% [markdown] nbgrader={"grade": true, "grade_id": "where_to_begin_why", "locked": false, "points": 2, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# On the left the cost rises like $\Delta^2/(24\sigma^2)$, as in (3.14). For isolated teeth the minimum would be at
# $\Delta/\sqrt{12}=0.29\,\Delta$, with $0.25$ bits. But neighbouring teeth overlap and fill each other's gaps, so a
# wider tooth costs less than (3.14) says, and the minimum moves to the right. With equal probabilities it moves to
# about $0.4\,\Delta$, where almost nothing is lost: the blurred comb is nearly flat over all the range except at its
# two ends, and flat is what uniform noise wants. With unequal probabilities a wide tooth gives its mass away to
# neighbours that do not need it; the minimum is higher and lies at about a third of a bin.
#
# Each point of each curve is an upper bound for a code of the same integers. So the minimum may be reported, if
# $\sigma$ is chosen before the test data are seen (on training data) and is stated. To choose it on the test set is
# to fit one parameter on the test set.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# ## 3.29 Summary
#
# What a diffusion model learns is the slope of the log density at every noise level, and the chain it was trained on
# is one of many processes with the same marginals: with more noise on the way back, with less, with none. In the
# limit of small steps these are a stochastic equation, its reversal and an ordinary equation that share their
# densities at every time, so that sampling is a question for numerical analysis, in few steps or many, and a picture
# has one latent. Along the ordinary equation the likelihood can be computed instead of bounded, and what the number
# means depends on the noise that was put on the integers.
#
# Symbols that stay: $\nabla\log p_t$ and $\mathbf s_\theta$; $\eta$ and $\hat\sigma$; $\mathbf f,g,\mathbf w$; the
# path $s(t),\sigma(t)$, and $\mathbf x/s$ with $\sigma$ as its clock; $\beta(t)$ and $B(t)$; $r$ of the corrector.
#
# The gap: three processes with clocks that somebody chose, solvers that differ by factors for reasons that we have
# not separated, and variances that are still chosen by hand. Improved DDPM learns the variances and
# looks for the lost bits; EDM takes the design apart, one choice at a time, with $\sigma$ as the coordinate.
#
# **References.** Song, Meng, Ermon, *Denoising Diffusion Implicit Models*, 2020: equations (3)–(16), Tables 1 and 2.
# Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, *Score-Based Generative Modeling through Stochastic Differential
# Equations*, 2021: equations (1)–(14), (29), (39), (40), Algorithms 4 and 5. Hyvärinen, *Estimation of Non-Normalized
# Statistical Models by Score Matching*, 2005, and Vincent, *A Connection Between Score Matching and Denoising
# Autoencoders*, 2011: score matching. Song and Ermon, *Generative Modeling by Estimating Gradients of the Data
# Distribution*, 2019: annealed Langevin dynamics. Anderson, *Reverse-Time Diffusion Equation Models*, 1982: the
# reverse SDE. Chen, Rubanova, Bettencourt, Duvenaud, *Neural Ordinary Differential Equations*, 2018: the
# instantaneous change of variables. Skilling, *The Eigenvalues of Mega-Dimensional Matrices*, 1989, and Hutchinson,
# *A Stochastic Estimator of the Trace of the Influence Matrix*, 1990: the trace. Theis, van den Oord, Bethge, *A Note
# on the Evaluation of Generative Models*, 2016: dequantisation. Karras et al., *Elucidating the Design Space of
# Diffusion-Based Generative Models*, 2022, Appendix B and C: the step length of the paper's code.
