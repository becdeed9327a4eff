"""Answers of chapter 02 that must fail: what is wrong, the text of the reference, what stands in its place."""

WRONG = {
    "posterior": [
        ("the step after: betas[t]", "b = betas[t - 1]", "b = betas[min(t, len(betas) - 1)]"),
        (
            "the kept share counted from t = 1",
            "torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])",
            "torch.cumprod(1 - betas, 0)[[*range(len(betas)), -1]]",
        ),
        (
            "the two weights exchanged",
            "b * x0 + (1 - b).sqrt() * (1 - kept[t - 1]) * xt",
            "b * xt + (1 - b).sqrt() * (1 - kept[t - 1]) * x0",
        ),
        ("no root of the kept share", "kept[t - 1].sqrt() * b", "kept[t - 1] * b"),
        ("no root of alpha", "(1 - b).sqrt()", "(1 - b)"),
        ("the kept share here for the one before", "kept[t - 1].sqrt()", "kept[t].sqrt()"),
        ("beta for the posterior's variance", "(1 - kept[t - 1]) / (1 - kept[t]) * b\n", "b\n"),
        (
            "the standard deviation for the variance",
            "return mean, (1 - kept[t - 1]) / (1 - kept[t]) * b",
            "return mean, ((1 - kept[t - 1]) / (1 - kept[t]) * b).sqrt()",
        ),
        (
            "the quotient upside down",
            "(1 - kept[t - 1]) / (1 - kept[t]) * b\n",
            "(1 - kept[t]) / (1 - kept[t - 1]) * b\n",
        ),
    ],
    "one_step": [
        ("noise at the last step too", "if t > 1 else mean", "if True else mean"),
        ("noise left out at t = 2 as well", "if t > 1", "if t > 2"),
        ("no clipping", ".clamp(-1, 1)", ""),
        ("clipping to [0, 1]", ".clamp(-1, 1)", ".clamp(0, 1)"),
        ("the mean clipped too", "return mean + b", "mean = mean.clamp(-1, 1)\n    return mean + b"),
        ("the small variance", "b.sqrt() * z", "((1 - kept[t - 1]) / (1 - kept[t]) * b).sqrt() * z"),
        ("the variance for the standard deviation", "b.sqrt() * z", "b * z"),
        ("the sign of the network's noise", "(xt - (1 - kept[t]).sqrt() * eps)", "(xt + (1 - kept[t]).sqrt() * eps)"),
        ("no root of the noise's variance", "(1 - kept[t]).sqrt() * eps", "(1 - kept[t]) * eps"),
        ("beta of the next step", "b = betas[t - 1]", "b = betas[min(t, len(betas) - 1)]"),
    ],
    "four_names": [
        ("x0 without the division", "(xt - sigma * eps) / signal", "xt - sigma * eps"),
        ("x0 divided by the kept share", "(xt - sigma * eps) / signal", "(xt - sigma * eps) / kept"),
        ("the sign in x0", "(xt - sigma * eps)", "(xt + sigma * eps)"),
        ("v with a plus", "signal * eps - sigma * x0", "signal * eps + sigma * x0"),
        ("v with its sign turned", "signal * eps - sigma * x0", "sigma * x0 - signal * eps"),
        ("v with the weights exchanged", "signal * eps - sigma * x0", "sigma * eps - signal * x0"),
        ("v from the noisy picture", "sigma * x0,", "sigma * xt,"),
        ("the score without its sign", "-eps / sigma", "eps / sigma"),
        ("the score divided by the variance", "-eps / sigma", "-eps / sigma**2"),
        ("the noise for the score", "-eps / sigma", "-eps"),
    ],
}
