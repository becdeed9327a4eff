"""Answers of chapter 04 that must fail: what is wrong, the text of the reference, what stands in its place."""

WRONG = {
    "shorter_chain": [
        ("the step before in the long chain", "alpha_bar[[0, *kept[:-1]]]", "alpha_bar[[k - 1 for k in kept]]"),
        ("the first step from itself", "alpha_bar[[0, *kept[:-1]]]", "alpha_bar[[kept[0], *kept[:-1]]]"),
        ("the first step from level 1", "[0, *kept", "[1, *kept"),
        ("steps counted from 0", "here = alpha_bar[kept]", "here = alpha_bar[[k - 1 for k in kept]]"),
        ("alpha for beta", "betas = 1 - here / before", "betas = here / before"),
        ("the difference of the levels", "betas = 1 - here / before", "betas = before - here"),
        ("the quotient upside down", "(1 - before) / (1 - here)", "(1 - here) / (1 - before).clamp(min=1e-9)"),
        ("beta for beta tilde", "(1 - before) / (1 - here) * betas", "betas"),
        ("beta tilde without beta", "(1 - here) * betas", "(1 - here)"),
        ("the standard deviation", "(1 - before) / (1 - here) * betas", "((1 - before) / (1 - here) * betas).sqrt()"),
    ],
    "log_variance": [
        ("v' taken for v", "v = (head + 1) / 2", "v = head"),
        ("v clipped to [0, 1]", "v = (head + 1) / 2", "v = ((head + 1) / 2).clamp(0, 1)"),
        ("a sigmoid", "v = (head + 1) / 2", "v = torch.sigmoid(head)"),
        (
            "the ends exchanged",
            "v * betas[t - 1].log() + (1 - v) * beta_tilde.log()",
            "v * beta_tilde.log() + (1 - v) * betas[t - 1].log()",
        ),
        (
            "variances mixed, not their logarithms",
            "v * betas[t - 1].log() + (1 - v) * beta_tilde.log()",
            "(v * betas[t - 1] + (1 - v) * beta_tilde).log()",
        ),
        (
            "the logarithm of the standard deviation",
            "return v * betas[t - 1].log() + (1 - v) * beta_tilde.log()",
            "return (v * betas[t - 1].log() + (1 - v) * beta_tilde.log()) / 2",
        ),
        (
            "the variance, not its logarithm",
            "return v * betas[t - 1].log() + (1 - v) * beta_tilde.log()",
            "return (v * betas[t - 1].log() + (1 - v) * beta_tilde.log()).exp()",
        ),
        ("minus infinity at t = 1", "k = max(t, 2)", "k = t"),
        (
            "a floor of 1e-20 at t = 1",
            "k = max(t, 2)\n    beta_tilde = (1 - kept[k - 1]) / (1 - kept[k]) * betas[k - 1]",
            "k = t\n    beta_tilde = ((1 - kept[k - 1]) / (1 - kept[k]) * betas[k - 1]).clamp(min=1e-20)",
        ),
        ("t = 2 at t = 1 for beta as well", "betas[t - 1].log()", "betas[k - 1].log()"),
        ("betas counted from t = 0", "betas[t - 1].log()", "betas[min(t, len(betas) - 1)].log()"),
    ],
    "importance_law": [
        ("the mean for the root of the mean square", "losses.square().mean(1).sqrt()", "losses.mean(1)"),
        ("the mean of sizes", "losses.square().mean(1).sqrt()", "losses.abs().mean(1)"),
        ("no root", "losses.square().mean(1).sqrt()", "losses.square().mean(1)"),
        ("no share of the uniform law", "(1 - uniform) * size / size.sum() + uniform / T", "size / size.sum()"),
        ("a law that does not sum to 1", "(1 - uniform) * size", "size"),
        ("the uniform share not divided by T", "+ uniform / T", "+ uniform"),
        ("weights without T", "1 / (T * p)", "1 / p"),
        ("weights of mean 1 under the law of t, not under p", "1 / (T * p)", "(1 / p) / (1 / p).mean()"),
        ("the weights upside down", "1 / (T * p)", "T * p"),
        (
            "steps without a full history left out of the law",
            "if losses.isnan().any():",
            "losses = losses.nan_to_num()\n    if False:",
        ),
        ("the warm-up's weights 1/T", "return p, 1 / (T * p)", "return p, (p if (p == p[0]).all() else 1 / (T * p))"),
        ("the warm-up only while every step lacks losses", "losses.isnan().any():", "losses.isnan().any(1).all():"),
    ],
}
