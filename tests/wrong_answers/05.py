"""Answers of chapter 05 that must fail: what is wrong, the text of the reference, what stands in its place."""

WRONG = {
    "guided_mean": [
        ("the classifier at level t, not t - 1", "log_p(x, t - 1, labels)", "log_p(x, t, labels)"),
        ("no variance before the slope", "mean + s * variance * slope", "mean + s * slope"),
        ("the standard deviation before the slope", "s * variance * slope", "s * variance.sqrt() * slope"),
        ("away from the class", "mean + s * variance", "mean - s * variance"),
        ("no scale", "s * variance * slope", "variance * slope"),
        ("a shift at t = 1 too, where the classifier has no level", "    if t == 1:\n        return mean\n", ""),
        ("no shift at t = 2 either", "if t == 1", "if t <= 2"),
        ("the mean slope of the batch", "labels).sum(), x", "labels).mean(), x"),
        ("gradients left switched off", "with torch.enable_grad():", "if True:"),
        ("the slope averaged over the dimensions", "variance * slope", "variance * slope.mean(1, keepdim=True)"),
    ],
    "guided_ddim_step": [
        ("a plus for the minus", "eps - (1 - alpha_bar) ** 0.5 * s", "eps + (1 - alpha_bar) ** 0.5 * s"),
        ("the noise's standard deviation missing", "(1 - alpha_bar) ** 0.5 * s * slope", "s * slope"),
        (
            "the variance for the standard deviation",
            "(1 - alpha_bar) ** 0.5 * s * slope",
            "(1 - alpha_bar) * s * slope",
        ),
        ("no scale", "** 0.5 * s * slope", "** 0.5 * slope"),
        ("x0 from the unshifted noise", "** 0.5 * eps_hat) / alpha_bar", "** 0.5 * eps) / alpha_bar"),
        (
            "the way back with the unshifted noise",
            "(1 - alpha_bar_next) ** 0.5 * eps_hat",
            "(1 - alpha_bar_next) ** 0.5 * eps",
        ),
        ("x0 without the division", ") / alpha_bar**0.5\n", ")\n"),
        ("the level here for the next", "(1 - alpha_bar_next) ** 0.5 * eps_hat", "(1 - alpha_bar) ** 0.5 * eps_hat"),
        (
            "the next level's deviation in the shift",
            "eps_hat = eps - (1 - alpha_bar)",
            "eps_hat = eps - (1 - alpha_bar_next)",
        ),
    ],
    "free_of_classifiers": [
        ("the variance of the untold answer", "told[:, c:]], 1)", "untold[:, c:]], 1)"),
        ("the variance guided too", "told[:, c:]], 1)", "untold[:, c:] + s * (told[:, c:] - untold[:, c:])], 1)"),
        ("s + 1 for s", "untold[:, :c] + s * (", "untold[:, :c] + (s + 1) * ("),
        ("the paper's other scale, told + s (told − untold)", "untold[:, :c] + s * (", "told[:, :c] + s * ("),
        ("told and untold exchanged", "s * (told[:, :c] - untold[:, :c])", "s * (untold[:, :c] - told[:, :c])"),
        ("0 for no label", "torch.full_like(labels, -1)", "torch.zeros_like(labels)"),
        (
            "the halves exchanged",
            "[untold[:, :c] + s * (told[:, :c] - untold[:, :c]), told[:, c:]]",
            "[told[:, c:], untold[:, :c] + s * (told[:, :c] - untold[:, :c])]",
        ),
        ("the noise alone", ", told[:, c:]], 1)", "], 1)"),
        ("one channel whatever x has", "c = x.shape[1]", "c = 1"),
        ("a half found by the batch", "c = x.shape[1]", "c = x.shape[0]"),
    ],
}
