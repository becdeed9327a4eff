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
# # 07 · Full scale
#
# The digits of chapter 02 were trained on one processor core in a few minutes. ADM's model of ImageNet at
# $256\times256$ costs four hundred million times as much. Nobody has such a core, so the work is spread over many
# processors, and each of them runs the program that you have read. **When one process becomes many, what changes, and
# what must not?**
#
# What must not change is the training: on one GPU, on eight and on sixty-four the same settings should take the same
# steps with other random numbers, and after a crash with the very same ones. What may change is the time, and it does
# so by rules that can be derived and checked on a laptop: how many numbers have to travel after each step, what
# sixteen bits can hold, how many operations a layer is, and when a further processor is no longer worth its price.
#
# At the end of this chapter you will be able to say which parts of a training step are linear and may be split, and
# which may not; to count the bytes of an exchange between $N$ processes; to see before a training begins whether its
# gradients vanish in half precision; to price any recipe in operations, bytes and GPU-hours; to start a training on a
# laptop, on eight GPUs or on a cluster with the same command, to kill it, and to get the same bits; and to prepare,
# train and judge a model of your own pictures.
#
# You need the training of chapter 02 (sections 2.10 and 2.12) and no GPU; chapters 03 to 06 are looked back at, but
# nothing rests on them. The cells run in under three minutes on one processor core; reading takes half a day. The
# letters:
#
# | letter | meaning | here, in code |
# |---|---|---|
# | $N$; $r$ | processes, one for each GPU; which one, $0\dots N-1$ (its rank) | `N`; `r`, `rank` |
# | $B$; $b=B/N$ | images in a step, all processes together; the share of one | `training.batch`; `share` |
# | $M$ | portions in which a process works its share off | share / `micro` |
# | $n$ | images seen since the training began; the only clock | `state.images` |
# | $\theta$; $g$ | weights; gradient of the loss by them | `parameters`; `gradient` |
# | $\bar\theta$; $h$ | averaged weights; half-life of the average, in images | `ema`; `half_life` |
# | $\beta$ **(!)** | what an average keeps of itself in one step; no variance of a chain here | `beta` |
# | $S$; $w$; $\lambda$ | bytes of a gradient; bytes a second of a link; its delay | `S`, `size`; `w`; `latency` |
# | $p$ | bits of a number behind its leading one | `p` |
# | $P$; $C$ | pixels; channels | |
# | $t_0$; $c$; $X$ | seconds of a step with no image; of an image; of the exchange | `fixed`, `per_image`, `exchange` |
#
# A *process* is one running Python program. On a cluster there is one for each GPU, and all of them run the same
# file.

# %% tags=["setup"]
import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F

import minidiff as md
from minidiff import plots
from minidiff.cli.main import main

plots.style()
double = torch.float64


