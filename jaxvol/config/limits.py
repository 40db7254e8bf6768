"""Limits of the pre-flight's checks: metric -> (side, warn, fail).

(">", 0.9, 0.5) asks for more than 0.9, warns below it and fails below 0.5; ("<", 0.1, 0.5) asks for
less than 0.1.  What each metric means and what to do about it stands beside its measurement, in
MEANING of jaxvol/diagnostics/<check>.py. Override one with
--config.preflight.limits.overfit.explained="('>', 0.8, 0.4)".
"""

LIMITS = {}

LIMITS["environment"] = {
    "disk_saves": (">", 20.0, 3.0),  # checkpoints that still fit on the disk
    "host_memory": (">", 0.1, 0.02),  # free fraction of the host's memory
    "writable": (">", 1.0, 1.0),  # the workdir can be written: 1
    "accelerator_used": (">", 1.0, 1.0),  # a GPU that is there is used by JAX: 1
}

LIMITS["data"] = {
    "not_finite": ("<", 0.0, 0.0),  # share of values
    "constant": ("<", 0.0, 0.2),  # share of channels of examples
    "duplicates": ("<", 0.0, 0.0),  # identical examples
    "largest": ("<", 50.0, 1e4),  # standard deviations
    "mean_off": ("<", 0.2, 1.0),  # standard deviations
    "scale_off": ("<", 0.5, 2.0),  # |log2|
    "round_trip": ("<", 1e-3, 0.05),  # standard deviations
    "pairing": (">", 6.0, 3.0),  # standard errors
    "orientation": (">", 3.0, 0.0),  # standard errors
    "offset": ("<", 0.15, 0.35),  # voxels
    "unpaired": ("<", 0.0, 0.2),  # share of examples
    "augmented_unpaired": ("<", 0.0, 0.2),
    "augmented_pairing": (">", 6.0, 3.0),
    "augmented_orientation": (">", 3.0, 0.0),
    "augmented_offset": ("<", 0.15, 0.35),
    "augmented_agreement": (">", 0.8, 0.6),  # ratio of correlations
    "same_batches": ("<", 0.0, 1.0),  # batches
    "overlap": ("<", 0.0, 0.01),  # share of voxels
    "wrap": ("<", 1.5, 2.0),  # ratio
}

LIMITS["state"] = {
    "not_restored": ("<", 0.0, 0.0),  # leaves
    "resumed": ("<", 0.0, 1e-4),  # relative; 0 on CPUs, GPUs may add in another order
    "repeated": ("<", 0.0, 1e-4),  # relative
    "ema": ("<", 1e-3, 0.02),  # relative to the distance moved
    "same_noise": ("<", 0.0, 0.0),  # 1 = the same random numbers in every update
    "validated": ("<", 1e-5, 1e-4),  # relative
    "selected": ("<", 0.0, 0.0),  # the better of two scores is kept: 0
}

LIMITS["schedule"] = {
    "peak": (">", 0.999, 0.9),  # fraction of the config's rate
    "excess": ("<", 1.001, 1.1),  # multiple of it
    "dead_share": ("<", 0.2, 0.5),  # share of updates
    "jump": ("<", 3.0, 1e9),  # factor between neighbours
    "mismatch": ("<", 1e-4, 1e-2),  # relative
    "pretrained_start": (">", 0.5, 0.2),  # fraction of the peak, with init_from only
}

LIMITS["overfit"] = {
    "explained": (">", 0.15, 0.05),  # share of the variance
    "gain": (">", 0.15, 0.05),  # share of the variance
}

LIMITS["gradients"] = {
    "dead": ("<", 0.0, 0.02),  # share of weights
    "imbalance": ("<", 4.0, 7.0),  # powers of ten
    "norm_error": ("<", 1e-3, 0.02),  # relative
    "update_error": ("<", 0.02, 0.1),  # relative
    "clipped": ("<", 0.9, 0.99),  # share of the norm
    "frozen": ("<", 0.0, 0.001),  # share of weights
    "slope_error": ("<", 0.02, 0.1),  # relative, in float32
    "largest_share": ("<", 0.95, 0.98),  # of the group's gradient
    "smallest_share": (">", 0.01, 0.0),  # of the group's gradient
}

LIMITS["lr_range"] = {
    "rate_over_divergence": ("<", 0.5, 1.0),  # fraction
    "refused": ("<", 0.0, 0.0),  # share of the first updates
    "rate_over_suggestion": (">", 0.01, 0.0),  # fraction
    "fall": (">", 0.05, 0.0),  # share of the loss
}

