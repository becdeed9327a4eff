"""Answers of chapter 01 that must fail: what is wrong, the text of the reference, what stands in its place."""

WRONG = {
    "ch01-bit-posterior": [
        ("one step too many before t", "betas[: t - 1]", "betas[:t]"),
        ("the rate of the step before", "b = betas[t - 1]", "b = betas[t - 2]"),
        ("one half for m", "(1 - kept) * m  #", "(1 - kept) * 0.5  #"),
        ("one half for m in the step", "from_zero = b * m", "from_zero = b * 0.5"),
        ("a step that flips instead of drawing anew", "(1 - b) + b * m", "1 - b"),
        (
            "the same evidence for both values of x^t",
            "((1 - from_one) / (1 - from_zero)).log()",
            "(from_one / from_zero).log()",
        ),
        (
            "the probability for the logit",
            "return rate.log() - torch.log1p(-rate) + step",
            "return torch.sigmoid(rate.log() - torch.log1p(-rate) + step)",
        ),
        ("the prior left out", "return rate.log() - torch.log1p(-rate) + step", "return step + 0 * rate"),
        ("the evidence of x^t left out", "torch.log1p(-rate) + step", "torch.log1p(-rate)"),
        ("logits that stay finite where x^0 is known", "rate = kept", "rate = 1e-9 + (1 - 2e-9) * kept"),
    ],
    "ch01-held-step": [
        ("the power on the wrong side", "r_sd**2 / power", "r_sd**2 * power"),
        ("no power", "r_sd**2 / power", "r_sd**2"),
        ("standard deviations for variances", "sd**2 / (sd**2 + r_sd**2 / power)", "sd / (sd + r_sd / power)"),
        ("the power squared", "r_sd**2 / power", "(r_sd / power) ** 2"),
        ("the variance for the standard deviation", "(1 - k).sqrt() * sd", "(1 - k) * sd**2"),
        ("the deviation without its root", "(1 - k).sqrt() * sd", "(1 - k) * sd"),
        ("pushed away from y", "k * (y - mean)", "k * (mean - y)"),
        (
            "0/0 where r is a spike",
            "k = sd**2 / (sd**2 + r_sd**2 / power)",
            "p = power / r_sd**2\n    k = p / (p + 1 / sd**2)",
        ),
        ("0/0 where the power is 0", "if power == 0:\n        return mean, sd\n    k", "k"),
        (
            "nan where r says nothing",
            "k = sd**2 / (sd**2 + r_sd**2 / power)",
            "k = 1 - (r_sd**2 / power) / (sd**2 + r_sd**2 / power)",
        ),
    ],
    "ch01-average-ratios": [
        (
            "exponentials that leave the range",
            "torch.logsumexp(log_ratio, 0) - math.log(n)",
            "log_ratio.exp().mean().log()",
        ),
        ("the sum for the average", " - math.log(n)", ""),
        ("the error of one path, not of the average", "relative.std() / n**0.5", "relative.std()"),
        ("the error of the average, not of its logarithm", "(log_ratio - log_mean).exp()", "log_ratio.exp()"),
        ("the scatter of the logarithms", "relative.std()", "log_ratio.std()"),
        ("variance for standard deviation", "relative.std()", "relative.var()"),
        ("division by n for n - 1", "relative.std()", "relative.std(correction=0)"),
        ("nats for bits", "ln2 = math.log(2)", "ln2 = 1.0"),
        ("the error in nats", "n**0.5 / ln2", "n**0.5"),
        ("the average's logarithm for K", "log_ratio.mean() / ln2", "log_mean / ln2"),
    ],
}