def rng(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## 7.1 The gap
#
# How far is it from here? Let this machine train on digits for a moment, and count what it does. An operation is a
# multiplication or an addition in a matrix product or a convolution; section 7.6 derives how many there are. One core
# is one thread, and it stays at one for the whole chapter.

# %% tags=["nbval-ignore-output"]
import time

from minidiff.recipes import describe
from minidiff.training.cost import Assumed, Cost

torch.set_num_threads(1)
small, large = Cost(describe("digits")), Cost(describe("adm-imagenet256"))
digits = md.digits()
short = dataclasses.replace(small.config.training, images=16 * 128, tick=16 * 128)
torch.manual_seed(0)
state = md.begin(md.build(small.config, (1, 8, 8), 17), md.UniformTimes(1000), short)
began = time.process_time()
md.train(state, digits, short)
core = small.training * short.images / (time.process_time() - began)

whole = {
    cost.config.recipe: cost.training * cost.config.training.images for cost in (small, large)
}
print(f"this core: {core / 1e9:.1f} billion operations a second")
for name, operations in whole.items():
    seconds = operations / core
    print(
        f"{name:<18}{seconds / 60:>18,.0f} minutes{seconds / 3600 / 24 / 365:>12,.0f} years"
    )

# %%
ratio = whole["adm-imagenet256"] / whole["digits"]
print(f"digits           {whole['digits']:.2e} FLOP, {small.parameters:,} weights")
print(f"adm-imagenet256  {whole['adm-imagenet256']:.2e} FLOP, {large.parameters:,} weights")
print(f"the ratio        {ratio:.2e}")
assert 4e8 < ratio < 5e8 and abs(whole["adm-imagenet256"] / 1e14 / 86_400 - 400) < 10
# from a small computer on a bad day to more than any core can do
assert 1e8 < core < 5e12
hours = {name: operations / core / 3600 for name, operations in whole.items()}
assert hours["digits"] < 24 and hours["adm-imagenet256"] > 20 * 365 * 24

# %% [markdown]
# A GPU that sustains $10^{14}$ operations a second needs 400 days for it, and a hundred of them could do it in four.
# But they would have to work on *one* training: on the same weights, without waiting for each other, and without a
# mistake.
#
# ## 7.2 One step, many processes
#
# Here is a training step, in the words of the earlier chapters. Take $B$ images, a time and a noise for each; compute
# the mean loss and its gradient; if the gradient is longer than a limit, shorten it; let Adam move the weights; move
# the average of the weights a little towards them. Which of these may be spread over processes?
#
# The loss of a batch is a mean over its images, **and the derivative is linear**: the gradient of a mean is the mean
# of the gradients. **A mean of equal parts is the mean of the parts' means** (group the sum, $B=N\,M\,\frac{B}{NM}$).
# Let part $(r,k)$ be the images that process $r$ puts through its network in portion $k$. Then
#
# $$ \nabla_\theta\,\frac1B\sum_{i=1}^{B}\ell_i(\theta)=\frac1N\sum_{r=0}^{N-1}\;\frac1M\sum_{k=1}^{M}\;
#    \nabla_\theta\Big[\frac{NM}{B}\!\!\sum_{i\,\in\,(r,k)}\!\!\ell_i(\theta)\Big] \tag{7.1}\label{eq:7-1} $$
#
# The inner sum is over time: a process whose memory holds four images works its share off four by four and adds up
# the gradients before anything else happens (*gradient accumulation*). The outer sum is over space: once a step the
# processes exchange one gradient. Neither changes the result, except for rounding.
#
# Two conditions hide in it. The parts must be equal, or be weighted by their size. And $\ell_i$ must depend on image
# $i$ alone. Batch normalisation would make it depend on the other images of the part; the networks of this book
# normalise within an image (GroupNorm).
#
# The check takes the gradient of 24 digits at once, and in $N=3$ processes with $M=2$ portions each. Then it does
# what $\eqref{eq:7-1}$ does not allow: parts of unequal size; and it exchanges the order of the mean with the two
# steps that are not linear, the limit on the gradient's length and Adam.

# %%
# check: 7.1
model, description = md.load("digits")
model = model.double().requires_grad_()
weights = list(model.parameters())
B, N, M = 24, 3, 2
x0 = digits.x[:B].double()
t = torch.randint(1000, (B,), generator=rng(0))
noise = torch.randn(x0.shape, generator=rng(1), dtype=double)


def gradient(part):
    """∇ of the mean loss of these images, as one vector."""
    loss = model(x0[part], t[part], noise[part])["loss"].mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def apart(a, b):
    """Distance as a share of b's length."""
    return ((a - b).norm() / b.norm()).item()


at_once = gradient(slice(0, B))
size = B // (N * M)
parts = torch.stack([gradient(slice(k, k + size)) for k in range(0, B, size)]).view(N, M, -1)
g = parts.mean(1)  # (N, weights), what each process has found
equal = apart(g.mean(0), at_once) < 1e-12
print(f"mean over portions, then over processes: off by less than 1e-12? {equal}")
assert equal

unequal = torch.stack([gradient(slice(0, 20)), gradient(slice(20, 24))])
assert apart((20 * unequal[0] + 4 * unequal[1]) / 24, at_once) < 1e-12
print(
    f"parts of 20 and 4 images, plain mean:    off by {apart(unequal.mean(0), at_once):.0%}"
)
assert apart(unequal.mean(0), at_once) > 0.1


def limited(v, length):
    """Shortened to this length where it is longer."""
    return v * min(1, length / v.norm())


limit = 0.8 * at_once.norm()
each = apart(torch.stack([limited(v, limit) for v in g]).mean(0), limited(at_once, limit))
print(f"each limits its own gradient, then mean: off by {each:.0%}")
assert each > 0.1
# Adam's first step is the sign of the gradient
each = apart(torch.stack([v.sign() for v in g]).mean(0), at_once.sign())
print(f"each takes its own Adam step, then mean: off by {each:.0%}")
assert each > 0.1

# %% [markdown]
# So the cut is clear. Up to the gradient everything may be split. Then comes the exchange, and after it every process
# does the rest *by itself*: it looks at the length of the mean gradient, and takes Adam's step. All of them begin
# with the same weights (the first process sends its own, once) and with empty moments, and are given the same
# gradients; so they keep the same weights, though none is sent again.
#
# What does process $r$ draw? Each needs images, times and noises of its own; if all draw the same, $N$ processes do
# $N$ times the work for one. And a training that was interrupted must go on with the draws that an unbroken one would
# have made. Both follow from one rule: **every draw is a function of (seed, $r$, $n$)**, the seed of the run, the
# rank and the images seen so far. No generator's state has to be kept.
#
# Here is the whole step, for $N$ processes one after the other:

# %%
from minidiff.training.loop import data_order, learning_rate, seeded


def training_step(model, optimizer, ema, training, n, N=1):
    """The update after n images, as N processes make it."""
    share, parameters, found = training.batch // N, list(model.parameters()), []
    for r in range(N):
        draws = seeded(training.seed, r, n, torch.device("cpu"))
        places = data_order(n + r * share, share, len(digits), training.seed)
        x0, _ = digits.batch(places, draws)
        t = torch.randint(1000, (share,), generator=draws)
        noise = torch.randn(x0.shape, generator=draws)
        loss = model(x0, t, noise)["loss"].mean()
        found.append(torch.autograd.grad(loss, parameters))
    # the exchange: from here on all processes do the same
    for parameter, *g in zip(parameters, *found, strict=True):
        parameter.grad = sum(g) / N
    torch.nn.utils.clip_grad_norm_(parameters, training.clip_grad)
    optimizer.param_groups[0]["lr"] = learning_rate(training, n)
    optimizer.step()
    ema.update(model, n, training.batch)
    return n + training.batch


def by_hand(training, N=1):
    """A run of the digits recipe; the model and its average."""
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = md.build(small.config, digits.shape, digits.levels).train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
        ema, n = md.EMA(model, training.ema[0]), 0
        while n < training.images:
            n = training_step(model, optimizer, ema, training, n, N)
    return model, ema.model


training = dataclasses.replace(
    small.config.training, images=6 * 64, batch=64, ramp=64, tick=6 * 64
)
alone = by_hand(training)

# %% [markdown]
# The library's `train_step` is these lines, with portions, half precision, class labels and GPUs added. With one
# process it must give the same bits. And two *real* processes, which `torchrun` starts and which know of each other
# only through a socket, must give what our loop gives with `N=2`. The command is `minidiff train` as ever, with a
# launcher in front of it.

# %%
with torch.random.fork_rng():
    torch.manual_seed(training.seed)
    model = md.build(small.config, digits.shape, digits.levels)
state = md.train(md.begin(model, md.UniformTimes(1000), training), digits, training)
for ours, theirs in zip(alone, (state.model, state.ema), strict=True):
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
print("one process: our loop and the library's, the same bits")

settings = {"images": 384, "batch": 64, "ramp": 64, "tick": 384}
command = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
command += "-m minidiff train digits --out run -n 1".split()
for key, value in settings.items():
    command += [f"--training.{key}", str(value)]
environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
with tempfile.TemporaryDirectory() as folder:
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    pair, _ = md.load(f"{folder}/run", weights="model")

one, two = (by_hand(training, N)[0] for N in (1, 2))


def farthest(a, b):
    """The largest difference of a weight."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


same, other = farthest(pair, two) < 1e-4, farthest(one, two) > 5e-3
print(f"two processes and our loop with N=2: no weight differs by 1e-4? {same}")
print(f"N=1 and N=2, which draw otherwise:   some weight differs by 5e-3? {other}")
assert same and other

# %% [markdown]
# The last line is no fault. On another number of processes the same images come in the same order, but their times
# and noises are drawn by other ranks. The two runs are two samples from one law, as with two seeds. On the *same*
# number of processes, and the same machine, the bits are the same; section 7.12 kills a run to see it.

# %% [markdown]
# ## 7.3 One clock
#
# The loss in $\eqref{eq:7-1}$ is a mean over the *whole* batch, and $N$ appears in no setting of a recipe. That is a
# choice, and a common mistake is to make the other one: to fix the share $b$ and let the batch grow with the number
# of GPUs. Then eight GPUs make an eighth of the updates on as many images, and the learning rate has to be guessed
# anew. Here the recipe says $B$ and the library computes $b=B/N$, and refuses where it does not divide.
#
# The same thought decides in what one should count time. Steps are a poor unit: after 1,000 of them a run with
# $B=2048$ has seen sixteen times as many images as one with $B=128$. So everything that has a length is measured in
# images: the ramp of the learning rate, the lines of the log, the checkpoints, the end, and the average of the
# weights. DDPM, improved DDPM and ADM print the average as a factor of each step, 0.9999; EDM prints a half-life in
# images. What is the one in terms of the other?
#
# After $h$ images a half shall be left. A step is $B$ images, and **shares multiply**, so $\beta^{h/B}=\frac12$:
#
# $$ \bar\theta\leftarrow\beta\,\bar\theta+(1-\beta)\,\theta,\qquad\beta=2^{-B/h} \tag{7.2}\label{eq:7-2} $$
#
# At $B=128$ a factor of 0.9999 is a half-life of 0.89 million images, at $B=2048$ one of 14 million: the same printed
# number looks back sixteen times as far.
#
# A long memory has a price at the beginning, when there is nothing worth remembering. As in EDM, the library lets it
# grow with the run, $h=\rho\,n$ with $\rho=\frac1{20}$, until it reaches the recipe's. What does such an average
# forget? Let $W$ be the weight, after $n$ images, of everything before $n_0$. **The shares multiply** again, now with
# a different $\beta$ at each step. **The logarithm turns the product into a sum**, and for small steps the sum is an
# integral:
#
# $$ \begin{aligned}W&=\prod_{\text{steps}}2^{-B/(\rho n')}
#    \approx\exp\Big(\!-\frac{\ln2}{\rho}\int_{n_0}^{n}\frac{dn'}{n'}\Big)\\
#    &=\Big(\frac{n_0}{n}\Big)^{\ln2/\rho}\end{aligned} \tag{7.3}\label{eq:7-3} $$
#
# A power and no exponential: the average has no scale of its own, it always looks back over the same *share* of the
# run. With $\rho=\frac1{20}$ the exponent is 13.9, and the first half of the run weighs $2^{-13.9}$, less than one
# part in ten thousand.
#
# The check gives the library's average a "weight" that is 0 up to image $n_0$ and 1 after it. What is missing to 1 is
# then $W$.


# %%
# check: 7.2, 7.3
def forgotten(B, h, n_0, n):
    """What everything before n_0 images weighs in the library's average after n."""
    net = torch.nn.Linear(1, 1, bias=False).double()
    net.weight.data.fill_(0)
    ema = md.EMA(net, h)
    for seen in range(0, n, B):
        net.weight.data.fill_(float(seen >= n_0))
        ema.update(net, seen, B)
    return 1 - ema.model.weight.item()


# (7.2): the memory is full (20 h images have gone by), and h more images leave one half, whatever the batch
for B in (8, 32, 128):
    half = forgotten(B, h=6_400, n_0=128_000, n=128_000 + 6_400)
    print(f"B = {B:>3}: after one half-life {half:.6f}")
    assert abs(half - 0.5) < 1e-9
# (7.3): while it grows; the sum differs from its integral by less than its first term
for n in (30_000, 40_000):
    power = (20_000 / n) ** (math.log(2) / 0.05)
    grown = forgotten(B=8, h=10**9, n_0=20_000, n=n)
    print(f"n_0 / n = {20_000 / n:.3f}: {grown:.3e}, the power {power:.3e}")
    assert abs(grown / power - 1) < 1.01 * math.log(2) / 0.05 * 8 / 20_000
# the recipes' half-lives are a factor of 0.9999
for name, batch in (("ddpm-cifar10", 128), ("adm-imagenet64", 2048)):
    config = md.recipe(name).training
    assert config.batch == batch and abs(0.5 ** (batch / config.ema[0]) - 0.9999) < 1e-6
    print(f"0.9999 at a batch of {batch:>5,}: a half-life of {config.ema[0]:>10,} images")

# %%
fig, ax = plt.subplots()
age = torch.linspace(0, 0.5, 500, dtype=double)
# density of weight by age, in a run of n = 1
ax.plot(age, (1 - age) ** (math.log(2) / 0.05 - 1) * math.log(2) / 0.05, label="h = n / 20")
for h, colour, style in ((0.01, plots.ORANGE, "--"), (0.15, plots.INK, ":")):
    decay = math.log(2) / h * 0.5 ** (age / h)
    ax.plot(age, decay, style, color=colour, label=f"h = {h:g} of the run")
ax.set(
    xlabel="age, as a share of the run so far", ylabel="weight in the average", ylim=(0, 20)
)
ax.set_title("With h = n/20 the average is of the last fifth of the run")
ax.legend()
plt.show()
# W by (7.3): what is older than a fifth, and than the edge of the figure
assert 0.8 ** (math.log(2) / 0.05) < 0.05 and 0.5 ** (math.log(2) / 0.05) < 1e-4
assert abs(0.5 ** (0.5 / 0.15) - 0.1) < 1e-3

# %% [markdown]
# A fixed $h$ is the dotted curve early in a run and the dashed one late. The dotted memory is too long: a tenth of its
# weight is older than the edge of the figure, the middle of the run so far. The dashed one averages over little. The
# solid curve is the same at any time.
#
# What if you do want another batch, because you have memory for it? Then the step changes, and how much is a question
# about the noise of the gradient. Its answer is the gradient-noise scale of section 4.9: below it, twice the batch is
# worth nearly two steps; far above it, hardly more than one.
#
# ## 7.4 What has to travel
#
# After each step $N$ processes hold $N$ gradients of $S$ bytes, and all of them need the mean. (Divide the sum by
# $N$; so it is the sum that travels.) The obvious way is to send all to one process, which adds them up and sends the
# sum back. Its one cable then carries $(N-1)S$ bytes in and as many out, while the others wait.
#
# How little would do, if only the processes can add? Look at one number of the gradient. Before the first process can
# know the sum, each of the other $N-1$ must have sent something; and as none of them knows it yet, each must receive
# something after that. So every number moves at least $2(N-1)$ times, however cleverly it is arranged, **and the best
# that can be done is to share the sending equally**:
#
# $$ \text{bytes that each process sends}\;=\;\frac{2(N-1)\,S}{N}\;<\;2S \tag{7.4}\label{eq:7-4} $$
#
# The arrangement that reaches it is a ring. Cut the vector into $N$ pieces. Each process talks to its right neighbour
# alone. For $N-1$ rounds each sends one piece, and adds the piece that comes from the left to its own; the pieces are
# staggered, so that all cables are busy all the time. Now each process has one piece that is complete. For another
# $N-1$ rounds the complete pieces go around, and are copied instead of added. There are $2(N-1)$ rounds with $S/N$
# bytes each. Over cables that carry $w$ bytes a second, and need $\lambda$ seconds before the first byte arrives, this
# takes
#
# $$ X(N)=2(N-1)\Big(\frac{S}{N\,w}+\lambda\Big) \tag{7.5}\label{eq:7-5} $$
#
# The part with $w$ is $S/w$ for two processes and stays below $2S/w$ for any number of them. The part with $\lambda$
# grows with $N$; it matters where $S/N$ is small.
#
# Below, the ring runs between arrays. Whole numbers are added without rounding, so that the sum can be compared
# exactly, and every byte is counted.


# %%
# check: 7.4, 7.5
def ring(vectors):
    """The sum at every process, bytes sent by each, and seconds where w = 1e9, λ = 1e-5."""
    N = len(vectors)
    held = [np.array_split(vector, N) for vector in vectors]
    sent, seconds = [0] * N, 0.0
    for complete in (0, 1):
        for k in range(N - 1):
            # who sends which piece; all at the same time
            packets = [(r, (r + complete - k) % N) for r in range(N)]
            packets = [(r, piece, held[r][piece].copy()) for r, piece in packets]
            for r, piece, packet in packets:
                right = held[(r + 1) % N]
                right[piece] = packet if complete else right[piece] + packet
                sent[r] += packet.nbytes
            seconds += max(packet.nbytes for *_, packet in packets) / 1e9 + 1e-5
    return [np.concatenate(pieces) for pieces in held], sent, seconds


random = np.random.default_rng(0)
print(" N   bytes sent by each   by one that collects all   seconds")
for N in (2, 3, 4, 8, 16):
    vectors = [random.integers(-(2**40), 2**40, 48_000) for _ in range(N)]
    S = vectors[0].nbytes
    sums, sent, seconds = ring(vectors)
    assert all((each == sum(vectors)).all() for each in sums)
    assert set(sent) == {2 * (N - 1) * S // N}
    np.testing.assert_allclose(seconds, 2 * (N - 1) * (S / N / 1e9 + 1e-5), rtol=1e-12)
    print(f"{N:>2}{sent[0]:>21,}{(N - 1) * S:>27,}{seconds:>10.6f}")

# %% [markdown]
# With floating-point numbers two more things can be seen. Every piece is added up once, by one chain of processes,
# and then copied: **all processes get the same bits**, and must, for each of them takes its own Adam step, and nobody
# compares the weights afterwards. But the order of the sum depends on $N$, and rounding depends on the order. On
# another number of GPUs the sum has other last bits, even of the same numbers.

# %%
# the same 16 gradients; as 16 processes, and in pairs, fours and eights that were summed before
vectors = [random.standard_normal(4_800).astype(np.float32) for _ in range(16)]
exact = np.sum(vectors, axis=0, dtype=np.float64)
found = {}
for N in (2, 4, 8, 16):
    sums, _, _ = ring([np.sum(vectors[k::N], axis=0) for k in range(N)])
    assert all((each == sums[0]).all() for each in sums)
    found[N] = sums[0]
    assert np.abs(sums[0] - exact).max() < 15 * 2.0**-24 * np.abs(vectors).sum(axis=0).max()
differ = {N: (found[N] != found[16]).mean() for N in (2, 4, 8)}
print("of the sums, other last bits than on 16 processes: ", end="")
print(", ".join(f"on {N}: {share:.0%}" for N, share in differ.items()))
assert min(differ.values()) > 0.3

# %% [markdown]
# **While the gradient is still being computed.** The backward pass finds the gradient of the last layer first. There
# is no reason to wait for the first layer before the last one's gradient is sent. PyTorch's DistributedDataParallel
# puts the gradients into buckets of 25 MiB, about in the order in which they come, and starts the exchange of a bucket
# when it is full. How much of the exchange is then left to wait for?
#
# Say that the backward pass takes $T$ seconds and fills $m$ equal buckets evenly, so bucket $k$ is full at $kT/m$,
# and that the link takes $X/m$ for each, one after the other. Bucket $k$ ends at $f_k=\max(f_{k-1},\,kT/m)+X/m$: it
# begins when it is full and the link is free. **Unroll the recursion**: the last bucket ends at the largest of
# $jT/m+(m-j+1)X/m$ over $j=1\dots m$, the bucket since which the link has not been idle. That is **linear in $j$, so
# its maximum is at an end**, $j=1$ or $j=m$. Take off $T$:
#
# $$ X_{\text{exposed}}=\max\Big(\frac Xm,\;X-\Big(1-\frac1m\Big)T\Big) \tag{7.6}\label{eq:7-6} $$
#
# In words: of an exchange that is shorter than the backward pass the last bucket is left; of a longer one the excess,
# and the time $T/m$ before the first bucket was full. Buckets are not free: the delays of $\eqref{eq:7-5}$ are paid for
# each of them, so that $X=2(N-1)\big(\frac S{N\,w}+m\lambda\big)$.


# %%
# check: 7.6
def exposed(X, T, m):
    """Seconds from the end of the backward pass to the end of the exchange, by bucket."""
    end = 0.0
    for k in range(1, m + 1):
        end = max(end, k * T / m) + X / m
    return end - T


for X, T, m in itertools.product((0.02, 0.5, 1.0, 1.7, 30.0), (0.1, 1.0, 2.0), (1, 2, 7, 90)):
    formula = max(X / m, X - (1 - 1 / m) * T)
    assert abs(exposed(X, T, m) - formula) < 1e-12
BUCKET = 25 * 2**20
S = 4 * large.parameters
m = math.ceil(S / BUCKET)
print(f"adm-imagenet256: {S / 1e9:.2f} GB of gradients, {m} buckets")
for X in (0.1, 0.5, 1.0):
    print(f"exchange {X} s, backward pass 0.5 s: exposed {exposed(X, 0.5, m):.3f} s")

# %% [markdown]
# ## 7.5 Sixteen bits
#
# A GPU multiplies numbers of sixteen bits two to sixteen times as fast as numbers of thirty-two, and twice as many
# activations fit into its memory. What is lost? A floating-point number is a sign, an exponent $e$ and $p$ bits
# behind a leading one:
#
# $$ \pm2^{e}\Big(1+\frac{m}{2^{p}}\Big),\qquad0\le m<2^{p},\quad e_{\min}\le e\le e_{\max} \tag{7.7}\label{eq:7-7} $$
#
# **Read off:** between $2^e$ and $2^{e+1}$ the numbers stand $2^{e-p}$ apart; the largest is
# $(2-2^{-p})\,2^{e_{\max}}$; and below $2^{e_{\min}}$, where the leading one is given up, they go on at the last
# spacing down to $2^{e_{\min}-p}$, the smallest above 0.
#
# | | bits | $p$ | $e_{\min}$ to $e_{\max}$ |
# |---|---|---|---|
# | fp32 | 1 + 8 + 23 | 23 | −126 to 127 |
# | fp16 | 1 + 5 + 10 | 10 | −14 to 15 |
# | bf16 | 1 + 8 + 7 | 7 | −126 to 127 |
#
# Two ways to cut thirty-two bits to sixteen. fp16 keeps more digits, and gives up range; bf16 is fp32 with the tail
# cut off, the same range and few digits. There are only 65,536 patterns of sixteen bits, so we look at all of them.

# %%
# check: 7.7
FORMATS = {torch.float16: (10, -14, 15), torch.bfloat16: (7, -126, 127)}
for dtype, (p, low, high) in FORMATS.items():
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).double()
    positive = patterns[patterns.isfinite() & (patterns > 0)].sort().values
    assert len(positive) == (high - low + 2) * 2**p - 1
    assert positive[0] == 2.0 ** (low - p) and positive[-1] == (2 - 2.0**-p) * 2.0**high
    e = positive.log2().floor().clamp(min=low)
    inside = e[1:] == e[:-1]
    assert (positive.diff()[inside] == 2.0 ** (e[:-1][inside] - p)).all()
    name = str(dtype).removeprefix("torch.")
    print(
        f"{name:<9} from {positive[0]:.1e} to {positive[-1]:.1e}, about 1 in steps of 2^-{p}"
    )

# %% [markdown]
# **Small updates.** Rounding goes to the nearest number. So a sum $\theta+\delta$ is rounded to $\theta$ (write
# $\theta\oplus\delta=\theta$) as long as $|\delta|$ is less than half the spacing at $\theta$. With
# $2^e\le|\theta|<2^{e+1}$,
#
# $$ \theta\oplus\delta=\theta\quad\text{where}\quad|\delta|<2^{e-p-1},\qquad
#    2^{-p-2}<\frac{2^{e-p-1}}{|\theta|}\le2^{-p-1} \tag{7.8}\label{eq:7-8} $$
#
# (half of that for a step from a power of two towards 0). In bf16 an update below 0.19 % of its weight is lost, and
# however many follow, nothing adds up. Adam moves a weight by about the learning rate, say $10^{-4}$, so every weight
# above 0.032 stands still. For the average it is hopeless: with $1-\beta=10^{-4}$ it moves only where $\theta$ is
# nineteen times the average away from it. Hence the rule: **products in sixteen bits; weights, Adam's moments and
# averages in thirty-two.** It has the name *mixed precision*, and the weights are called master weights. Before each
# product they are rounded; what is summed up over a million steps never is.

# %% tags=["nbval-ignore-output"]
# check: 7.8
theta = torch.rand(100_000, generator=rng(2), dtype=double) * 1.9 + 0.05
for dtype, (p, *_) in {**FORMATS, torch.float32: (23, -126, 127)}.items():
    at = theta.to(dtype)
    half = 2.0 ** (at.double().log2().floor() - p - 1)
    just = half * torch.tensor([[0.999], [1.001]], dtype=double)
    # the exact sum, then rounded once
    stays = (at.double() + just).to(dtype) == at
    assert stays[0].all() and not stays[1].any()

# the fourth step of Adam at the paper's rate, on the trained digits
model, _ = md.load("digits")
model.requires_grad_()
rate = md.recipe("ddpm-cifar10").training.lr
optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
visited = []
for k in range(5):
    visited.append(torch.cat([w.detach().flatten() for w in model.parameters()]))
    optimizer.zero_grad()
    index = torch.randint(len(digits), (64,), generator=rng(k))
    t = torch.randint(1000, (64,), generator=rng(10 + k))
    noise = torch.randn((64, 1, 8, 8), generator=rng(20 + k))
    model(digits.x[index], t, noise)["loss"].mean().backward()
    optimizer.step()
at, delta = visited[-2], visited[-1] - visited[-2]
lost = {}
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    rounded = at.to(dtype)
    lost[dtype] = (
        ((rounded.double() + delta.double()).to(dtype) == rounded).double().mean().item()
    )

average = {dtype: torch.ones((), dtype=dtype) for dtype in lost}
for _ in range(100_000):
    for mean in average.values():
        mean.lerp_(torch.tensor(1.1, dtype=mean.dtype), 1e-4)
for dtype, share in lost.items():
    name = str(dtype).removeprefix("torch.")
    print(f"{name:<9} updates lost {share:>4.0%}", end="")
    print(f"   an average of 1.1, begun at 1: {average[dtype]:.4f}")
assert lost[torch.bfloat16] > 0.5 > 0.3 > lost[torch.float16] and lost[torch.float32] < 1e-2
assert average[torch.bfloat16] == average[torch.float16] == 1
assert abs(1.1 - average[torch.float32].double() - 1e4 * 2.0**-24) < 2e-5
# what the text says of bf16: the share that is always lost, the weight that stands still, the average that does
assert 0.0019 < 2.0**-9 and 1e-4 < 2.0 ** (-5 - 8) and 2.0**-5 < 0.032 and 19 < 2.0**-9 / 1e-4

# %% [markdown]
# In bf16 more than half of Adam's updates of the trained network are lost, in fp16 fewer, and in neither does the
# average ever move. Not even thirty-two bits are perfect here. After 100,000 such steps a true average would lack
# less than $10^{-5}$; ours lacks 0.0006. By $\eqref{eq:7-8}$ with $p=23$ it stops where $10^{-4}$ of what it lacks is
# less than half a spacing, which is $2^{-24}$ here. That can be borne.
#
# **Small gradients.** The other end is the range. Training's gradients are tiny for a reason that has nothing to do
# with learning: the loss is a mean. Where a process has $b$ images of $d$ numbers, and $\hat\epsilon$ is the
# network's answer to the noise $\epsilon$,
#
# $$ \ell=\frac1{bd}\sum_{i=1}^{bd}(\hat\epsilon_i-\epsilon_i)^2\qquad\Longrightarrow\qquad
#    \frac{\partial\ell}{\partial\hat\epsilon_i}=\frac{2\,(\hat\epsilon_i-\epsilon_i)}{b\,d}
#    \tag{7.9}\label{eq:7-9} $$
#
# by **the derivative of a square**. Everything further back in the network is linear in this. In fp16 what is below
# half of the smallest number, $2^{-25}$, becomes 0. With a share of $b=32$ images, digits have $bd=2^{11}$ and errors
# in $\epsilon$ down to $2^{-15}$ survive. But ImageNet at $256\times256$ has $d=196{,}608$, and by $\eqref{eq:7-9}$
# all errors below 0.09 are rounded to *no error*. Where the noise is easy to guess, nothing more would be learned.
#
# The remedy: multiply the loss by a large power of two before the backward pass, and divide the gradient by it after,
# in fp32, which loses nothing. Which number? As large as possible without an overflow, and an overflow can be seen:
# it leaves an infinity. So torch's `GradScaler` begins with $2^{16}$, halves it at every overflow (and leaves that
# update out), and doubles it after 2,000 steps without one. bf16 has the range of fp32 and needs nothing of this. That
# is why the library takes bf16 wherever a GPU has it, and fp16 only when told to.
#
# Below is a real backward pass: the trained digits in fp32, fp16 and bf16. To have gradients of the size that
# ImageNet's would have, the loss is divided by the ratio of the two $d$, which is 3,072.

# %% tags=["nbval-ignore-output"]
# check: 7.9
model, _ = md.load("digits")
model.requires_grad_()
b, d = 32, 64
x0 = digits.x[:b]
t = torch.randint(1000, (b,), generator=rng(3))
noise = torch.randn(x0.shape, generator=rng(4))
answers, seen = {}, []


def watch(module, _, output):
    """Keep the gradient of this layer's output when it comes."""
    output.register_hook(lambda grad: seen.append(grad.flatten()))
    if module is model.net.conv_out:
        answers["network"] = output.detach()
        output.register_hook(lambda grad: answers.update(gradient=grad))


layers = [m for m in model.net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
watching = [layer.register_forward_hook(watch) for layer in layers]
model(x0, t, noise)["loss"].mean().backward()
for hook in watching:
    hook.remove()
torch.testing.assert_close(
    answers["gradient"], 2 * (answers["network"] - noise) / (b * d), rtol=1e-5, atol=1e-10
)
reference = [w.grad.clone() for w in model.parameters()]
photograph = 3 * 256 * 256 / d


def wrong_by(dtype, scale):
    """Error of the gradient in this precision, when the loss is multiplied so."""
    model.zero_grad()
    with torch.autocast("cpu", dtype):
        loss = model(x0, t, noise)["loss"].mean() / photograph
    (scale * loss).backward()
    pairs = [
        (w.grad.double() / scale * photograph, g.double())
        for w, g in zip(model.parameters(), reference, strict=True)
    ]
    miss = sum((ours - g).square().sum() for ours, g in pairs)
    return (miss / sum(g.square().sum() for _, g in pairs)).sqrt().item()


small_errors = ((answers["network"] - noise).abs() < 0.09).double().mean().item()
model.zero_grad()
others = torch.randint(1000, (b,), generator=rng(5)), torch.randn(x0.shape, generator=rng(6))
model(digits.x[b : 2 * b], *others)["loss"].mean().backward()
another = torch.cat([w.grad.flatten() for w in model.parameters()])
another = apart(another, torch.cat([g.flatten() for g in reference]))

errors = {
    ("fp16", scale): wrong_by(torch.float16, 2.0**scale) for scale in (0, 8, 16, 40)
} | {("bf16", scale): wrong_by(torch.bfloat16, 2.0**scale) for scale in (0, 16)}
for (name, scale), error in errors.items():
    said = f"{error:.0%}" if error > 0.015 else "1% or less"
    print(f"{name}, loss × 2^{scale:<3} gradient off by {said if error < 2 else 'infinity'}")
assert 0.25 < errors["fp16", 0] < 1.1 and errors["fp16", 16] < 0.02
assert not errors["fp16", 40] < 2 and errors["fp16", 16] < errors["bf16", 16]
print(f"32 other digits change the gradient by {another:.0%}")
print(f"of the errors in ε, {small_errors:.0%} are below 0.09")
assert another > 5 * errors["bf16", 0] and small_errors > 0.2
assert (
    0.015 < errors["bf16", 0] < 0.3 and abs(errors["bf16", 16] / errors["bf16", 0] - 1) < 0.1
)
assert photograph == 3072
assert 2.0**-25 * b * d / 2 == 2.0**-15 and 0.09 < 2.0**-25 * b * 3 * 256 * 256 / 2 < 0.1

# %% tags=["nbval-ignore-output"]
magnitude = torch.cat(seen).abs().double() / photograph
magnitude = magnitude[magnitude > 0].log2()
fig, ax = plt.subplots()
bins = torch.arange(-64, 20, 0.5).numpy()
share = torch.full_like(magnitude, 1 / len(magnitude)).numpy()
ax.hist(magnitude.numpy(), bins, weights=share, color=plots.BLUE, label="as it is")
ax.hist(
    magnitude.numpy() + 16,
    bins,
    weights=share,
    histtype="step",
    color=plots.ORANGE,
    linewidth=1.8,
    label="loss × $2^{16}$",
)
ax.axvspan(-25, 16, color=plots.ROSE, alpha=0.45, zorder=0, label="what fp16 can hold")
ax.set(xlabel="log₂ of a gradient's absolute value", ylabel="share of all activations")
ax.set_title("With ImageNet's divisor fp16 rounds nearly all of these gradients to 0")
ax.legend(loc="upper right")
ax.set_xlim(-56, 40)
plt.show()
vanish = [(magnitude + scale < -25).double().mean().item() for scale in (0, 16)]
print(
    f"become 0 in fp16: {vanish[0]:.0%}, with the loss × 2^16 {vanish[1]:.0%}; in bf16 none"
)
assert vanish[0] > 0.9 and vanish[1] < 0.1 and magnitude.min() > -133

# %% [markdown]
# Unscaled, nearly all numbers are lost; what arrives of the gradient is made by the few large ones. Scaled by
# $2^{16}$, fp16 gives the better gradient of the two: it has three more bits. bf16 is off by some percent at either
# scale. That is little beside what the choice of images does to it: 32 other digits change it by more than five times
# as much.
#
# ## 7.6 What a step costs
#
# **Operations.** A convolution with a window of $k\times k$ multiplies and adds one number for each weight at each
# pixel that comes out; **count the pairs**. Attention over $P$ pixels of $C$ channels makes $q$, $k$, $v$ and the
# output with four $1\times1$ convolutions, and in between compares each pixel with each ($C$ products for a pair),
# and sums values over all pixels for each ($C$ again):
#
# $$ \begin{aligned} F_{\text{conv}}&=2\,k^2\,C_{\text{in}}\,C_{\text{out}}\,P_{\text{out}}\\
#    F_{\text{attention}}&=\underbrace{8\,C^2P}_{\text{1×1 convolutions}}+
#    \underbrace{4\,C\,P^2}_{\text{pixels with pixels}} \end{aligned} \tag{7.10}\label{eq:7-10} $$
#
# and a linear layer is a convolution at a single pixel. Now add up. On torch's `meta` device tensors have shapes and
# no numbers, so that a laptop can walk through the largest network. The sum must be what `minidiff info`
# prints, which counts in another way: it watches the matrix products that torch would call.

# %%
# check: 7.10
from minidiff.networks.layers import Attention


def count(cost):
    """Operations of a forward pass for one image by kind, layer by layer."""
    total = dict.fromkeys(("convolutions", "pixels with pixels", "linear"), 0)

    def add(layer, inputs, output):
        if isinstance(layer, torch.nn.Conv2d):
            pixels = output.shape[2] * output.shape[3]
            total["convolutions"] += 2 * layer.weight.numel() * pixels
        elif isinstance(layer, torch.nn.Linear):
            total["linear"] += 2 * layer.weight.numel() * (output.numel() // output.shape[-1])
        else:
            _, channels, height, width = inputs[0].shape
            assert layer.qkv.weight.numel() + layer.out.weight.numel() == 4 * channels**2
            total["pixels with pixels"] += 4 * channels * (height * width) ** 2

    kinds = (torch.nn.Conv2d, torch.nn.Linear, Attention)
    layers = [layer for layer in cost.model.net.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    x, t = torch.zeros(1, *cost.shape, device="meta"), torch.zeros(1, device="meta")
    labels = {"labels": t.long()} if cost.config.data.labels else {}
    with torch.no_grad():
        cost.model.net.float()(x, t, **labels)
    for hook in hooks:
        hook.remove()
    return total


print(f"{'FLOP of an image':<22}{'convolutions':>19}{'pixels with pixels':>20}{'linear':>15}")
for name in ("digits", "ddpm-cifar10", "adm-imagenet64", "adm-imagenet256"):
    cost = Cost(describe(name))
    kinds = count(cost)
    assert sum(kinds.values()) == cost.forward and kinds["convolutions"] > 0.9 * cost.forward
    numbers = kinds["convolutions"], kinds["pixels with pixels"], kinds["linear"]
    print(f"{name:<22}{numbers[0]:>19,}{numbers[1]:>20,}{numbers[2]:>15,}")

# %% [markdown]
# Nearly everything is convolutions. **Training on an image is three forward passes.** Every layer above is, at each
# pixel, a matrix product $y=Wx$. Let $\bar y=\partial\ell/\partial y$. **The chain rule** asks for two more products
# with the same three sizes, one to hand the gradient on and one for the weights:
#
# $$ \bar x=W^{\mathsf T}\bar y,\qquad\overline W=\bar y\,x^{\mathsf T}\qquad\Longrightarrow\qquad
#    F_{\text{training}}=3\,F_{\text{forward}} \tag{7.11}\label{eq:7-11} $$
#
# less what nobody asks for, the gradients by the image and by the time. Attention's two products have the same form,
# with activations in the place of $W$. A network that recomputes its activations goes forward twice and costs four.
#
# **Memory.** For every weight, training holds in fp32 the weight, its gradient, Adam's two moments, and each average:
#
# $$ \begin{aligned}\text{bytes}&=\underbrace{(4+4+8+4\,a)\,|\theta|}_{a\text{ averages}}+
#    \underbrace{2\,|\theta|}_{\text{16 bits}}\\
#    &\quad+\frac bM\,A\end{aligned} \tag{7.12}\label{eq:7-12} $$
#
# The weights are there a second time in sixteen bits, and $A$ is what the layers keep of one image for the backward
# pass: their inputs. The state is the same on every
# GPU. Only the last term depends on what one puts through at a time, and that is why portions help.

# %%
# check: 7.11, 7.12
from torch.utils.flop_counter import FlopCounterMode

with torch.device("meta"):
    net = describe("digits").build().net
    x, t = torch.zeros(1, 1, 8, 8), torch.zeros(1)
with FlopCounterMode(display=False) as counter:
    net(x, t).square().mean().backward()
first = 2 * net.conv_in.weight.numel() * 64 + 2 * net.time[0].weight.numel()
assert counter.get_total_flops() == 3 * small.forward - first
assert small.training == 3 * small.forward and first < 0.01 * small.forward
print(f"forward {small.forward:,}, with backward {counter.get_total_flops():,}", end="")
print(f" = 3 × forward − {first:,}")

# the state after the step of section 7.2, tensor by tensor
tensors = {
    "weights": list(state.model.parameters()),
    "gradients": [w.grad for w in state.model.parameters()],
    "Adam's moments": [
        kept for of in state.optimizer.state.values() for kept in of.values() if kept.ndim
    ],
    "averaged weights": [w for ema in state.emas for w in ema.model.parameters()],
}
held = {part: sum(tensor.nbytes for tensor in those) for part, those in tensors.items()}
assert (
    held == small.memory("tf32") and sum(held.values()) == (4 + 4 + 8 + 4) * small.parameters
)
assert sum(large.memory("bf16").values()) == (4 + 4 + 8 + 4 + 2) * large.parameters
for part, size in held.items():
    print(f"{part:<18}{size:>12,} bytes")

# the activations of a real forward pass
net = describe("digits").build().net.train()
own = {w.untyped_storage().data_ptr() for w in [*net.parameters(), *net.buffers()]}


def kept(b):
    """Bytes that the backward pass for b images will need, the weights aside."""
    found = {}

    def pack(tensor):
        # held, so that no other tensor gets its place in memory
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(torch.zeros(b, 1, 8, 8), torch.zeros(b))
    return sum(storage.nbytes() for place, storage in found.items() if place not in own)


A = small.activations("tf32")
for b in (1, 4, 16):
    assert abs(kept(b) / (b * A) - 1) < 0.05
print(f"{'activations':<18}{A:>12,} bytes an image")

# %% [markdown]
# That is all one needs to price a recipe. The last columns are about the data: what they take with a byte for each
# value, and how fast eight GPUs read them. GPU-hours are for one H100 that reaches 35 % of its peak in bf16. That
# share is an assumption, and the whole column is inversely proportional to it.

# %%
PICTURES = {  # in the sets that the papers trained on
    "cifar10": 50_000,
    "celeba64": 162_770,
    "celebahq256": 30_000,
    "ffhq64": 70_000,
    "afhqv2-64": 15_803,
    "church256": 126_227,
    "bedroom256": 3_033_042,
    "cat256": 1_657_266,
    "horse256": 2_000_340,
    **{f"imagenet{side}": 1_281_167 for side in (64, 128, 256, 512)},
}
assumed = Assumed(gpu="h100", precision="bf16", utilisation=0.35)
big = [
    name for name in md.RECIPES if describe(name).shape[-1] >= 32 and "ablation" not in name
]
costs = {name: Cost(describe(name)) for name in big}
print(f"{assumed}; state and activations in GiB, data in GB, MB/s by 8 GPUs")
for line in (
    ("", "weights", "GFLOP", "state", "per", "images", "GPU-", "", ""),
    ("", "in M", "/image", "", "image", "in M", "hours", "data", "MB/s"),
):
    print("{:<29}{:>9}{:>8}{:>7}{:>7}{:>9}{:>8}{:>8}{:>6}".format(*line))
reading = {}
for name, cost in costs.items():
    pixels = math.prod(cost.shape)
    stored = PICTURES[cost.config.data.source.removesuffix(".npz")] * pixels / 1e9
    reading[name] = 8 * cost.per_second(assumed) * pixels / 1e6
    training = cost.config.training
    print(
        f"{name:<29}{cost.parameters / 1e6:>9.1f}{cost.forward / 1e9:>8,.0f}"
        f"{sum(cost.memory('bf16').values()) / 2**30:>7.1f}"
        f"{cost.activations('bf16') / 2**30:>7.2f}{training.images / 1e6:>9,.0f}"
        f"{cost.hours(assumed):>8,.0f}{stored:>8,.1f}{reading[name]:>6.0f}"
    )

# %%
total = costs["adm-imagenet256"]
assert total.training == large.training
seconds = total.training * 256 * 1_980_000 / (0.35 * 989e12)
assert abs(total.hours(assumed) / (seconds / 3600) - 1) < 1e-12
drawing = [name for name in big if "classifier" not in name]
print(f"models read at most {max(reading[name] for name in drawing):.0f} MB/s, ", end="")
print(f"the classifier of 512×512 {reading['adm-classifier-512']:,.0f} MB/s")
assert max(reading[name] for name in drawing) < 400 < 3000 < reading["adm-classifier-512"]
at_512 = [costs[name] for name in ("adm-imagenet512", "adm-upsample-128-512")]
print("one image of 512×512 against the state: ", end="")
held = [cost.activations("bf16") / sum(cost.memory("bf16").values()) for cost in at_512]
print(", ".join(f"{share:.2f}" for share in held))
assert 0.7 < held[0] < 0.9 and 1.6 < held[1] < 1.9
hours = [costs[name].hours(assumed) for name in drawing]
assert 2 < min(hours) < 4 and 4_000 < max(hours) < 5_000
assert max(sum(cost.memory("bf16").values()) for cost in costs.values()) < 12 * 2**30
assert all(cost.micro_batch(assumed) < 16 for cost in at_512)
for name, gpus, days, peak in (
    ("edm-imagenet64", 32, 14, 312e12),
    ("edm-cifar10-uncond-vp", 8, 2, 15.7e12),
):
    flops = costs[name].training * costs[name].config.training.images / (gpus * days * 86_400)
    print(
        f"{name:<22} on the paper's {gpus:>2} GPUs: {flops / 1e12:.0f} TFLOP/s each,", end=""
    )
    print(f" {flops / peak:.0%} of the peak")
    assert (0.1 < flops / peak < 0.2) if gpus == 32 else (1 < flops / peak < 1.5)

# %% [markdown]
# Read the table from the right. Reading is no problem: a diffusion model works on an image for so long that one good
# disk feeds eight GPUs. (Only the large classifiers, which are small networks, ask for more.) What can starve a GPU is
# the unpacking of photographs, and that is done once, before (section 7.8). Then the state: none needs more than 12
# GiB, so every GPU holds all of it, and nothing but the batch has to be divided. What is large is the activations. One
# image of $512\times512$ needs about as much as the whole state, and a share of sixteen does not fit into the GPU: it
# goes through in portions. And the hours: from three of one GPU to half a year. No other method is behind that ratio,
# only widths, sides and the number of images.
#
# How good is 35 %? The papers let us look. ADM reports that its GPUs reached about a third of their peak (chapter
# 05). EDM's two weeks on 32 A100 mean that each did 14 % of its peak in sixteen bits. And its two days on eight V100
# mean 117 % of *their* peak in fp32, which shows what such numbers are: "two days" is a round number, and we count the
# operations of the definition, where a library may need fewer (Winograd's algorithm for $3\times3$ convolutions
# multiplies 4 times where the definition does 9 times). Trust the column within a factor of three.
#
# **How it grows.** By $\eqref{eq:7-10}$, twice the side means four times the pixels: four times the convolutions, and
# sixteen times the comparison of pixels with pixels. Twice the width means four times the convolutions between wide
# layers, twice the pixels with pixels.

# %%
base = describe("adm-imagenet64")


def at(side, attention, channels=192):
    """ADM's network of 64×64 at another side and width, with attention at these levels."""
    network = dataclasses.replace(base.config.network, attention=attention, channels=channels)
    config = dataclasses.replace(base.config, network=network)
    return Cost(dataclasses.replace(base, config=config, shape=(3, side, side)))


one, two, wide = (
    count(at(64, (1, 2, 3))),
    count(at(128, (1, 2, 3))),
    count(at(64, (1, 2, 3), 384)),
)
for kind in one:
    by_side, by_width = two[kind] / one[kind], wide[kind] / one[kind]
    print(f"{kind:<20} twice the side × {by_side:<6.4g} twice the width × {by_width:.4g}")
assert [two[kind] / one[kind] for kind in one] == [4, 16, 1]
assert wide["pixels with pixels"] == 2 * one["pixels with pixels"]
assert 3.9 < wide["convolutions"] / one["convolutions"] < 4


def attending(side, levels, channels=128):
    """GFLOP of a network of seven levels, like ADM's, with attention at these."""
    network = dataclasses.replace(
        base.config.network,
        mult=(1, 1, 2, 2, 4, 4, 4),
        blocks=2,
        attention=levels,
        channels=channels,
    )
    config = dataclasses.replace(base.config, network=network)
    return Cost(dataclasses.replace(base, config=config, shape=(3, side, side))).forward / 1e9


def at_sizes(side):
    """The levels at which features have 32, 16 and 8 pixels a side."""
    return tuple(int(math.log2(side // size)) for size in (32, 16, 8))


sides, widths = (64, 128, 256, 512), (64, 128, 256, 512)
papers = [attending(side, at_sizes(side)) for side in sides]
everywhere = [attending(side, tuple(range(7))) for side in sides]
wider = [attending(64, (1, 2, 3), width) for width in widths]

fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.2), sharey=True)
axes[0].loglog(sides, everywhere, "s--", color=plots.ORANGE, label="at every level")
axes[0].loglog(sides, papers, "o-", color=plots.BLUE, label="at 32, 16, 8 pixels")
by_pixels = [papers[-1] * (side / 512) ** 2 for side in sides]
axes[0].loglog(sides, by_pixels, ":", color=plots.INK, label="× 4 at each doubling")
axes[0].set(xlabel="side of the image in pixels", ylabel="GFLOP for one image, forward")
axes[0].legend(title="attention", alignment="left")
axes[0].set_title("Attention everywhere does not scale")
axes[1].loglog(widths, wider, "o-", color=plots.BLUE, label="64×64 pixels")
axes[1].loglog(
    widths,
    [wider[-1] * (w / 512) ** 2 for w in widths],
    ":",
    color=plots.INK,
    label="× 4 at each doubling",
)
axes[1].set(xlabel="channels at the first level")
axes[1].legend()
axes[1].set_title("Width costs its square")
for ax in axes:
    ax.set_xticks(sides, sides)
    ax.minorticks_off()
plt.show()
assert everywhere[-1] > 50 * papers[-1]
assert everywhere[-1] / everywhere[-2] > 12 and 3 < papers[-1] / papers[-2] < 4
assert 3.5 < wider[-1] / wider[-2] < 4.01

# %% [markdown]
# On the left is the reason why the papers have no attention at more than 32 pixels a side. At fixed sizes it costs the
# same in a picture of any size, and the network grows with the number of pixels. At every level it grows with the
# square of that number: at $512\times512$ the whole network then costs more than fifty times as much.
#
# ## 7.7 How many processors are worth it
#
# Put the pieces together. A step has a part that does not depend on the batch, $t_0$ seconds (the optimiser, the
# average, starting a thousand small programs on the GPU); $c$ seconds for each image of the share; and what is
# exposed of the exchange, $X$, which is 0 for $N=1$. With the batch fixed, as in this library, $N$ processes take
# $t_0+cB/N+X$ for it. The *efficiency* is the seconds of one process for the step over the
# seconds of all $N$ together. **Divide, and multiply out:**
#
# $$ E_{\text{strong}}(N)=\frac{t_0+cB}{N\,\big(t_0+cB/N+X\big)}=\frac{t_0+cB}{cB+N\,(t_0+X)}
#    \tag{7.13}\label{eq:7-13} $$
#
# This is called *strong scaling*: more hands for the same work. It ends. **Set** $E=\frac12$, neglect $t_0$ beside $cB$
# in the numerator, and take $X$ at this number of processes:
#
# $$ N_{1/2}\approx\frac{cB}{t_0+X}\qquad\Longleftrightarrow\qquad\frac{cB}{N_{1/2}}\approx t_0+X
#    \tag{7.14}\label{eq:7-14} $$
#
# Half of the money is wasted when a process spends as long on its share as on everything else. If instead each new
# process brings a share $b$ of its own (*weak scaling*: more work for more hands), only the exchange is added:
#
# $$ E_{\text{weak}}(N)=\frac{t_0+cb}{t_0+cb+X(N)} \tag{7.15}\label{eq:7-15} $$
#
# which looks better, and is bought with another training (section 7.3).
#
# First the formulas against a race that is run event by event: every process has a clock; a step's exchange begins
# when the slowest arrives.


# %%
# check: 7.13, 7.14, 7.15
def race(N, share, fixed, per_image, exchange, steps=50):
    """Seconds until N processes have made so many steps together, by their clocks."""
    clocks = [0.0] * N
    for _ in range(steps):
        clocks = [clock + fixed + per_image * share for clock in clocks]
        clocks = [max(clocks) + exchange * (N > 1)] * N
    return clocks[0]


fixed, per_image, exchange, B = 0.004, 0.001, 0.002, 1024
alone = race(1, B, fixed, per_image, exchange)
for N in (2, 16, 128, 1024):
    strong = alone / (N * race(N, B // N, fixed, per_image, exchange))
    by_formula = (fixed + per_image * B) / (per_image * B + N * (fixed + exchange))
    weak = race(1, 8, fixed, per_image, exchange) / race(N, 8, fixed, per_image, exchange)
    print(f"N = {N:>4}: strong {strong:.3f}, weak {weak:.3f}")
    assert abs(strong - by_formula) < 1e-9
    assert abs(weak - (fixed + per_image * 8) / (fixed + per_image * 8 + exchange)) < 1e-9
half = round(per_image * B / (fixed + exchange))
at_half = alone / (half * race(half, B / half, fixed, per_image, exchange))
print(f"half of it is lost at N = {half}: E = {at_half:.3f}")
assert abs(at_half - 0.5) < fixed / (per_image * B)

# %% [markdown]
# **Against a measurement.** The smallest cluster is two processes on the two cores of a small machine. A script
# measured, by the library's own loop with the digits network, how long a step takes in one process for shares of 8 to
# 128 images; how long two processes need to exchange so many bytes over gloo; and, separately, the step of two
# processes. Of all steps it keeps the time that one in ten stays below. The first two kinds of number go into the
# model, and the model predicts the third. Nothing is hidden here: the gradient is hardly more than a megabyte, and the
# core that would exchange is the core that computes, so $X_{\text{exposed}}=X$.

# %%
# one process and the exchange, against two processes
scaling = json.loads(Path("results/scaling_two_processes.json").read_text())
print(f"{scaling['command']}, {scaling['date']}, commit {scaling['commit']}")
print(scaling["machine"])
size = scaling["gradient_bytes"]
assert size == 4 * small.parameters
sizes = [int(key) for key in scaling["exchange"]]


def model_of(clock):
    """t_0, c and X by this clock; least squares of relative errors."""
    shares = np.array([int(key) for key in scaling["one"]])
    seconds = np.array([row[clock] for row in scaling["one"].values()])
    c, t_0 = np.polyfit(shares, seconds, 1, w=1 / seconds)
    return (
        t_0,
        c,
        np.interp(size, sizes, [row[clock] for row in scaling["exchange"].values()]),
    )


# how much of a core the single process had, at the quietest of times
undisturbed = min(row["cpu_seconds"] / row["seconds"] for row in scaling["one"].values())
print(f"the single process computed for {undisturbed:.0%} of the time that passed")
off = {}
for clock in ("cpu_seconds", "seconds"):
    t_0, c, X = (1e3 * value for value in model_of(clock))
    print(f"\n{'by the wall clock' if clock == 'seconds' else 'by processor time'}:", end=" ")
    print(f"t_0 = {t_0:.1f} ms, c = {c:.3f} ms an image, X = {X:.2f} ms")
    for B, row in scaling["two"].items():
        predicted, measured = t_0 + c * int(B) / 2 + X, 1e3 * row[clock]
        off[clock, B] = predicted / measured - 1
        print(
            f"  B = {B:>3}: predicted {predicted:6.1f} ms, measured {measured:6.1f} ms",
            end="",
        )
        gain = 1e3 * scaling["one"][B][clock] / measured
        print(f" ({off[clock, B]:+.1%});  {gain:.2f} times one process")
    if clock == "cpu_seconds" or undisturbed > 0.9:
        assert all(abs(miss) < 0.2 for (by, _), miss in off.items() if by == clock)
        print(f"  half is lost at B = 128 on {c * 128 / (t_0 + X):.1f} processes")
        assert 2 < c * 128 / (t_0 + X) < 16

# %% [markdown]
# Two clocks, because a machine may have other work. The wall clock then measures that work too: a step of two
# processes waits for whichever of them was interrupted, and the formula knows of no interruption. The processor's
# clock stands still meanwhile. By it the prediction must hold within a fifth for every batch. But it stands still
# for any waiting, so that it tests the halved work and the work of the exchange, and not how long one process waits for
# the other. That takes the wall clock, and where the single process had its core for at least 90 % of the time, the
# cell asks the same of it. The model leaves out that two processes on one machine share its memory and slow each other
# down while they compute.
#
# The line on the half is $\eqref{eq:7-14}$: the digits recipe has so little to do in a step that it can use no more
# than a handful of processes.

# %% [markdown]
# **On a cluster** we have no measurement, only the model. So that you can put in your own numbers, here is what it
# assumes. Each GPU is an H100 at 35 % of its rate in bf16, as in the table. Of $t_0$, 5 ms are for starting the work,
# and the rest is memory: Adam and one average read and write 40 bytes for each weight, at 3.35 TB/s. Eight GPUs of
# one machine are joined by NVLink, 450 GB/s in each direction. Between machines there is either InfiniBand with one
# adapter of 50 GB/s for each GPU, 400 together, or one cable of 100 Gb Ethernet, 12.5 GB/s, for all eight. Delays are
# 3, 10 and 30 µs. A ring carries as much as its narrowest link; of its delays seven of eight are NVLink's. Gradients
# are exchanged in fp32, in buckets, while the backward pass, two thirds of the computation, runs.

# %%
NVLINK, INFINIBAND, ETHERNET = (450e9, 3e-6), (400e9, 10e-6), (12.5e9, 30e-6)


def step_time(cost, N, share, between, buckets=True):
    """Seconds of a step, and the parts (fixed, computation, exposed exchange)."""
    S = 4 * cost.parameters
    w, latency = NVLINK
    if N > 8:
        w, latency = between[0], (7 * latency + between[1]) / 8
    m = math.ceil(S / BUCKET) if buckets else 1
    exchange = 2 * (N - 1) * (S / (N * w) + m * latency)
    computation = share / cost.per_second(assumed)
    left = exposed(exchange, 2 / 3 * computation, m) if N > 1 else 0.0
    fixed = 5e-3 + 40 * cost.parameters / 3.35e12
    return fixed + computation + left, (fixed, computation, left)


def strong(name, N, between, **how):
    """Efficiency of N GPUs with the batch of the recipe."""
    cost = costs[name]
    B = cost.config.training.batch
    return step_time(cost, 1, B, between)[0] / (
        N * step_time(cost, N, B // N, between, **how)[0]
    )


print(f"{'':<24}{'InfiniBand':>26}{'Ethernet':>22}")
print(f"{'':<18}{'GPUs':>5}{'share':>7}" + 2 * f"{'days':>9}{'efficiency':>12}")
for name in ("ddpm-cifar10", "adm-imagenet64", "adm-imagenet256"):
    training = costs[name].config.training
    for N in (1, 8, 64):
        row = []
        for between in (INFINIBAND, ETHERNET):
            seconds, _ = step_time(costs[name], N, training.batch // N, between)
            days = seconds * training.images / training.batch / 86_400
            row.append((days, strong(name, N, between)))
        share = training.batch // N
        numbers = "".join(f"{days:>9.2f}{share_of:>12.0%}" for days, share_of in row)
        print(f"{name:<18}{N:>5}{share:>7}{numbers}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.3), sharey=True)
counts = [2**k for k in range(9)]
for name, colour in (
    ("ddpm-cifar10", plots.ORANGE),
    ("adm-imagenet64", plots.BLUE),
    ("adm-imagenet256", plots.INK),
):
    cost = costs[name]
    B = cost.config.training.batch
    for between, line in ((INFINIBAND, "o-"), (ETHERNET, "s:")):
        values = {N: strong(name, N, between) for N in counts if N <= B}
        label = name if line == "o-" else None
        axes[0].semilogx(
            list(values),
            list(values.values()),
            line,
            color=colour,
            markersize=3.5,
            label=label,
        )
        weak = [
            step_time(cost, 1, 16, between)[0] / step_time(cost, N, 16, between)[0]
            for N in counts
        ]
        axes[1].semilogx(counts, weak, line, color=colour, markersize=3.5)
axes[0].set_title("Strong: every model has its end")
axes[1].set_title("Weak, 16 images each: the link decides")
for ax in axes:
    ax.set(xlabel="GPUs", ylim=(0, 1.05))
    ax.set_xticks([1, 8, 64, 256], [1, 8, 64, 256])
    ax.minorticks_off()
axes[0].set_ylabel("efficiency")
axes[0].legend(loc="lower left")
axes[1].plot(
    [], [], "o-", color=plots.INK, markersize=3.5, label="InfiniBand between machines"
)
axes[1].plot([], [], "s:", color=plots.INK, markersize=3.5, label="100 Gb Ethernet")
axes[1].legend(loc="lower left")
plt.show()
assert (
    strong("ddpm-cifar10", 8, INFINIBAND)
    < 0.5
    < 0.9
    < strong("adm-imagenet256", 8, INFINIBAND)
)
assert (
    strong("adm-imagenet256", 64, INFINIBAND) > 0.8
    and strong("adm-imagenet256", 64, ETHERNET) < 0.3
)
hidden, waited = (
    strong("adm-imagenet256", 64, INFINIBAND, buckets=way) for way in (True, False)
)
print(f"adm-imagenet256 on 64 GPUs, InfiniBand: {hidden:.0%}; nothing hidden: {waited:.0%}")
assert waited < hidden - 0.03
# of the exchange of 256 GPUs over InfiniBand, the delays: seven of eight are NVLink's
N, w, S = 256, INFINIBAND[0], 4 * large.parameters
latency = (7 * NVLINK[1] + INFINIBAND[1]) / 8
delays, carrying = 2 * (N - 1) * math.ceil(S / BUCKET) * latency, 2 * (N - 1) * S / (N * w)
print(f"256 GPUs: delays {1e3 * delays:.0f} ms, carrying {1e3 * carrying:.0f} ms")
assert delays > 10 * carrying and strong("adm-imagenet256", 256, INFINIBAND) < 0.2

# %% [markdown]
# Three lessons. A small model should stay on one GPU: DDPM's network for CIFAR-10 has so little to do for its share
# that eight GPUs spend most of their time on everything else. (Train several seeds beside each other instead.) A large
# model scales as far as its links do: well within a machine, over InfiniBand until a GPU holds only a few images, over
# Ethernet hardly beyond one machine. And hiding the exchange behind the backward pass helps, but what is longer than
# the backward pass cannot hide behind it.
#
# At 256 GPUs the delays of the ring take more than ten times as long as its bytes: each of its buckets goes through 510
# rounds. There the ring is the wrong arrangement. NCCL, which exchanges between GPUs, then sends along trees, where a
# number passes about $\log_2N$ others on its way instead of $N$; the right end of the figure is the ring's.
#
# With the batch fixed, none of this changes what is trained. That was the point of section 7.2.

# %% [markdown]
# ## 7.8 From a folder to a data set
#
# Everything so far had its data in memory. A million photographs are files: of all sizes and formats, a few of them
# broken, most of them far larger than what a network sees. To open, decode and shrink thousands of them in every step
# would be a second large computation beside the training, and the same work again in each epoch. So it is done once.
# `minidiff prepare` reads whatever there is (a folder whose subfolders are the classes, a zip, CIFAR's or
# MNIST's own files, an `.npz`, parquet, the name of a Hugging Face data set) and leaves a folder of plain arrays.
#
# We try it on a folder as people have them. scikit-learn ships two colour photographs, a Chinese temple and a flower.
# We cut 320 pieces out of them, squares of 60 to 160 pixels but for the first of each, and save these as PNG files in
# two folders. Then we do what time does to folders: one file is cut off in the middle, in each folder one is a JPEG
# whose name says PNG, one file is a text about the pictures, and one a text whose name says that it is a picture. All
# commands of this part run in a temporary folder, which we call the desk.

# %%
from PIL import Image
from sklearn.datasets import load_sample_images

desk = tempfile.TemporaryDirectory()
at_desk = Path(desk.name).resolve()


def minidiff(line, **environment):
    """Run a command at the desk: its exit code, and what it said."""
    said, before = io.StringIO(), dict(os.environ)
    os.environ.update(environment)
    try:
        with contextlib.chdir(at_desk), contextlib.redirect_stdout(said):
            with contextlib.redirect_stderr(said):
                code = main(shlex.split(line))
    finally:
        os.environ.clear()
        os.environ.update(before)
        # the pictures of commands are files
        plt.close("all")
    # paths as they look from the desk
    return code, said.getvalue().replace(f"{at_desk}/", "")


def shown(line, **environment):
    """The same for a command that succeeds; print both as a terminal would."""
    code, said = minidiff(line, **environment)
    assert code == 0, said
    print(f"$ minidiff {line}\n{said}")
    return said


where = np.random.default_rng(7)
photographs = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
for name, photo in photographs.items():
    (at_desk / "photographs" / name).mkdir(parents=True)
    for k in range(160):
        # the first of each class can be halved exactly, and is wider than high
        height = 64 if k == 0 else int(where.integers(60, 161))
        width = 96 if k == 0 else height
        top, left = where.integers(0, 427 - height), where.integers(0, 640 - width)
        cut = Image.fromarray(photo[top : top + height, left : left + width])
        path = at_desk / "photographs" / name / f"{k:03}.png"
        cut.save(
            path, "JPEG" if k == 5 else "PNG", **({} if k == 5 else {"compress_level": 1})
        )

broken = at_desk / "photographs" / "flower" / "007.png"
broken.write_bytes(broken.read_bytes()[:2000])
(at_desk / "photographs" / "temple" / "list.png").write_text("001 to 159: temple")
(at_desk / "photographs" / "temple" / "notes.txt").write_text("taken in summer")
assert len(list((at_desk / "photographs").glob("*/*"))) == 322

# %% tags=["nbval-ignore-output"]
code, said = minidiff("prepare photographs data --size 16")
print(said)
assert code == 1 and "2 corrupt images" in said
assert "flower/007.png" in said and "temple/list.png" in said
assert "notes.txt" not in said and "005.png" not in said

# %% [markdown]
# It refuses, with exit code 1 and a list. A set that silently lost a tenth of its images would be a set that nobody
# described, so what is broken is left out only if one says so. `005.png` is on the list of neither class: its content
# tells what a file is, and a JPEG may be called anything. Nor is `notes.txt`, which does not claim to be a picture; it
# is left out and named in the card. The work done so far is kept, and the same command with one flag more goes on.

# %%
shown("prepare photographs data --size 16 --skip-corrupt")
card = json.loads((at_desk / "data" / "card.json").read_text())
print("the card:", ", ".join(card))
((file, entry),) = card["parts"]["train"]["shards"].items()
print(file, {key: entry[key] for key in ("images", "bytes")})
for place, name, why in entry["left_out"]:
    print(f"left out: file {place}, {name}: {'no image' if why is None else 'corrupt'}")
assert [name for _, name, _ in entry["left_out"]] == [
    "flower/007.png",
    "temple/list.png",
    "temple/notes.txt",
]
assert card["classes"] == ["flower", "temple"] and entry["images"] == 320 - 1
# three bytes a pixel, and the 128 that say so
assert entry["bytes"] == 319 * 3 * 16 * 16 + 128

# %% [markdown]
# The card is written last and makes the set whole; it has the SHA-256 of every file. Disks and copies seldom return
# other bytes than they were given, and say nothing when they do. `--check` reads everything and compares; the same
# `prepare` makes anew what is damaged. We flip one bit.

# %%
shard = at_desk / "data" / file
content = bytearray(shard.read_bytes())
content[5000] ^= 1
shard.write_bytes(content)
code, said = minidiff("prepare --check data")
print(said)
assert code == 1 and "damaged" in said and file in said

content[5000] ^= 1
assert minidiff("prepare photographs data --size 16 --skip-corrupt")[0] == 0
assert shard.read_bytes() == content
assert "all checksums are right" in shown("prepare --check data")

# %% [markdown]
# What happened to a picture? Its shorter side was halved by averaging $2\times2$ pixels for as long as it was at
# least twice the size asked for, then brought to that size by one bicubic step, and the middle square was kept. This
# is how ADM's code treats ImageNet, and one has to do as it does: FID sees how an image was shrunk. For the two
# pictures of $64\times96$ pixels there is nothing bicubic to do, and the answer is known: the mean over $4\times4$
# pixels of the middle 64 columns, up to roundings. (There are four: Pillow halves the width and then the height, and
# rounds each time, so half a level four times is the most that it can be off.)

# %% tags=["nbval-ignore-output"]
from minidiff.data.shards import open_shards

shards, labels = open_shards(at_desk / "data", "train")
for name in card["classes"]:
    first = np.asarray(Image.open(at_desk / "photographs" / name / "000.png")).astype(float)
    middle = torch.from_numpy(first[:, 16:80]).permute(2, 0, 1)
    place = int((labels == card["classes"].index(name)).nonzero()[0])
    off = (shards[place].double() - F.avg_pool2d(middle, 4)).abs().max().item()
    # the corner of the uncut picture would be another one
    shifted = F.avg_pool2d(torch.from_numpy(first[:, :64]).permute(2, 0, 1), 4)
    wrong = (shards[place].double() - shifted).abs().max().item()
    print(
        f"{name}: off by {off:.2f} levels of 256; by {wrong:.0f} had the left side been kept"
    )
    assert off <= 4 * 0.5 < 10 < wrong

# %% [markdown]
# Now a batch. The arrays are not read but *mapped*: the operating system fetches a page of a file when a byte of it
# is asked for, and forgets it again when memory is short, so a set may be larger than the memory and all processes of
# a machine share one copy. The images of a batch lie all over the file; they are collected by one indexing operation,
# a gather. That it gives what reading one by one gives is asserted, and the gain over opening the files printed. (We
# count processor time. Where a set does not fit into memory, waiting for the disk comes on top.)

# %% tags=["nbval-ignore-output"]
import time

from minidiff.data.centre_crop import centre_crop, eight_bits

assert all(isinstance(each, np.memmap) for each in shards.maps)
index = torch.randint(len(shards), (256,), generator=rng(1))
gathered = shards[index]
assert torch.equal(gathered, torch.stack([shards[int(k)] for k in index]))
speed = {}
began = time.process_time()
for k in range(100, 150):
    centre_crop(eight_bits(at_desk / "photographs" / "temple" / f"{k}.png", "RGB"), 16)
speed["opened, decoded, shrunk"] = 50 / (time.process_time() - began)
began = time.process_time()
for _ in range(40):
    shards[index]
speed["gathered"] = 40 * 256 / (time.process_time() - began)
for name, rate in speed.items():
    print(f"{name:<24}{rate:>12,.0f} images a second of one core")
assert speed["gathered"] > 5 * speed["opened, decoded, shrunk"]

# %% [markdown]
# ## 7.9 Train on my folder
#
# Five commands lead from a folder of pictures to a page that says what came of it:
#
# ```
# minidiff prepare photographs data --size 64
# minidiff train edm-ffhq64-vp --data.source data --out runs/photos --resume
# minidiff sample runs/photos -n 50000 --format png --out drawn
# minidiff evaluate drawn --reference data --out runs/photos
# minidiff report runs/photos --out report
# ```
#
# We follow them with a network and a size that one core can train in half a minute: `digits-edm` on our $16\times16$
# crops, told the class. One number has to be computed first. Chapter 06 showed what a $\sigma_{\mathrm{data}}$ from
# another data set does. So we take the root mean square of ours, and shift $P_{\mathrm{mean}}$ by the logarithm of its
# ratio to EDM's 0.5.

# %%
images = md.load_data(at_desk / "data")
sigma_data = images.x.square().mean().sqrt().item()
P_mean = -1.2 + math.log(sigma_data / 0.5)
print(f"{len(images)} to train on, σ_data {sigma_data:.2f}, P_mean {P_mean:.2f}")
assert len(images) == 256 and 0.6 < sigma_data < 0.75
FOLDER = (
    "digits-edm --data.source data --data.labels --data.flip --network.classes 2"
    " --network.channels 16"
    f" --process.column-options.sigma-data {sigma_data:.2f}"
    f" --process.column-options.P-mean {P_mean:.2f}"
)
SHORT = (
    "--training.images 6400 --training.batch 16 --training.lr 3e-3 --training.ramp 1600"
    " --training.tick 400 --training.checkpoint 3200 --training.ema 1200 --device cpu"
)

# %% tags=["nbval-ignore-output"]
code, said = minidiff(f"train {FOLDER} {SHORT} --out runs/photos -n 1")
assert code == 0, said
lines = said.splitlines()
print("\n".join([*lines[:4], "…", *lines[-6:]]))

# %% [markdown]
# Now the samples, as PNG files, and beside them what they should look like. Half a minute is short: the network has
# the colours of each class, orange patches on dark green and white beside dark, but no petal and no roof yet. Does it
# copy? With 256 images to train on that must be asked. For every sample we look for the nearest training image, and
# do the same for real crops that were held out. Copies would be much nearer than those. (The reverse says nothing
# about quality: noise is far from everything.)

# %% tags=["nbval-ignore-output"]
from minidiff.evaluation import open_images

shown("sample runs/photos -n 64 --format png --shard 32 --out drawn")
drawn = open_images(at_desk / "drawn").read(0, 64)
rows, row_names = [], []
for label, name in enumerate(card["classes"]):
    real = images.pixels[torch.nonzero(images.labels == label)[:10, 0]]
    # the class of an image is its seed modulo 2
    rows += [real, drawn[label:20:2]]
    row_names += [f"{name}, real", "drawn"]
fig, ax = plt.subplots(figsize=(6.4, 2.9))
plots.show_grid(
    md.encode(torch.cat(rows), 256),
    columns=10,
    title="Half a minute on one core: the colours of each class, no details yet",
    ax=ax,
    row_labels=row_names,
)
plt.show()

held = md.load_data(at_desk / "data", "test")


def nearest(pixels):
    """Root mean square distance of each image to the nearest training image, in levels."""
    flat = (each.double().flatten(1) for each in (pixels, images.pixels[:]))
    return torch.cdist(*flat).min(1).values / pixels[0].numel() ** 0.5


apart = {
    "samples": nearest(drawn).median().item(),
    "held out": nearest(held.pixels[:]).median().item(),
}
print(
    "to the nearest training image:", {name: round(value, 1) for name, value in apart.items()}
)
assert apart["samples"] > 0.5 * apart["held out"]
mean_of = lambda pixels: pixels.double().mean((0, 2, 3))
for label, name in enumerate(card["classes"]):
    real, ours = (
        mean_of(images.pixels[torch.nonzero(images.labels == label)[:, 0]]),
        mean_of(drawn[label::2]),
    )
    print(f"{name}: mean colour {real.int().tolist()}, drawn {ours.int().tolist()}")
    assert (real - ours).abs().max() < 40

# %% [markdown]
# (The held-out crops are of the same two photographs and overlap with the others. For a set of separate pictures the
# comparison is a fair one, and worth a look before any score.)
#
# Then the scores. `minidiff evaluate drawn --reference data` would look through Inception, whose weights are fetched
# once. We are offline and have an extractor for grey pictures of $8\times8$ pixels, which has seen nothing but
# digits. It is enough to show the road: `prepare` brings samples and data to its size, as it would any pictures. That
# it also holds out a fifth of the samples does no harm here. A score alone says little, so we ask for that of real
# crops, too: the held-out ones, which are as many.

# %% tags=["nbval-ignore-output"]
assert minidiff("prepare photographs data8 --size 8 --grey --skip-corrupt")[0] == 0
assert minidiff("prepare drawn drawn8 --size 8 --grey")[0] == 0
shown(
    "evaluate drawn8 --reference data8 --metrics fid,pr --extractor digits --out runs/photos"
)
told = (md.load_data(at_desk / "data8"), md.DigitsExtractor(), ("fid", "pr"))
ours, real, noise = (
    md.evaluate(each, *told).values
    for each in (
        md.load_data(at_desk / "drawn8"),
        md.Images(md.load_data(at_desk / "data8", "test").pixels[:52]),
        md.Images(torch.randint(256, (52, 1, 8, 8), generator=rng(2), dtype=torch.uint8)),
    )
)
for name, scores in (("drawn", ours), ("real, held out", real), ("noise", noise)):
    print(f"{name:<16}" + "".join(f"{key} {value:<9.2f}" for key, value in scores.items()))
assert real["fid"] < ours["fid"] < noise["fid"]

# %%
assert minidiff("report runs/photos --out report")[0] == 0
page = (at_desk / "report" / "report.md").read_text()
print("report/:", ", ".join(sorted(path.name for path in (at_desk / "report").iterdir())))
print(
    "its sections:",
    ", ".join(line[3:] for line in page.splitlines() if line.startswith("## ")),
)
assert "digits-edm" in page and "drawn8" in page

# %% [markdown]
# The run is a beginning for others. `--init-from` takes its averaged weights and nothing else: no moments, no clock.
# A second training then begins where the first had arrived, at whatever rate and on whatever data.

# %% tags=["nbval-ignore-output"]
more = SHORT.replace("--training.images 6400", "--training.images 400")
assert minidiff(f"train {FOLDER} {more} --out runs/more --init-from runs/photos -n 1")[0] == 0
first = {name: md.read_metrics(at_desk / "runs" / name)[0] for name in ("photos", "more")}
print(
    {
        name: f"loss {line['loss']:.2f} in the first {line['images']} images"
        for name, line in first.items()
    }
)
assert first["more"]["loss"] < 0.7 * first["photos"]["loss"]

# %% [markdown]
# What would it take to be good? Three things, and the library is none of them. *Pictures*: two photographs hold no
# more than two photographs' worth of variety; the smallest of EDM's sets has 15,803 faces of animals, and is trained
# with augmentation and a dropout of 0.25. *A network* that can hold them, and *time* to train it. The cell puts
# numbers to the last two.

# %%
from minidiff.recipes import describe
from minidiff.training.cost import Assumed, Cost

with contextlib.chdir(at_desk):
    model, description = md.load("runs/photos")
mine, faces = Cost(description), Cost(describe("edm-afhqv2-vp"))
print(f"{'':<20}{'parameters':>12}{'GFLOP/image':>13}{'images':>14}{'TFLOP':>15}")
for name, cost in (("runs/photos", mine), ("edm-afhqv2-vp", faces)):
    n = cost.config.training.images
    print(
        f"{name:<20}{cost.parameters:>12,}{cost.training / 1e9:>13.2f}{n:>14,}"
        f"{cost.training * n / 1e12:>15,.1f}"
    )
print(f"edm-afhqv2-vp, on {assumed}: {faces.hours(assumed):,.0f} GPU-hours")
times = faces.training * 200_000_000 / (mine.training * 6400)
assert faces.config.training.images == 200_000_000 and times > 1e7
assert faces.config.network.dropout == 0.25 and faces.config.data.augment

# %% [markdown]
# ## 7.10 The launch line
#
# From a laptop to a cluster two things change in the command: who starts it, and the recipe's name.
#
# ```
# # a laptop, or one GPU
# minidiff train digits --out runs/digits --resume
#
# # eight GPUs in one machine
# torchrun --standalone --nproc-per-node 8 --max-restarts 3 \
#     -m minidiff train adm-imagenet64 --data.source /shared/imagenet64 --out /shared/runs/adm64 --resume
#
# # four such machines: the same on each of them, node01 being the first
# torchrun --nnodes 4 --nproc-per-node 8 --rdzv-id adm64 --rdzv-backend c10d --rdzv-endpoint node01:29500 \
#     --max-restarts 3 \
#     -m minidiff train adm-imagenet64 --data.source /shared/imagenet64 --out /shared/runs/adm64 --resume
# ```
#
# `torchrun` comes with PyTorch. It starts one process for each GPU, tells each by environment variables who it is
# (`RANK` of `WORLD_SIZE`, and `LOCAL_RANK` in its machine), and watches them: if one dies it ends the others and
# starts all of them again, here up to three times. (`--rdzv-…` says where several machines meet.) That is why
# `--resume` stands in every line. It goes on from the newest checkpoint, and begins where there is none, so the first
# start and all later ones are one command. Folders must be ones that every machine sees. Nothing else in the line
# knows how many processes there are: the batch of 2,048 is the recipe's, and 32 processes take 64 each. Where memory
# does not hold the 64, `--micro 16` passes them through the network in portions.
#
# On a shared cluster a scheduler starts the job, and ends it: at its time limit, or earlier because someone else's
# is more urgent. This is a whole script for Slurm.

# %%
SLURM = r"""#!/bin/bash
#SBATCH --job-name=adm64
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1        # one torchrun a machine, which starts eight processes
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue                  # pre-empted, or a machine failed: back into the queue
#SBATCH --signal=TERM@120          # two minutes before the end: SIGTERM to what srun started
#SBATCH --output=adm64.log
#SBATCH --open-mode=append         # one log of all its lives

RUN=/shared/runs/adm64
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK   # newer versions of srun do not inherit it

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$FIRST:29500" \
    -m minidiff train adm-imagenet64 --data.source /shared/imagenet64 --out $RUN --resume \
    --keep 3 --milestone 100_000_000

# its last act is to draw samples; without them it is not done, and goes on in a new job
if [ ! -e $RUN/samples.png ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
"""

# %% [markdown]
# `--requeue` alone covers pre-emption and broken machines. A job that reaches its time limit counts as ended, so the
# script asks for the next turn itself, unless the run is finished or the job has begun twenty times anew: a misspelt
# flag must not knock for ever. Two minutes before the end Slurm sends SIGTERM to `torchrun`, which hands it on. The
# processes agree that the step they are in is the last, write a checkpoint and exit, all within the thirty seconds
# that `torchrun` grants them. `--keep 3 --milestone 100_000_000` keeps the last three checkpoints, and one in every
# hundred million images for ever.
#
# We have no Slurm here. But a script is text, and its programs can be played by others: a `scontrol` that knows four
# machines, an `srun` that writes down what it was told. Then those who would have been called read the result:
# torchrun's own parser, and minidiff's.

# %%
from torch.distributed.run import get_args_parser

from minidiff.cli.train import settings

stage = at_desk / "stage"
stage.mkdir()
for name, text in {
    "srun": 'printf "%s\\n" "$@" > told',
    "scontrol": """
if [ "$1" = show ]; then printf "node0%s\\n" 1 2 3 4; else echo "$@" > again; fi""",
}.items():
    (stage / name).write_text(f"#!/bin/bash\n{text}\n")
    (stage / name).chmod(0o755)
(stage / "adm64.sh").write_text(SLURM)
slurm = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "node0[1-4]",
    "SLURM_NNODES": "4",
    "SLURM_CPUS_PER_TASK": "64",
    "PATH": f"{stage}:{os.environ['PATH']}",
}


def play(**environment):
    """Run the script; whether it asked for another turn."""
    (stage / "again").unlink(missing_ok=True)
    env = os.environ | slurm | environment
    subprocess.run(["bash", "adm64.sh"], cwd=stage, env=env, check=True)
    return (stage / "again").exists() and (stage / "again").read_text() == "requeue 17\n"


assert play() and play(SLURM_RESTART_COUNT="19") and not play(SLURM_RESTART_COUNT="20")
# the same script where the run is finished
(stage / "runs" / "adm64").mkdir(parents=True)
(stage / "runs" / "adm64" / "samples.png").touch()
(stage / "adm64.sh").write_text(SLURM.replace("/shared/runs", str(stage / "runs")))
assert not play()
(stage / "adm64.sh").write_text(SLURM)
assert play()

launcher, *told = (stage / "told").read_text().splitlines()
launch = get_args_parser().parse_args(told)
assert launcher == "torchrun" and launch.module and launch.training_script == "minidiff"
assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_endpoint) == (
    "4",
    "8",
    "node01:29500",
)
command, name, *flags = launch.training_script_args
assert command == "train"
options, config = settings(name, flags)
processes = int(launch.nnodes) * int(launch.nproc_per_node)
share, rest = divmod(config.training.batch, processes)
assert options.resume and options.execution.keep == 3 and rest == 0
assert options.execution.milestone == 100_000_000
print(
    f"{processes} processes: {share} of {config.training.batch:,} images each,"
    f" then {(stage / 'again').read_text().strip()}"
)

# %% [markdown]
# **How often to save?** While a checkpoint is written nobody computes; that costs $c$. A failure costs what was done
# since the last checkpoint. Let failures come at random with a mean time $M$ between them, and let $\tau$ be the time
# from one checkpoint to the next. Of each $\tau$ a share $c/\tau$ goes into saving. A failure falls anywhere between
# two checkpoints, so it costs half of $\tau$ on average, and in a time $T$ there are $T/M$ of them. **Add the two**:
#
# $$ \ell(\tau)=\frac{c}{\tau}+\frac{\tau}{2M} \tag{7.16}\label{eq:7-16} $$
#
# is the share of time that is lost, as long as both terms are small. **Set the derivative to zero**,
# $-c/\tau^2+1/2M=0$:
#
# $$ \tau^*=\sqrt{2cM},\qquad \ell(\tau^*)=\sqrt{2c/M}. \tag{7.17}\label{eq:7-17} $$
#
# (The rule is Young's, of 1974.) And $M$ shrinks with the machine: if each of $N$ parts fails with a rate $1/M_1$,
# the rates add, and $M=M_1/N$. Four times as many GPUs should save twice as often, and still lose twice the share.
# The check plays the game with dice: work, save, fail at random, go on from the last checkpoint.

# %%
# check: 7.16, 7.17


def lost_share(tau, c, M, failures, seed):
    """Simulated: tau of work, c of saving; a failure takes back the unfinished cycle."""
    gaps = np.random.default_rng(seed).exponential(M, failures)
    whole_cycles = np.floor(gaps / (tau + c))
    return 1 - (whole_cycles * tau).sum() / gaps.sum()


c, M = 1.0, 500_000.0
best = math.sqrt(2 * c * M)
loss_at = lambda tau: c / tau + tau / (2 * M)
print("τ/τ*   simulated  by (7.16)")
measured = {}
for factor in (0.25, 0.5, 1, 2, 4):
    measured[factor] = lost_share(factor * best, c, M, 400_000, seed=3)
    print(f"{factor:<6}{measured[factor]:>10.5f}{loss_at(factor * best):>11.5f}")
    assert abs(measured[factor] / loss_at(factor * best) - 1) < 0.03
assert min(measured, key=measured.get) == 1
assert abs(loss_at(best) - math.sqrt(2 * c / M)) < 1e-12
# half as long as best costs as much as twice as long, a quarter more each
assert abs(loss_at(best / 2) / loss_at(best) - 1.25) < 1e-12
assert abs(loss_at(2 * best) / loss_at(best) - 1.25) < 1e-12

# %% [markdown]
# One may miss the best $\tau$ by a factor of two in either direction and pay a quarter more of something small. Now
# with numbers. In 54 days on 16,384 H100 the authors of Llama 3 counted 419 interruptions that nobody had planned. We
# take their rate as an assumption, and another: that the file system takes 1 GB/s from the one process that writes.

# %%
one_gpu = 54 * 24 * 16_384 / 419
assert abs(one_gpu / 50_000 - 1) < 0.02
adm64 = Cost(describe("adm-imagenet64"))
# of what is in memory all but the gradients is written down
saved = sum(adm64.memory("tf32").values()) - 4 * adm64.parameters
save_seconds = saved / 1e9
print(
    f"one GPU fails every {one_gpu / 24 / 365:.1f} years;"
    f" a checkpoint has {saved / 1e9:.1f} GB"
)
print(
    f"{'GPUs':>6}{'between failures':>18}{'best interval':>16}{'lost':>9}"
    f"{'images':>12}{'the recipe has':>16}"
)
for gpus in (8, 32, 1024):
    between = one_gpu * 3600 / gpus
    tau = math.sqrt(2 * save_seconds * between)
    every = tau * gpus * adm64.per_second(assumed)
    print(
        f"{gpus:>6}{between / 3600:>16,.0f} h{tau / 60:>12,.0f} min"
        f"{math.sqrt(2 * save_seconds / between):>9.2%}"
        f"{every / 1e6:>10,.0f} M{adm64.config.training.checkpoint / 1e6:>14,.0f} M"
    )
    # the recipe's interval is the shorter one, up to a thousand GPUs
    assert every > adm64.config.training.checkpoint

# %% [markdown]
# For the sizes of this book failures are rare and saving is cheap. What is lost in practice is lost otherwise: a run
# that did not start again by itself on Friday evening, a checkpoint that was half written, a continuation that was
# not one. So we turn to what has to be in a checkpoint, and then pull plugs.
#
# ## 7.11 What a resumed run has to know
#
# Let $s_n$ be everything that changes while a run trains, after $n$ images: weights, the optimiser's moments,
# averages, and what the law of times has learned. A step takes $s_n$, the examples whose turn it is, and random
# numbers: times, noise, mirrored or not, dropout. Call all the random numbers of a step $\xi$. Usually they come from
# a generator, which remembers where it is, one in every process, and another in the data loader with its own workers.
# All of these would have to be saved and restored, and none of them fits when the number of processes has changed.
#
# The way out is to have no such memory. **Seed anew in every step**, from the run's seed, the rank of the process and
# the images seen:
#
# $$ s_{n+B}=G\big(s_n,\;\xi(\text{seed},\,r,\,n)\big) \tag{7.18}\label{eq:7-18} $$
#
# with a function $G$ that the recipe, the data and the number of processes fix ($r$ runs over all ranks). **By
# induction** $s_m$ for $m>n$ is a function of $s_n$ and the seed alone: whoever has $s_n$, to the last bit, ends in the
# same $s_m$, to the last bit, however often the way was broken and resumed. (The processor has to compute $G$ the same
# way each time. A CPU does, for one number of threads; a GPU of one kind does under `--deterministic`.)
#
# This is a claim about every part of $s_n$. So we take a small network with dropout and two averages, train it for
# ten steps, and then for five, save, load and five more. Then we forget one part at a time.

# %%
# check: 7.18
from minidiff.training import loop, time_sampler

tiny = md.Config(
    "digits",
    process=md.GaussianConfig(T=30),
    network=md.UNetConfig(channels=4, mult=(1, 2), blocks=1, attention=(1,), dropout=0.3),
    training=md.TrainingConfig(
        images=160,
        batch=16,
        lr=1e-3,
        ramp=100,
        ema=(50, 2000),
        tick=16,
        checkpoint=80,
        times="importance",
    ),
)
about = md.Description(tiny, (1, 8, 8), 17)
digits = md.digits()


def new_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return md.begin(about.build(), time_sampler(tiny), tiny.training)


def everything(state):
    """All numbers of a state, as one vector."""
    modules = [state.model, *(ema.model for ema in state.emas)]
    numbers = [p for module in modules for p in module.parameters()]
    numbers += [
        m[key] for m in state.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")
    ]
    return torch.cat([x.detach().double().flatten() for x in numbers])


def broken_off(forget):
    """Five steps, a checkpoint, and from there five more; something may be forgotten."""
    with tempfile.TemporaryDirectory() as run:
        half = dataclasses.replace(tiny.training, images=80)
        md.train(new_state(), digits, half, run, about)
        state = new_state()
        assert md.resume(state, run) and state.images == 80
    forget(state)
    # as many steps as are left, whatever the clock says
    training = dataclasses.replace(tiny.training, images=state.images + 80)
    return everything(md.train(state, digits, training))


def no_moments(state):
    state.optimizer = new_state().optimizer.__class__(
        state.model.parameters(), lr=1e-3, weight_decay=0.0
    )


def no_averages(state):
    for ema in state.emas:
        ema.model.load_state_dict(state.model.state_dict())


def no_clock(state):
    state.images = 0


unbroken = everything(md.train(new_state(), digits, tiny.training))
print(f"{len(unbroken):,} numbers; of those that differ from the unbroken run")
for name, forget in {
    "nothing forgotten": lambda state: None,
    "the moments": no_moments,
    "the averages": no_averages,
    "the images seen": no_clock,
}.items():
    apart = (broken_off(forget) != unbroken).double().mean().item()
    print(f"   {name:<20}{apart:>5.0%}")
    assert (apart == 0) == (name == "nothing forgotten")

# %% [markdown]
# What the law of times has learned is part of $s_n$, too, but with ten draws needed for each $t$ before
# importance sampling begins (chapter 04), 300 of them here, the 160 images of this run are too few for it to matter.
# The library's tests wait until it does.
#
# Then the order of the data. An epoch that ends with a batch that is not full has to throw images away, or make a
# step in which each image counts for more; and a loader that deals out an epoch to $N$ processes deals differently
# for another $N$. Both go away if the images that a run has seen are numbered $p=0,1,2,\dots$ without regard to
# epochs, and $p$ says which image it is. With $Y$ images, a seeded permutation $\pi_e$ for each epoch $e$, and $N$
# processes with $B/N$ places each:
#
# $$ p=n+\frac{rB}{N}+j,\qquad i(p)=\pi_{\lfloor p/Y\rfloor}\big(p\bmod Y\big),\qquad 0\le j<B/N.
#    \tag{7.19}\label{eq:7-19} $$
#
# For any $N$ the places of a step are $n,\dots,n+B-1$, so the *set* of examples in a step does not depend on $N$.
# Every image comes once in each epoch, wherever batches begin and end, and no state has to be saved.

# %%
# check: 7.19
Y, B = 50, 16
for processes in (1, 2, 4, 8):
    share = B // processes
    seen = []
    for n in range(0, 3 * Y * B, B):
        step = [loop.data_order(n + r * share, share, Y, seed=5) for r in range(processes)]
        seen.append(torch.cat(step))
    seen = torch.cat(seen)
    if processes == 1:
        alone = seen
    assert torch.equal(seen, alone)
epochs = alone.reshape(-1, Y)
# 48 epochs of 50, in batches of 16: each has every image once, in an order of its own
assert all(torch.equal(each.sort().values, torch.arange(Y)) for each in epochs)
assert len(set(map(tuple, epochs.tolist()))) == len(epochs)
# the random numbers of two ranks, and of two steps, are others
draws = {
    (r, n): torch.rand(4, generator=loop.seeded(5, r, n, torch.device("cpu"), globally=False))
    for r in (0, 1)
    for n in (0, 16)
}
assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4
print(
    f"{len(epochs)} epochs of {Y} images in batches of {B}:"
    " the same for 1, 2, 4 and 8 processes"
)

# %% [markdown]
# Which process gets which example does depend on $N$, and with it which noise meets which image. So a run that is
# resumed on another number of processes is a continuation with other dice: the same batch, the same rates, the same
# averages, not the same bits.
#
# ## 7.12 Pulling the plug
#
# A claim about crashes is tested by crashing. We start `minidiff train digits` as a process of its own, with a tiny
# network and without an end in sight, and do to it what happens to processes.

# %%
TINY = (
    "digits --network.channels 4 --network.mult 1 2 --network.blocks 1 --network.dropout 0.2"
    " --process.T 30 --training.batch 16 --training.tick 80 --training.checkpoint 320"
    " --training.ema 50 --device cpu -n 2"
)
FAR = "--training.images 400_000"


class Run(subprocess.Popen):
    """`minidiff train`, in a process of its own, into the folder drill."""

    def __init__(self, flags, *shell):
        line = [
            sys.executable,
            "-m",
            "minidiff",
            "train",
            *shlex.split(f"{TINY} {flags} --out drill --resume"),
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # as many threads as here, so that bits can be compared
        env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        super().__init__([*shell, *line], cwd=at_desk, env=env, **pipes)

    def until(self, words):
        """Read what it says until a line has these words."""
        for line in self.stdout:
            if words in line:
                return line.strip()
        raise AssertionError(f"it ended with code {self.wait()} and never said {words!r}")


def newest():
    return max(int(path.name) for path in (at_desk / "drill" / "checkpoints").glob("[0-9]*"))


def kept():
    """The newest checkpoint, byte for byte."""
    return {
        path.name: path.read_bytes()
        for path in (at_desk / "drill/checkpoints" / str(newest())).iterdir()
    }


# %% [markdown]
# **Two in one folder.** Someone starts the same command twice, or a scheduler believes that a job is dead when it is
# not. The second is refused, because the first holds a lock, which the kernel takes back when a process ends, however
# it ends.
#
# **`kill -9`.** No process can refuse it, prepare for it, or notice. What is on the disk at that moment is what there
# is.

# %% tags=["nbval-ignore-output"]
run = Run(FAR)
line = run.until("400 images")
code, said = minidiff(f"train {TINY} {FAR} --out drill --resume")
assert code == 2 and "drill is in use: another process trains there" in said
print(f"the first: {line}\nthe second, exit code {code}: {said}")

run.kill()
run.wait()
print(f"killed, exit code {run.returncode}; the newest checkpoint is of {newest():,} images")
assert run.returncode == -signal.SIGKILL and newest() >= 320 and newest() % 320 == 0
assert set(kept()) == {
    "model.safetensors",
    "ema-50.safetensors",
    "config.json",
    "train_state.pt",
}
run.stdout.close()

# %% [markdown]
# **A full disk.** We resume, and let the shell forbid the process files that are as large as its weights; writing
# them fails as on a full disk. A checkpoint is written under another name, flushed to the disk, and renamed
# only when it is whole. So the attempt has to end with a sentence that names the path, and the old checkpoint must be
# there as it was, with nothing half-written beside it.

# %% tags=["nbval-ignore-output"]
before, images_before = kept(), newest()
run = Run(FAR, "sh", "-c", 'ulimit -f 96; exec "$@"', "sh")
print(run.until("going on after"))
said, _ = run.communicate()
print(said.splitlines()[-1])
assert run.returncode == 1 and "can't be written" in said and "Traceback" not in said
assert newest() == images_before and kept() == before
assert [path.name for path in (at_desk / "drill/checkpoints").glob(".*")] == []

# %% [markdown]
# **SIGTERM**, the polite signal, by which schedulers announce the end. The step that is being made is the last one;
# it is written down, although no checkpoint was due, and the exit code is 0.

# %% tags=["nbval-ignore-output"]
run = Run(FAR)
print(run.until("going on after"))
run.until("images   loss")
run.terminate()
said, _ = run.communicate()
print(said.splitlines()[-1])
assert run.returncode == 0 and "stopped by SIGTERM" in said
assert newest() > images_before and newest() % 16 == 0

# %% [markdown]
# **And now the bits.** The run has been killed, has met a full disk and was told to stop. We let it go on to an end
# some steps away, and train the same without any of this. Weights, averages, moments and the samples drawn at the end
# are compared byte for byte.

# %% tags=["nbval-ignore-output"]
stopped, end = newest(), (newest() // 320 + 2) * 320
for folder in ("drill", "whole"):
    code, said = minidiff(f"train {TINY} --training.images {end} --out {folder} --resume")
    assert code == 0, said
checkpoints = [at_desk / folder / "checkpoints" / str(end) for folder in ("drill", "whole")]
for name in sorted(kept()):
    ours, theirs = ((folder / name).read_bytes() for folder in checkpoints)
    print(f"{name:<20}{len(ours):>9,} bytes, {'equal' if ours == theirs else 'DIFFERENT'}")
    assert ours == theirs
assert (at_desk / "drill/samples.png").read_bytes() == (
    at_desk / "whole/samples.png"
).read_bytes()
machine = {"images_per_second", "flops_per_second", "peak_memory"}
lines = [
    {
        line["images"]: {k: v for k, v in line.items() if k not in machine}
        for line in md.read_metrics(at_desk / each)
    }
    for each in ("drill", "whole")
]
# the record too, but for the one mean that SIGTERM cut in two
tick = -(-stopped // 80) * 80
assert all(lines[0][n] == line for n, line in lines[1].items() if n != tick)
print(f"trained on {end:,} images, with three interruptions and with none: no bit differs")

# %% [markdown]
# The same drills with several processes, one of which is killed so that torchrun starts all of them again, are among
# the library's tests (`tests/cli/test_faults.py`).
#
# ## 7.13 Watching
#
# A training of two weeks is looked at every morning, and there is little to look at: a few numbers, some pictures, one
# curve. `metrics.jsonl` gets a line at every tick, which is after each `training.tick` images:

# %% tags=["nbval-ignore-output"]
record = md.read_metrics(at_desk / "runs" / "photos")
for key, value in record[-1].items():
    print(f"{key:<20}{value:>16,.4g}")
assert [line["images"] for line in record] == list(range(400, 6401, 400))
assert record[-1]["loss"] < 0.5 * record[0]["loss"]
# what the machine reaches is what it does an image, times images a second
by_images = record[-1]["images_per_second"] * mine.training
assert abs(record[-1]["flops_per_second"] / by_images - 1) < 0.01

# %% [markdown]
# `flops_per_second` divided by the peak rate of all GPUs together is the utilisation that section 7.6 had to assume.
# If it falls by half overnight, look for a slow disk or one throttled GPU, since all wait for the slowest.
# `peak_memory` says whether `--micro` could be larger. `--samples-every IMAGES` draws samples from the raw
# and the averaged weights, always of the same seeds, and `--tensorboard` writes all of this for TensorBoard.
#
# `minidiff plot` draws the record, and beside it what no training loss shows: the held-out loss at each noise level.

# %% tags=["nbval-ignore-output"]
shown("plot runs/photos --out plots.png -n 64 --levels 12 --device cpu")
fig, ax = plt.subplots(figsize=(6.4, 5.2))
ax.imshow(plt.imread(at_desk / "plots.png"))
ax.set_title("minidiff plot: the held-out loss is largest at the smallest noise")
ax.set_axis_off()
plt.show()
by_level, _ = md.evaluation.level_losses(
    model.process,
    model.net,
    held.x,
    time_sampler(description.config).quantile(torch.tensor([0.04, 0.5, 0.96], dtype=double)),
    rng(3),
    64,
    {"labels": held.labels},
)
assert by_level[0] > by_level[2] > by_level[1] and by_level[0] > 1.5 * by_level[1]

# %% [markdown]
# Chapter 06 explains the shape: the answer of an untrained network costs about 1 at every level. At the left detail is
# not told from noise, by this network or, in part, by any. At the right a class has many pictures, between which
# nobody can decide at such noise.
#
# **What does it look like when it goes wrong?** We train the tiny network of the drills at three learning rates.

# %% tags=["nbval-ignore-output"]
fates = {}
for lr in ("0.003", "0.3", "30"):
    code, said = minidiff(
        f"train {TINY} --training.images 640 --training.ramp 0"
        f" --training.lr {lr} --out lr{lr}"
    )
    fates[lr] = code, said.splitlines()[-1], md.read_metrics(at_desk / f"lr{lr}")
fig, axes = plt.subplots(1, 2, figsize=(6.6, 2.7))
for lr, colour, mark in (("0.003", plots.BLUE, "o"), ("0.3", plots.ORANGE, "s")):
    lines = fates[lr][2]
    for ax, key in zip(axes, ("loss", "gradient_norm"), strict=True):
        values = ([line[name] for line in lines] for name in ("images", key))
        ax.plot(*values, marker=mark, markersize=3, color=colour, label=f"rate {lr}")
axes[0].axhline(1, color="0.6", linewidth=1, zorder=0)
axes[0].set(xlabel="images seen", ylabel="loss", title="A rate too high: the loss lies at 1")
axes[1].set(
    xlabel="images seen", ylabel="norm of the gradient", title="and the gradient shrinks"
)
axes[1].set_yscale("log")
axes[0].legend()
plt.show()
print(f"rate 30, exit code {fates['30'][0]}:\n{fates['30'][1]}")
good, stuck = (fates[lr][2] for lr in ("0.003", "0.3"))
# such a run is chaotic, and ends a little differently on each machine
assert good[-1]["loss"] < 0.6 and 0.8 < stuck[-1]["loss"] < 1.2 and stuck[0]["loss"] > 1
assert stuck[-1]["gradient_norm"] < 0.5 * stuck[0]["gradient_norm"]
answers = {}
for lr in ("0.003", "0.3"):
    with contextlib.chdir(at_desk):
        net = md.load(f"lr{lr}", weights="model")[0].net
    answer = net(torch.randn(256, 1, 8, 8, generator=rng(4)), torch.arange(256) % 30)
    answers[lr] = answer.square().mean().item()
    print(f"rate {lr}: to noise of mean square 1 the network answers {answers[lr]:.3f}")
assert answers["0.3"] < 0.3 and answers["0.3"] < 0.5 * answers["0.003"]
assert fates["30"][0] == 1 and "not finite" in fates["30"][1]

# %% [markdown]
# At a hundred times a good rate the loss jumps in the first steps and then lies near 1. That is the loss of a network
# that answers 0 whatever it is shown, and the answers of this one are small. Nothing crashed, and no alarm went off; a
# look at the loss would have told. At ten thousand times the rate numbers overflow. Then training stops *before* the
# update, so that the last checkpoint is one of good weights, and names it (here there was none yet). Under torchrun
# all processes stop alike. (A GPU is not asked after each step, for that would make it wait; there the update is left
# out, and the next tick raises.)
#
# ## 7.14 Fifty thousand samples
#
# An FID of the papers takes 50,000 samples, minutes to a day of a GPU. Drawing has an advantage over training:
# samples need nothing of each other. Image $i$ is a function of its seed alone, the noise of every step included
# (chapter 02). So the work is cut by seeds into shards, and process $r$ of $N$ takes the shards $k$ with
# $k\bmod N=r$.
#
# ```
# torchrun --nproc-per-node 8 -m minidiff sample runs/adm64 -n 50000 --steps 250 --out samples/adm64
# torchrun --nproc-per-node 8 -m minidiff evaluate samples/adm64 --reference /shared/imagenet64
# ```
#
# While they draw, the processes neither talk nor wait, and a shard that exists is not drawn again; so the same command
# goes on after any kill, on any number of processes, on several machines at a time. We can show this without
# torchrun, for all that a process knows of the others is two variables in its environment. First one process draws
# everything; then three, one after the other, into another folder, and rank 1 comes last.

# %%
DRAW = "sample digits --sampler ddim --steps 10 -n 20 --shard 4 --format npz --device cpu"
assert minidiff(f"{DRAW} --out by-one")[0] == 0
for rank in (2, 0, 1):
    code, said = minidiff(f"{DRAW} --out by-three", RANK=str(rank), WORLD_SIZE="3")
    there = sorted(path.stem for path in (at_desk / "by-three").glob("*.npz"))
    print(f"after rank {rank}: shards {', '.join(there)}")
    assert code == 0
assert said == "all 20 samples are in by-three\n"
one, three = (
    open_images(at_desk / folder).read(0, 20).int() for folder in ("by-one", "by-three")
)
assert len(there) == 5 and torch.equal(one, three)
# other shards and other batches: the same images, but for a rounding to another level
code, _ = minidiff(f"{DRAW.replace('--shard 4', '--shard 7')} --batch 3 --out by-seven")
seven = open_images(at_desk / "by-seven").read(0, 20).int()
assert code == 0 and (seven - one).abs().max() <= 1

# one shard is lost; two processes draw it again, of which one finds nothing to do
(at_desk / "by-three" / "00003.npz").unlink()
code, said = minidiff("evaluate by-three --reference digits --metrics fid")
print(said.strip())
assert code == 2 and "lacks 4 of its 20 samples" in said
others = {k: (at_desk / "by-three" / f"{k:05}.npz").stat().st_mtime_ns for k in (0, 1, 2, 4)}
for rank in (0, 1):
    assert minidiff(f"{DRAW} --out by-three", RANK=str(rank), WORLD_SIZE="2")[0] == 0
assert torch.equal(open_images(at_desk / "by-three").read(0, 20).int(), one)
assert others == {
    k: (at_desk / "by-three" / f"{k:05}.npz").stat().st_mtime_ns for k in others
}
# and what can't be mixed is refused
code, said = minidiff(f"{DRAW.replace('10', '20')} --out by-three")
assert code == 2 and "holds samples of steps 10, not 20" in said

# %% [markdown]
# (Batches of another size may take other kernels, on a GPU above all. Before they are rounded to levels images then
# agree up to roundings and not to the bit.)
#
# What does it cost? Calls of the network for one image, times 50,000. A guided sample asks the classifier for its
# slope as well: a forward pass, and of the two further products in $\eqref{eq:7-11}$ the first alone, since no weight
# needs its gradient. The last column sets it against the training: how much of that one evaluation costs.

# %%
SAMPLING = {  # recipe, calls, and the classifier that is asked in each
    "DDPM, CIFAR-10, all 1000 steps": ("ddpm-cifar10", 1000, None),
    "DDPM, CIFAR-10, 50 of DDIM": ("ddpm-cifar10", 50, None),
    "EDM, CIFAR-10, 18 steps of Heun": ("edm-cifar10-uncond-vp", 35, None),
    "ADM, ImageNet 256, 250 steps, guided": ("adm-imagenet256", 250, "adm-classifier-256"),
    "ADM, ImageNet 256, 25 of DDIM, guided": ("adm-imagenet256", 25, "adm-classifier-256"),
    "EDM, ImageNet 64, 256 steps, churned": ("edm-imagenet64", 511, None),
}
costs = {}


def cost_of(name):
    """Counted once for each recipe."""
    costs[name] = costs.get(name) or Cost(describe(name))
    return costs[name]


def hours_to_draw(name, calls, classifier=None, n=50_000):
    """GPU-hours. A classifier's slope by x costs two forward passes: no weight needs one."""
    each = cost_of(name).forward + (2 * cost_of(classifier).forward if classifier else 0)
    return n * calls * each / assumed.rate / 3600


print(
    f"{'50,000 samples, ' + assumed.gpu:<40}{'calls':>6}{'GPU-hours':>11}{'of its training':>17}"
)
drawing = {}
for label, (name, calls, classifier) in SAMPLING.items():
    drawing[label] = hours_to_draw(name, calls, classifier)
    share = drawing[label] / cost_of(name).hours(assumed)
    print(f"{label:<40}{calls:>6}{drawing[label]:>11.2f}{share:>17.1%}")
ddpm, _, heun, *_ = drawing.values()
calls, flops = (
    1000 / 35,
    cost_of("ddpm-cifar10").forward / cost_of("edm-cifar10-uncond-vp").forward,
)
print(
    f"DDPM's 1000 steps cost {ddpm / heun:.0f} times EDM's 18: {calls:.1f} times"
    f" the calls, {flops:.2f} of the network"
)
assert abs(ddpm / heun / (calls * flops) - 1) < 1e-9 and 8 < ddpm / heun < 9
assert 10 * ddpm > cost_of("ddpm-cifar10").hours(assumed)
assert 1 / 60 < min(drawing.values()) and 12 < max(drawing.values()) < 30

# %% [markdown]
# With a thousand steps, looking at FID at every tenth of the training would cost more than the training. IDDPM's
# ablations on ImageNet make do with 10,000 samples. Here a better solver saves most.
#
# ## 7.15 At the papers' scale
#
# The chapters' sections of this name have the networks and what training them costs; here is the way to each paper's
# headline: what to run, what number to expect, what to compare with. Nothing in this table was run here, except for
# the first two rows, which chapter 01 did. GPU-hours are those of the assumption above, training and drawing; a small
# network reaches a smaller part of a GPU's rate, and one trained in float32 has a lower one, so for CIFAR-10 expect
# several times more. An FID compares only with
# FIDs of as many samples, against the same reference images, through the same Inception weights;
# `minidiff evaluate` prints all three. (EDM's numbers are the least of three sets: `--seed 50000` and `--seed 100000`
# draw the other two.)

# %%
from minidiff.recipes import PAPERS


@dataclasses.dataclass
class Headline:
    """A paper's number, and the commands that should give it."""

    recipe: str
    expected: str
    against: str
    sample: str = ""
    calls: int = 0
    fid: float = 0.0
    classifier: str | None = None
    measure: str = ""


TRAIN = "the training images"
LEAST = TRAIN + ", least of 3 sets of seeds"
GUIDED = "--steps 250 --classifier runs/adm-classifier-{} --scale {}"
CHURN = "--sampler churn --steps 256 --S-churn 40 --S-tmin 0.05 --S-tmax 50 --S-noise 1.003"
HEADLINES = [
    Headline("swissroll-sd", "K − L_null 6.45 bits (SD, Table 1)", "a roll of unknown thickness",
             measure="likelihood"),
    Headline("heartbeat-sd", "K −2.414 bits (SD, Table 1)", "the truth, −2.322",
             measure="likelihood"),
    Headline("ddpm-cifar10", "FID 3.17 (DDPM, Table 1)", TRAIN + "; 5.24 against the test set",
             "--steps 1000", 1000, 3.17),
    Headline("ddpm-cifar10", "≤ 3.75 bits/dim (DDPM, Table 1)", "the test set",
             measure="likelihood"),
    Headline("ddpm-cifar10", "FID 4.16 (DDIM, Table 1)", TRAIN,
             "--sampler ddim --steps 100 --spacing quadratic", 100),
    Headline("iddpm-cifar10", "FID 3.19 (IDDPM, Table 2)", TRAIN,
             "--steps 4000", 4000, 3.19),
    Headline("iddpm-cifar10-vlb", "2.94 bits/dim (IDDPM, Table 2)", "the test set",
             measure="likelihood"),
    Headline("iddpm-imagenet64-cond", "FID 2.92 (IDDPM, Table 4)", TRAIN,
             "--steps 250", 250, 2.92),
    Headline("adm-imagenet64", "FID 2.07 (ADM, Table 5)", TRAIN,
             "--steps 250", 250, 2.07),
    Headline("adm-imagenet128", "FID 2.97 (ADM, Table 5)", TRAIN,
             GUIDED.format(128, 0.5), 250, 0, "adm-classifier-128"),
    Headline("adm-imagenet256", "FID 4.59 (ADM, Table 5)", TRAIN,
             GUIDED.format(256, 1.0), 250, 0, "adm-classifier-256"),
    Headline("adm-imagenet512", "FID 7.72 (ADM, Table 5)", TRAIN,
             GUIDED.format(512, 4.0), 250, 0, "adm-classifier-512"),
    Headline("edm-cifar10-uncond-vp", "FID 1.97 (EDM, Table 2)", LEAST,
             "--steps 18", 35, 1.97),
    Headline("edm-cifar10-cond-vp", "FID 1.79 (EDM, Table 2)", LEAST,
             "--steps 18", 35, 1.79),
    Headline("edm-ffhq64-vp", "FID 2.39 (EDM, Table 2)", LEAST,
             "--steps 40", 79, 2.39),
    Headline("edm-imagenet64", "FID 1.36 (EDM, Table 4)", LEAST,
             CHURN, 511, 1.36),
]  # fmt: skip

print(
    "for each, and for the classifier where one is named:"
    " minidiff train RECIPE --data.source DATA"
)
print("for each FID, at the end: minidiff evaluate samples/RECIPE --reference DATA\n")
for row in HEADLINES:
    if row.measure:
        command = f"minidiff {row.measure} runs/{row.recipe}"
        hours = cost_of(row.recipe).hours(assumed)
        price = f"{hours:,.0f} GPU-hours to train" if hours >= 0.5 else "minutes on a laptop"
    else:
        command = f"minidiff sample runs/{row.recipe} -n 50000 --out samples/{row.recipe}"
        command += f" \\\n        {row.sample}"
        training = sum(
            cost_of(name).hours(assumed) for name in (row.recipe, row.classifier) if name
        )
        to_draw = hours_to_draw(row.recipe, row.calls, row.classifier)
        price = f"{training:,.0f} + {to_draw:.2g} GPU-hours"
    print(f"{row.recipe}: {row.expected}, against {row.against}; {price}\n    {command}")

# %% [markdown]
# A table that nobody ran can still be wrong in ways that are cheap to find. Do the commands parse? Is an FID that the
# library knows for a recipe (`minidiff report` sets it beside ours) the one that is printed here? Does the number of
# calls follow from the steps?

# %%
import tyro

from minidiff.cli import likelihood, sample

for row in HEADLINES:
    if row.measure:
        assert tyro.cli(likelihood.Options, args=[f"runs/{row.recipe}"]).run == Path(
            "runs", row.recipe
        )
        continue
    asked = tyro.cli(
        sample.Options,
        args=[
            f"runs/{row.recipe}",
            *shlex.split(f"-n 50000 --out samples/x --format npz {row.sample}"),
        ],
    )
    sample.check(asked)
    by_heun = row.recipe.startswith("edm")
    assert row.calls == (2 * int(asked.steps) - 1 if by_heun else int(asked.steps))
    assert bool(row.classifier) == (asked.classifier is not None)
    if row.fid:
        assert PAPERS[row.recipe].values["fid"] == row.fid and str(row.fid) in row.expected

# %% [markdown]
# | | paper | official code | ours |
# |---|---|---|---|
# | all rows from `ddpm-cifar10` on | printed above | chapters 02 to 06 | not run here |
#
# When a reproduction misses, look in this order. *The reference*: the statistics of the training set, of all its
# images, shrunk as the paper shrank them. *The weights*: the averaged ones. *The sampler*: the paper's number of
# steps, its variance, clipping where the code clips. *The number of samples.* And then *the spread*: those who
# trained EDM's CIFAR-10 again got between 2.04 and 2.08 where the paper has 1.97, the least of several.
#
# ## 7.16 What goes wrong
#
# **A batch that grows with the machine.** In many training scripts the batch is that of one process. Eight GPUs then
# make one of 1,024 out of DDPM's 128. After as many images there are an eighth of the updates, and the average that
# keeps 0.9999 of itself *at each step* looks back over eight times as many images. People repair this by a rate eight
# times as large, which is a rule for plain gradient descent and none for Adam. Here the batch is the recipe's, and a
# larger machine is a faster one.

# %%
from minidiff.recipes.shared import half_life

cifar = md.recipe("ddpm-cifar10").training
for batch in (128, 1024):
    updates = cifar.images // batch
    print(
        f"batch {batch:>5}: {updates:>7,} updates; 0.9999 a step has"
        f" a half-life of {half_life(0.9999, batch):>9,} images"
    )
assert cifar.images // 128 == 8 * (cifar.images // 1024) == 800_000
assert abs(half_life(0.9999, 128) / cifar.ema[0] - 1) < 0.001
assert abs(half_life(0.9999, 1024) / half_life(0.9999, 128) - 8) < 1e-4

# %% [markdown]
# **A layer that looks at the batch.** Batch normalisation divides by the deviation over the examples that are there;
# on eight processes these are others than on one, and the networks are no longer the same function. All networks of
# this book normalise each example by itself.

# %%
features = torch.randn(16, 8, 4, 4, generator=rng(10), dtype=double) * torch.linspace(
    1, 3, 16
).reshape(-1, 1, 1, 1)
for layer in (torch.nn.BatchNorm2d(8), torch.nn.GroupNorm(4, 8)):
    layer = layer.double()
    apart = (
        (layer(features) - torch.cat([layer(features[:8]), layer(features[8:])])).abs().max()
    )
    print(f"{type(layer).__name__}: one process and two differ by {apart:.2f}")
    assert (apart > 0.5) == isinstance(layer, torch.nn.BatchNorm2d) and (
        apart > 0.5 or apart < 1e-12
    )
for name in ("ddpm-cifar10", "adm-imagenet64", "edm-ffhq64-vp"):
    assert not any(
        isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
        for m in cost_of(name).model.modules()
    )

# %% [markdown]
# **Shares that are not equal.** The mean of means is the mean only where the parts have equal sizes. Ten images on
# three processes, 4, 3 and 3 of them, and every image of the first counts for three quarters of one of the others.
# The last, incomplete batch of an epoch is the same mistake in time. $\eqref{eq:7-19}$ has no last batch, and shares
# that do not divide are refused.

# %%
values = torch.arange(10, dtype=double)
parts = values.split([4, 3, 3])
weight = 1 / (3 * len(parts[0])) / (1 / (3 * len(parts[1])))
print(
    f"mean {values.mean():.3f},"
    f" mean of means {torch.stack([p.mean() for p in parts]).mean():.3f}"
)
assert (
    abs(weight - 3 / 4) < 1e-12
    and abs(torch.stack([p.mean() for p in parts]).mean() - values.mean()) > 0.1
)
try:
    md.training.portions(10, 3)
except ValueError as error:
    print(error)
else:
    raise AssertionError("it was not refused")

# %% [markdown]
# **The same dice in every process.** `torch.manual_seed(0)` at the top of a script seeds all processes alike. Their
# images differ, but the $j$-th image of each has the same $t$ and the same noise as the $j$-th of every other, and a
# batch of 32 on eight processes has 4 different draws in it. Nothing fails; the gradient is noisier than its batch
# promises. If the loss depended on $t$ and noise alone its variance would be eight times as large. We keep a batch of
# digits and look at its loss over many draws.

# %% tags=["nbval-ignore-output"]
trained, _ = md.load("digits")
x0 = digits.x[:32]


def batch_loss(seeds):
    """Mean loss of a batch, dealt out to as many processes as there are seeds."""
    generators = [rng(seed) for seed in seeds]
    each = 32 // len(seeds)
    t = torch.cat([torch.randint(1000, (each,), generator=g) for g in generators])
    noise = torch.cat([torch.randn(each, 1, 8, 8, generator=g) for g in generators])
    with torch.no_grad():
        return trained.process.loss(trained.net, x0, t, noise)["loss"].mean().item()


spread = {
    "one seed for each": np.std(
        [batch_loss(range(100 * k, 100 * k + 8)) for k in range(150)]
    ),
    "one seed for all": np.std([batch_loss([100 * k] * 8) for k in range(150)]),
}
ratio = (spread["one seed for all"] / spread["one seed for each"]) ** 2
print(f"the variance of the loss is {ratio:.1f} times as large with one seed for all")
assert 4 < ratio < 12

# %% [markdown]
# **An average that begins anew.** A script that restores the weights and the optimiser, and makes a fresh copy of the
# weights to average, has thrown the averaging away. The loss does not show it, the samples do. We let "weights"
# jitter around their best value with variance 1, average them by the library's EMA, and lose the average once.

# %%
weights = torch.nn.Linear(2000, 1, bias=False).double()
average = md.EMA(weights, half_life=64_000)
jitter = rng(11)
variance = []
for step in range(9_000):
    if step == 6_000:
        average.model.load_state_dict(weights.state_dict())
    with torch.no_grad():
        weights.weight.copy_(torch.randn(1, 2000, generator=jitter, dtype=double))
    # the run is old: the half-life is not in its ramp any more
    average.update(weights, 10_000_000, 128)
    variance.append(average.model.weight.square().mean().item())
beta = 0.5 ** (128 / 64_000)
settled = (1 - beta) / (1 + beta)
back = next(k for k, value in enumerate(variance[6_000:]) if value < 2 * settled)
print(f"variance {variance[5_999]:.4f} (by theory {settled:.4f}), then {variance[6_000]:.2f}")
print(
    f"it takes {back * 128 / 64_000:.1f} half-lives until it is down to twice the old value"
)
assert abs(variance[5_999] / settled - 1) < 0.2 and variance[6_000] > 0.9
assert abs(back * 128 / 64_000 - math.log(1 / settled) / math.log(4)) < 0.3

# %% [markdown]
# **Ten bits where one expects twenty-three.** On GPUs since 2020 a product of float32 matrices may be taken in TF32,
# which keeps ten bits of each factor's fraction. Training does with fewer, for bf16 has seven (section 7.5); for the
# features that FID compares, or a solver's last small steps, one wants to know. Torch allows it in convolutions and
# not in matrix products, unless told otherwise. We cut the bits by hand.

# %%


def tf32(x):
    """x, float32, with its fraction rounded to ten bits."""
    return ((x.view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


assert tf32(torch.tensor([1 + 2**-10, 1 + 2**-12])).tolist() == [1 + 2**-10, 1.0]
a, b = (torch.randn(64, 512, generator=rng(k)) for k in (12, 13))
exact = a.double() @ b.double().T
off = {
    name: ((cut(a) @ cut(b).T - exact).square().mean() / exact.square().mean()).sqrt().item()
    for name, cut in (("float32", lambda x: x), ("TF32", tf32))
}
print(f"TF32: off by {off['TF32']:.0e} of the result")
# uniform rounding to 2^-11 of each of two factors, over fractions between 1 and 2
assert 1e-4 < off["TF32"] < 2**-11 and off["float32"] < 1e-6

# %% [markdown]
# **Sums in another order.** $(a+b)+c$ and $a+(b+c)$ may differ in the last bit. A GPU kernel whose threads add to one
# number in the order in which they happen to arrive gives other bits each time, and so does an all-reduce over
# another number of processes. This is harmless, and it is fatal to a comparison of bits: on a GPU the drills of
# section 7.12 need `--deterministic`, which is slower, and the same number of processes.

# %%
terms = np.random.default_rng(14).standard_normal(10_000).astype(np.float32)
# cumsum adds one after the other
sums = {float(np.random.default_rng(k).permutation(terms).cumsum()[-1]) for k in range(20)}
exact = float(terms.astype(float).sum())
print(
    f"20 orders, {len(sums)} sums;"
    f" the largest error is {max(abs(each - exact) for each in sums):.0e}"
)
assert len(sums) > 5 and max(abs(each - exact) for each in sums) < 1e-2

# %% [markdown]
# **Memory that is laid out otherwise.** On a GPU our weights have their channels last, as its convolutions like them.
# Values and shapes are the same, the order in memory is not. Code that treats a weight as a flat piece of memory (a
# fused optimiser, a hand-made average, a file format) mixes channels as soon as one of two tensors has the other
# layout, and all shapes fit. A checkpoint of ours is written in one layout, and what is read takes that of the
# weight.

# %%
kernel = torch.randn(4, 3, 3, 3, generator=rng(15))
last = kernel.to(memory_format=torch.channels_last)
in_memory = [torch.as_strided(each, (kernel.numel(),), (1,)) for each in (kernel, last)]
assert torch.equal(kernel, last) and kernel.stride() != last.stride()
assert not torch.equal(*in_memory) and torch.equal(
    *(each.sort().values for each in in_memory)
)
assert torch.equal(last.contiguous().flatten(), kernel.flatten())
print(
    f"equal tensors, strides {kernel.stride()} and {last.stride()}: in memory another order"
)

# %% [markdown]
# **Another reference.** DDPM's 3.17 is against the training set; against the test set the paper has 5.24 for the same
# samples. And a distance falls with the number of samples even where nothing else changes: here real digits that were
# held out, $n$ of them at a time, are compared with the training set. Compare equal $n$ against equal references, or
# nothing.

# %%
looked = md.DigitsExtractor()(digits.pixels, 17).pool
unseen = md.DigitsExtractor()(md.digits("test").pixels, 17).pool
by_n = {}
for n in (50, 100, 200, len(unseen)):
    drawn_at_random = [
        unseen[torch.randperm(len(unseen), generator=rng(k))[:n]] for k in range(10)
    ]
    by_n[n] = np.mean([md.frechet_distance(some, looked) for some in drawn_at_random])

# %% tags=["nbval-ignore-output"]
print(
    "real digits, a mean of ten draws:",
    ", ".join(f"{value:.2f} for n = {n}" for n, value in by_n.items()),
)

# %%
assert list(by_n.values()) == sorted(by_n.values(), reverse=True)
assert by_n[50] > 3 * by_n[len(unseen)]


# %% tags=["setup"]
class PowerCut(Exception):
    """The disk has stopped."""


class Disk:
    """A disk that loses power after so many operations. Exercise 7.4 saves on it."""

    def __init__(self, files=None, operations=math.inf):
        self.files, self.operations = dict(files or {}), operations
        # names of files whose content may not have arrived yet
        self.waiting = set()

    def write(self, name, data):
        """Write a file; with the power gone on the way half of it is there."""
        self.files[name] = data[: len(data) // 2] if self.operations < 1 else data
        self.waiting.add(name)
        self._count()

    def flush(self, name):
        """Wait until the content of a file has arrived."""
        self._count()
        self.waiting.discard(name)

    def rename(self, old, new):
        """Give a file another name, at once; who had that name is gone."""
        self._count()
        self.files[new] = self.files.pop(old)
        (self.waiting.add if old in self.waiting else self.waiting.discard)(new)
        self.waiting.discard(old)

    def after(self):
        """What is found when the power is back: of what had not arrived, half."""
        return {
            name: data[: len(data) // 2] if name in self.waiting else data
            for name, data in self.files.items()
        }

    def _count(self):
        if self.operations < 1:
            raise PowerCut
        self.operations -= 1


# %% [markdown]
# ## 7.17 Exercises
#
# Run the cells tagged `setup` (the first cell of code, and the one above) and begin. Points are given for what the
# tests, visible and hidden, accept; the two exercises on paper and the experiment are read by a person.
#
# **Exercise 7.1 (3 points, on paper).** One machine of a cluster has GPUs twice as fast as the others. Someone gives
# process $r$ a share of $b_r$ images, more to the fast ones, with $\sum_rb_r=B$, and leaves the rest as it was: each
# process takes the mean over its own images, and gradients are averaged over the $N$ processes. Which loss is being
# minimised? Is the gradient still unbiased for the loss over the data, and what happens to its variance, if that of
# one image's gradient is $v$? How must each process scale its loss to repair it?

# %% [markdown] nbgrader={"grade": true, "grade_id": "uneven_shares", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# $\frac1N\sum_r\frac1{b_r}\sum_{i\in r}\ell_i=\sum_iw_i\ell_i$ with $w_i=1/(Nb_{r(i)})$: a weighted mean, in which an
# image in a large share counts less. The weights sum to $\sum_rb_r/(Nb_r)=1$.
#
# If images are dealt out at random, each $\ell_i$ has the same expectation, and a weighted mean with weights that sum
# to 1 is **unbiased**. Its variance is $v\sum_iw_i^2=v\sum_r\frac{1}{N^2b_r}$. The harmonic mean of the $b_r$ is at
# most their arithmetic mean, so $\frac1N\sum_r\frac1{b_r}\ge\frac NB$ and the variance is at least $v/B$, with
# equality for equal shares alone: part of the images is wasted. (It becomes a bias where shares differ in kind, for
# instance if fast machines have another part of the data.)
#
# To repair it process $r$ multiplies its loss with $Nb_r/B$: then $w_i=1/B$ for every image.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# **Exercise 7.2 (3 points, on paper).** After a failure a run also needs a time $R$ to begin again (a new machine,
# reading the checkpoint, starting the processes). Add this to $\eqref{eq:7-16}$. Does $\tau^*$ change? Let one GPU
# fail every $M_1$ on average, so that $N$ of them fail every $M_1/N$. How does the smallest lost share grow with $N$,
# and from which $N$ on is more lost by restarting than by all else? Put in $M_1=50{,}000$ hours, $c=5$ seconds and
# $R=10$ minutes.

# %% [markdown] nbgrader={"grade": true, "grade_id": "saving_at_scale", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# There are $T/M$ failures in a time $T$, each costs $R$ more: $\ell(\tau)=c/\tau+\tau/2M+R/M$. The new term does not
# depend on $\tau$, so $\tau^*=\sqrt{2cM}$ as before, and
#
# $$ \ell(\tau^*)=\sqrt{\frac{2cN}{M_1}}+\frac{RN}{M_1}. $$
#
# The first term grows with $\sqrt N$, the second with $N$. They are equal where $2cN/M_1=R^2N^2/M_1^2$, that is
# $N=2cM_1/R^2$. With $M_1=1.8\cdot10^8$ s, $c=5$ s, $R=600$ s: $N=1.8\cdot10^9/3.6\cdot10^5=5000$ GPUs. There each
# term is $RN/M_1=600\cdot5000/1.8\cdot10^8\approx1.7\,\%$. Below that one should save better (in the background, or
# only locally), above it restart faster. (Both terms have to stay small for the formula to hold.)
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# **Exercise 7.3 (3 points).** Write $\eqref{eq:7-19}$: which images a process takes in the step that begins after `n`
# images. `permutation(e)` gives the order of epoch `e` as a list of the numbers $0\dots Y-1$.


# %% nbgrader={"grade": false, "grade_id": "places_of", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def places_of(n, batch, rank, processes, permutation, Y):
    """The images of one process in one step, batch / processes numbers, as a list."""
    ### BEGIN SOLUTION
    share = batch // processes
    places = range(n + rank * share, n + (rank + 1) * share)
    return [permutation(p // Y)[p % Y] for p in places]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "places_of_test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
turned = lambda e: [(k + e) % 5 for k in range(5)]
# epoch 0 is 0 1 2 3 4, epoch 1 is 1 2 3 4 0; after 4 images come 4, 1, 2, 3
assert places_of(4, 4, 0, 1, turned, 5) == [4, 1, 2, 3]
assert places_of(4, 4, 1, 2, turned, 5) == [2, 3]
### BEGIN HIDDEN TESTS
import minidiff.training.loop as trainer


def shuffled(e):
    return torch.randperm(
        7, generator=trainer.seeded(3, e, -1, torch.device("cpu"), globally=False)
    ).tolist()


for n, processes in itertools.product((0, 6, 12, 30, 66), (1, 2, 3, 6)):
    step = [k for r in range(processes) for k in places_of(n, 6, r, processes, shuffled, 7)]
    assert step == trainer.data_order(n, 6, 7, 3).tolist()
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 7.4 (3 points).** Write the saving of a file so that the power may fail at any moment: whenever the
# machine comes back, the file `name` is the old one or the new one, and whole. `Disk` above has `write`, `flush` and
# `rename`, and what they promise stands there. Other files may be left over.


# %% nbgrader={"grade": false, "grade_id": "safe_save", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def safe_save(disk, name, data):
    """Replace the content of a file.  disk: Disk; name: str; data: bytes."""
    ### BEGIN SOLUTION
    temporary = f".{name}.writing"
    disk.write(temporary, data)
    disk.flush(temporary)
    disk.rename(temporary, name)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "safe_save_test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
disk = Disk({"weights": b"old!"})
safe_save(disk, "weights", b"new weights!")
assert disk.after()["weights"] == b"new weights!"

disk = Disk({"weights": b"old!"}, operations=0)
try:
    safe_save(disk, "weights", b"new weights!")
except PowerCut:
    pass
assert disk.after()["weights"] == b"old!"
### BEGIN HIDDEN TESTS
for operations in range(12):
    for before in ({"weights": b"old!"}, {}):
        disk = Disk(before, operations)
        try:
            safe_save(disk, "weights", b"new weights!")
            done = True
        except PowerCut:
            done = False
        found = disk.after().get("weights")
        assert found in (b"new weights!", before.get("weights"))
        assert not done or found == b"new weights!"
# a second time, with what the first attempt left behind
disk = Disk({"weights": b"old!"}, 1)
try:
    safe_save(disk, "weights", b"first")
except PowerCut:
    pass
disk = Disk(disk.after())
safe_save(disk, "weights", b"second")
assert disk.after()["weights"] == b"second"
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 7.5 (3 points).** Fifty thousand samples are drawn in shards; `there` is the set of shards that exist.
# Return what process `rank` of `processes` has left to draw, shard by shard: the number of the shard, and the range
# of seeds in it. The last shard may be shorter.


# %% nbgrader={"grade": false, "grade_id": "left_to_draw", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell"]
def left_to_draw(n, shard, rank, processes, there):
    """A list of pairs (int, range).  shard: images in each; there: set of int."""
    ### BEGIN SOLUTION
    shards = -(-n // shard)
    mine = [k for k in range(rank, shards, processes) if k not in there]
    return [(k, range(k * shard, min((k + 1) * shard, n))) for k in mine]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "left_to_draw_test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# ten images in shards of four: 0–3, 4–7, 8–9; two processes
assert left_to_draw(10, 4, 0, 2, set()) == [(0, range(4)), (2, range(8, 10))]
assert left_to_draw(10, 4, 1, 2, {1}) == []
### BEGIN HIDDEN TESTS
for n, shard, processes in itertools.product((1, 20, 21), (1, 4, 7), (1, 3, 8)):
    for there in (set(), {0}, {1, 2}):
        drawn_now = [
            pair
            for r in range(processes)
            for pair in left_to_draw(n, shard, r, processes, there)
        ]
        assert len({k for k, _ in drawn_now}) == len(drawn_now)
        seeds = sorted(seed for _, part in drawn_now for seed in part)
        assert seeds == [seed for seed in range(n) if seed // shard not in there]
        assert all(seed // shard == k for k, part in drawn_now for seed in part)
        for r in range(processes):
            assert all(
                k % processes == r for k, _ in left_to_draw(n, shard, r, processes, there)
            )
### END HIDDEN TESTS

# %% [markdown]
# **Exercise 7.6 (4 points, an experiment).** Section 7.11 showed that a forgotten part changes the bits. How much
# does it cost? Train a small network on digits, save it, and go on from there in three ways: with everything, without
# the optimiser's moments, without the averages (a fresh copy of the weights instead). Measure the held-out loss of
# the averaged network every few hundred images, with the same times and noise each time. How large is the damage, how
# long does it last, and what would you look at to notice it in a run of two weeks?

# %% nbgrader={"grade": true, "grade_id": "what_forgetting_costs", "locked": false, "points": 2, "schema_version": 3, "solution": true, "task": false} tags=["hide-cell", "nbval-ignore-output"]
### BEGIN SOLUTION
plan = md.TrainingConfig(
    images=4800, batch=32, lr=4e-3, ramp=320, ema=(1600,), tick=320, checkpoint=3200
)
of = md.Config(
    "digits",
    process=md.GaussianConfig(T=100, schedule="cosine"),
    network=md.UNetConfig(channels=8, mult=(1, 1), blocks=1, attention=(), dropout=0.0),
    training=plan,
)
seen_as = md.Description(of, (1, 8, 8), 17)
test_x = md.digits("test").x
test_t = torch.randint(100, (len(test_x),), generator=rng(31))
test_noise = torch.randn(test_x.shape, generator=rng(32))


def begun():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return md.begin(seen_as.build(), md.UniformTimes(100), plan)


def held_out_loss(state):
    with torch.no_grad():
        return (
            state.ema.process.loss(state.ema.net, test_x, test_t, test_noise)["loss"]
            .mean()
            .item()
        )


with tempfile.TemporaryDirectory() as run:
    md.train(begun(), md.digits(), dataclasses.replace(plan, images=3200), run, seen_as)
    curves = {}
    for name in ("nothing", "moments", "averages"):
        state, losses = begun(), curves.setdefault(name, [])
        md.resume(state, run)
        if name == "moments":
            state.optimizer = torch.optim.AdamW(
                state.model.parameters(), lr=4e-3, weight_decay=0.0
            )
        if name == "averages":
            state.emas[0].model.load_state_dict(state.model.state_dict())
        losses.append(held_out_loss(state))
        note = lambda state, losses=losses: losses.append(held_out_loss(state))
        md.train(state, md.digits(), plan, on_tick=note)
        print(f"without {name:<10}" + "".join(f"{loss:>8.4f}" for loss in losses))
whole, moments, averages = curves.values()
# what the answer says: which loss is larger, when, and until when
assert moments[0] == whole[0] < averages[0] and abs(averages[2] - whole[2]) < 1e-3
assert moments[1] > moments[0] and moments[-1] > whole[-1] + 1e-3
### END SOLUTION

# %% [markdown] nbgrader={"grade": true, "grade_id": "what_forgetting_costs_why", "locked": false, "points": 2, "schema_version": 3, "solution": true, "task": false}
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Model answer</summary>
#
# Columns are 320 images apart, from the moment of the restart on. Without the averages the loss of the averaged
# network is at once that of the raw one. Here this is gone after two ticks, because the half-life of a young average
# is a twentieth of the images seen, 160 of them; in a recipe, where it is a million, five half-lives are five million
# images (section 7.16). Without the moments nothing is lost at once: the weights are the same. Then the loss rises,
# because Adam's second moment begins with the square of a single gradient, and so every weight is moved by the whole
# rate in the first step, whatever its gradient's usual size. What had been learned has to be learned again, and after
# 1,600 images the run is still behind. (With the rate's ramp repeated it would be less; but nobody repeats a ramp in
# the middle of a run.)
#
# In a long run the moments show as a bump of loss and gradient norm at a restart in `metrics.jsonl`. The averages
# show nowhere in it, for the loss there is the raw network's: only samples, or scores, of the averaged weights tell.
# That is why a restart is compared bit by bit *before* it is needed.
#
# </details>
# <!-- ### END SOLUTION -->

# %% [markdown]
# ## 7.18 Summary
#
# What must not change when one process becomes many is the loss: a mean over one batch, which the recipe fixes, of
# terms whose dice are a function of seed, rank and images seen; everything with a duration is counted in images, and
# so the launcher and the recipe's name are all that a user changes. What must be thought of anew is everything around
# it: data that lie ready on a disk, gradients that travel while others are computed, numbers of sixteen bits with
# their range and spacing, checkpoints that are whole or not there. And what has been promised is tried out: a run
# that was killed, stopped and starved of disk ends with the bits of one that was not.
#
# Symbols that were new: $N$ processes, rank $r$, batch $B$, $n$ images seen, $Y$ images in the data; $s_n$ the state;
# $c$, $M$, $\tau$ the cost of saving, the time between failures, the interval.
#
# Here the book ends. From a chain that destroys data step by step (chapter 01) came a loss (02), a differential
# equation (03), a learned variance (04), a way to ask for something (05), a table in which all of these are columns
# (06), and a machine (07). Much has been left out. We did not derive why the networks generalise at all, where the
# perfect denoiser only remembers (section 6.5). We did not treat diffusion in the latent space of an autoencoder, nor
# transformers in the U-Net's place, nor text as a condition. Flow matching and stochastic interpolants reach the same
# equations by another road; consistency models and distillation make one step out of many. Discrete data beyond the
# binomial chain of chapter 01 have a theory of their own. For each of these the references below are where to begin,
# and what they need of a reader is in these chapters.
#
# **References.** On scale: Li et al., *PyTorch Distributed: Experiences on Accelerating Data Parallel Training*,
# 2020. Micikevicius et al., *Mixed Precision Training*, 2018. Goyal et al., *Accurate, Large Minibatch SGD*, 2017:
# the rule for the rate that Adam does not follow. Young, *A First Order Approximation to the Optimum Checkpoint
# Interval*, 1974. Grattafiori et al., *The Llama 3 Herd of Models*, 2024: interruptions, counted. Karras, Aittala,
# Lehtinen, Hellsten, Aila and Laine, *Analyzing and Improving the Training Dynamics of Diffusion Models*, 2024. To
# read on: Rombach, Blattmann, Lorenz, Esser and Ommer, *High-Resolution Image Synthesis with Latent Diffusion
# Models*, 2022. Peebles and Xie, *Scalable Diffusion Models with Transformers*, 2023. Lipman, Chen, Ben-Hamu, Nickel
# and Le, *Flow Matching for Generative Modeling*, 2023. Albergo, Boffi and Vanden-Eijnden, *Stochastic Interpolants*,
# 2023. Song, Dhariwal, Chen and Sutskever, *Consistency Models*, 2023. Austin, Johnson, Ho, Tarlow and van den Berg,
# *Structured Denoising Diffusion Models in Discrete State-Spaces*, 2021. Kadkhodaie, Guth, Simoncelli and Mallat,
# *Generalization in Diffusion Models Arises from Geometry-Adaptive Harmonic Representations*, 2024.