LIMITS["structure"] = {
    "nonlinearity": (">", 0.01, 1e-3),  # relative
    "idle_blocks": ("<", 0.0, 0.0),  # blocks
    "weakest_block": (">", 1e-4, 1e-8),  # relative
    "range_low": ("<", 0.001, 0.02),  # share of the target's voxels
    "range_high": ("<", 0.001, 0.02),  # share of the target's voxels
    "idle_weights": ("<", 0.0, 0.001),  # share of the weights
    "batch_leak": ("<", 1e-4, 1e-2),  # relative
    "mode_gap": ("<", 1e-5, 1e-3),  # relative
    # relative; a warning only: augmentation can teach it away
    "position": ("<", 1.0, 1e9),
    "reach": (">", 0.01, 1e-6),  # share of the voxels
    "pretrained_moved": ("<", 1e-6, 1e-3),  # relative, with init_from only
}

LIMITS["prediction"] = {
    "variance_ratio": (">", 0.02, 0.001),  # of the target's variance
    "saturated": ("<", 0.05, 0.3),  # share of the voxels
    "sharpness": (">", 0.02, 0.0),  # of the target's gradient
    "roughness": ("<", 3.0, 30.0),  # of the target's gradient
    "physical": ("<", 0.1, 0.5),  # |log2|
    "self_score": ("<", 0.05, 0.2),  # of the prediction's variation
    "correlation": (">", 0.1, 0.0),  # Pearson
}

LIMITS["spectra"] = {
    "octants": ("<", 4.0, 8.0),  # ratio of standard deviations
    "axes": ("<", 2.0, 5.0),  # ratio of powers
    "patches": ("<", 5.0, 100.0),  # ratio of powers
    "high_k": ("<", 10.0, 1000.0),  # ratio of powers
}

LIMITS["memory"] = {
    "head_room": (">", 1.2, 1.0),  # multiple of what the step needs
    "host_head_room": (">", 1.5, 1.0),  # multiple of what the step needs
    "recompiled": ("<", 0.0, 3.0),  # programs
}

LIMITS["numerics"] = {
    "bf16": ("<", 0.1, 0.5),  # relative
    "f64": ("<", 1e-3, 0.05),  # relative
    "start_loss": ("<", 5.0, 100.0),  # multiple of the mean predictor's
    "loss_error": ("<", 1e-3, 0.02),  # relative
    "not_finite": ("<", 0.0, 0.0),  # share of updates
}

LIMITS["tiling"] = {
    "identity": ("<", 1e-6, 1e-5),  # relative
    "uncovered": ("<", 0.0, 0.0),  # voxels
    "smallest_weight": (">", 1e-4, 1e-12),  # weight; the largest is 1
    "moved": ("<", 1e-6, 1e-3),  # relative
}

LIMITS["baselines"] = {
    "short_run": ("<", 1.0, 2.0),  # of the mean predictor's
    "best_linear": ("<", 0.999, 1.5),  # of the mean predictor's
}

LIMITS["adversarial"] = {
    "leak": ("<", 1e-3, 0.02),  # relative
    "response": (">", 1e-4, 1e-6),  # logits
    "one_sided": ("<", 0.9, 1.0),  # accuracies
    "pairs": ("<", 0.0, 0.0),  # wrong or not
    "generator_moves": (">", 1e-6, 1e-9),  # relative
}

LIMITS["vnet"] = {
    "displacement": ("<", 0.05, 0.25),  # voxels
    "strided_displacement": ("<", 1.5, 3.0),  # voxels
    "stats_moved": (">", 1e-4, 1e-7),  # absolute
}

LIMITS["fno"] = {
    "beyond_nyquist": ("<", 0.0, 0.0),  # axes
    "lost": ("<", 0.5, 0.95),  # share of the variance
    "shift": ("<", 0.3, 3.0),  # relative
    "resolution": ("<", 0.3, 3.0),  # relative
}

LIMITS["vit3d"] = {
    "round_trip": ("<", 0.0, 0.0),  # voxels
    "displacement": ("<", 1.5, 3.0),  # voxels
    "local": (">", 0.9, 0.5),  # ratio of mean powers
    "tokens": ("<", 8192.0, 65536.0),  # tokens
}

LIMITS["physics"] = {
    "solution_residual": ("<", 1e-9, 1e-6),  # relative
    "uncovered": ("<", 0.0, 0.0),  # faces
    "silent": ("<", 0.0, 0.0),  # terms
    "reach": ("<", 1.001, 2.5),  # half widths of the domain
    "rank": (">", 0.5, 0.25),  # of the full rank
    "zero_loss": (">", 1e-3, 1e-8),  # of the loss at the start
    "progress": ("<", 1.0, 10.0),  # of the loss of u = 0
}
