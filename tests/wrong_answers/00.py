"""Answers of chapter 00 that must fail: what is wrong, the text of the reference, what stands in its place."""

WRONG = {
    "gaussian_bayes": [
        ("the noise of the measurement left out of y's variance", "c**2 * v + r", "c**2 * v"),
        ("c not squared", "c**2 * v + r", "c * v + r"),
        ("the gain of a measurement with c = 1", "gain = c * v", "gain = v"),
        ("y compared with m instead of c m", "mean = m + gain * (y - c * m)", "mean = m + gain * (y - m)"),
        ("the variance of the prior kept", "variance = v * r / total", "variance = v + 0 * r"),
        ("the evidence without its normalisation", "(2 * math.pi * total).log() + ", ""),
        ("the evidence with the noise as y's variance", "(y - c * m) ** 2 / total)", "(y - c * m) ** 2 / r)"),
        ("bits for nats", "return mean, variance, log_evidence", "return mean, variance, log_evidence / math.log(2)"),
    ],
    "bits_per_dim": [
        ("half a bin for a whole one", "half = 1 / (levels - 1)", "half = 0.5 / (levels - 1)"),
        ("bins of 2/levels", "half = 1 / (levels - 1)", "half = 1 / levels"),
        (
            "the lowest level without its tail",
            "torch.where(k == 0, -math.inf, (x - half - mean) / std)",
            "(x - half - mean) / std",
        ),
        (
            "the highest level without its tail",
            "torch.where(k == levels - 1, math.inf, (x + half - mean) / std)",
            "(x + half - mean) / std",
        ),
        ("256 levels whatever the data have", "k == levels - 1", "k == 255"),
        ("the variance for the standard deviation", "above) - torch", "above * std) - torch"),
        ("nats for bits", "log2()", "log()"),
        ("the sum for the mean over dimensions", "mean(-1)", "sum(-1)"),
        ("the mean over the batch too", "mean(-1)", "mean()"),
        ("the sign", "return -probability", "return probability"),
    ],
    "heun": [
        ("Euler", "h / 2 * (first + second)", "h * first"),
        ("the second slope at the old time", "velocity(x + h * first, t_next)", "velocity(x + h * first, t)"),
        ("the second slope at the old point", "velocity(x + h * first, t_next)", "velocity(x, t_next)"),
        ("the midpoint rule", "velocity(x + h * first, t_next)", "velocity(x + h / 2 * first, t + h / 2)"),
        ("the slopes added, not averaged", "h / 2 *", "h *"),
        ("one step less", "range(len(times) - 1)", "range(len(times) - 2)"),
        ("steps of equal length", "h = t_next - t", "h = (times[-1] - times[0]) / (len(times) - 1)"),
        ("time that only grows", "h = t_next - t", "h = abs(t_next - t)"),
        ("the caller's tensor changed in place", "x = x + h / 2", "x += h / 2"),
        ("a third evaluation in each step", "first = velocity(x, t)", "first = velocity(x, t) + 0 * velocity(x, t)"),
    ],
}
