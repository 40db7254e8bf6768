"""Every field of every config, with its default and its meaning.

An experiment file calls `common()`, fills `model`, `task` and `data` with the component functions below (or with those
in this folder's other files: physics.py has those of physics-informed networks), overrides what it needs and returns the
ConfigDict.  Choices are made by name; a block of alternatives (`optimizer.schedule`) lists all of them, and only the chosen
one is read.
"""
from ml_collections import ConfigDict

from jaxvol.config.limits import LIMITS


def common() -> ConfigDict:
    """Fields that every run has."""
    config = ConfigDict()
    config.seed = 0                    # everything random is a function of (seed, step)
    config.total_steps = 1000          # number of updates; with phases, the sum of theirs
    config.batch_size = 2              # examples per update over all devices
    config.micro_batches = 1           # split each batch in k parts, one after another (gradient accumulation)
    config.precision = "f32"           # f32 | bf16 (compute; parameters stay f32) | f64
    config.matmul_precision = "default"  # default (TF32 on NVIDIA GPUs) | high | highest, see jax_default_matmul_precision
    config.ema_decay = 0.999           # weights used by evaluation and prediction; 0 = no averaging
    config.max_hours = 0.0             # wall-clock budget: save and exit 75 when it is spent; 0 = none
    config.resume = "auto"             # auto: go on from the newest sound checkpoint | fresh: discard them
    config.init_from = ""              # workdir whose weights start this run (step 0, own schedule)
    config.init_checkpoint = "best"    # which of its checkpoints: best | final | <step>
    config.init_groups = ()            # ((group of this run, group of that run), ...) where they differ, e.g. (("gen", "net"),)
    config.phases = ()                 # ((name, steps, {"optimizer.learning_rate": 1e-4, ...}), ...); () = one phase
    config.log_every = 10              # updates between rows of metrics.csv
    config.stall_minutes = 10.0        # say so when no batch came for so long; after twice that, save and exit 75; 0 = wait for ever
    config.profile = False             # write a profiler trace of updates 10-20 to <workdir>/profile
    config.mesh = ConfigDict({
        "data": -1,                    # devices over which the batch is split; -1 = all that are left
        "fsdp": 1,                     # devices over which parameters and optimizer state are split (the batch as well)
        "space": 1,                    # devices over which the depth axis of volumes is split
    })
    config.distributed = ConfigDict({  # several processes; Slurm, Open MPI and JAX_COORDINATOR_ADDRESS are seen without it
        "coordinator": "",             # HOST:PORT of process 0; "" = as the environment says, else one process
        "processes": 1,                # their number
        "process": 0,                  # number of this one, the only field in which they may differ
        "heartbeat_seconds": 60,       # a process that was not heard of for so long counts as lost, and all end
    })
    config.optimizer = optimizer()
    config.checkpoint = ConfigDict({
        "every": 100,                  # updates between saves
        "keep": 2,                     # newest checkpoints kept, besides best and final
        "best_metric": "vrmse",        # validation metric that decides "best" and early stopping
        "best_mode": "min",            # min | max
    })
    config.early_stopping = ConfigDict({
        "patience": 0,                 # evaluations without improvement before the run ends; 0 = never
        "min_delta": 0.0,              # improvement smaller than this counts as none
    })
    config.evaluate = evaluation()
    config.predict = ConfigDict({
        "input": "",                   # file or glob to predict
        "key": "",                     # dataset inside the file; "" = the one the config trains on
        "tile": (),                    # tile size (D, H, W); () = the whole volume at once
        "overlap": 0.5,                # fraction of a tile shared with the next one
    })
    config.preflight = preflight()
    config.compare = ConfigDict({
        "runs": "",                    # workdirs to put side by side: a,b,c
    })
    config.wandb = ConfigDict({
        "project": "",                 # Weights & Biases project; "" = off
        "entity": "",                  # team or user; "" = the account's default
        "offline": False,              # write locally, upload later with `wandb sync`
        "images_every": 5,             # evaluations between pictures
    })
    return config


def choose(variant: str, known: dict):
    """The entry of a config file's variants that was asked for; ValueError with the list of known ones otherwise."""
    if variant not in known:
        raise ValueError(f"there is no variant {variant!r}; known are {', '.join(name or '(none)' for name in known)}")
    return known[variant]


def evaluation() -> ConfigDict:
    """What is scored, with which weights; it may change when a run goes on."""
    return ConfigDict({
        "every": 100,                  # updates between validations
        "batch_size": 4,               # examples per evaluation batch
        "max_examples": 0,             # validation examples per evaluation while training; 0 = all
        "weights": "ema",              # ema | raw
        "checkpoint": "best",          # what evaluate, predict and compare load: best | final | <step>
        "split": "test",               # split that --mode=evaluate scores
        "tta": "none",                 # mean over transformed inputs: none | cube | flips | rotations (flips and small rotations);
                                       # only what spacing, periodic axes, lines of sight and vectors allow; predict as well
        "figures": True,               # draw slices, spectra, PDF and loss curves
    })


def optimizer() -> ConfigDict:
    """The update rule; `groups` overrides fields for one parameter group, e.g. {"disc": {"learning_rate": 1e-4}}."""
    return ConfigDict({
        "name": "adamw",               # adamw | adam | sgd | lion | lbfgs (optax names) | broyden (ops/quasi_newton.py)
        "learning_rate": 1e-3,         # peak rate, reached at the end of the warm-up
        "clip_norm": 1.0,              # clip the group's gradient to this global norm; 0 = off
        "every": 1,                    # move the group at every k-th step only; its moments, schedule and average wait with it
        "delay": 0,                    # do not move it during the first steps of a phase
        "schedule": schedule(),
        "adamw": ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8,
                             "weight_decay": 1e-4}),       # decays arrays with two or more axes only
        "adam": ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8}),
        "sgd": ConfigDict({"momentum": 0.0, "nesterov": False}),
        "lion": ConfigDict({"b1": 0.9, "b2": 0.99, "weight_decay": 1e-3}),   # same mask as adamw
        # the loss has to stay the same from update to update: no minibatches, no points that are drawn anew (broyden bears them)
        "lbfgs": ConfigDict({"memory_size": 10, "max_linesearch_steps": 20}),
        "broyden": ConfigDict({"max_linesearch_steps": 20}),
        "groups": ConfigDict(),        # group -> {field: value}; a group that is not named uses the fields above
    })


def schedule() -> ConfigDict:
    """Learning-rate multiplier over a phase: linear warm-up, then one of the named shapes."""
    return ConfigDict({
        "name": "cosine",              # constant | cosine | exponential | step | onecycle | cyclic | plateau
        "warmup_steps": 0,             # rate (t + 1) / w of the full one at step t < w; 0 gives the full rate at step 0
        "cosine": ConfigDict({"end_factor": 0.01}),                      # floor, as a fraction of the peak
        "exponential": ConfigDict({"decay_rate": 0.5, "every": 1000}),   # rate * decay_rate ** (step / every)
        "step": ConfigDict({"boundaries": (500, 800), "factor": 0.1}),   # times factor at each boundary
        "onecycle": ConfigDict({"peak_fraction": 0.3, "start_factor": 0.04, "end_factor": 4e-6}),
        "cyclic": ConfigDict({"period": 1000, "start_factor": 0.1}),     # triangular: start -> peak -> start
        "plateau": ConfigDict({"patience": 5, "factor": 0.5, "cooldown": 0, "min_factor": 0.01, "rtol": 1e-3}),
    })


def regression() -> ConfigDict:
    """Volume to volume: weighted sum of named losses in normalised units, metrics in physical units."""
    return ConfigDict({
        "name": "regression",
        "losses": (("mse", 1.0),),     # (name in jaxvol/scores/losses.py, weight), ...
        "resolutions": (1,),           # a loss is its mean over volumes averaged over cubes of these sides, e.g. (1, 2, 4)
        "metrics": ("vrmse", "rmse", "mae", "relative_l2", "pearson", "ssim", "psnr"),  # names in jaxvol/scores/metrics.py
        "spectra": True,               # P(k), T(k), r(k) per box (needs cubic voxels)
    })


def data() -> ConfigDict:
    """Fields that every dataset of volumes has; a dataset's own function adds to them."""
    return ConfigDict({
        "num_workers": 2,              # reader threads; the batches do not depend on it
        "on_error": "stop",            # stop | skip an example that cannot be read after three tries
        "max_skips": 10,               # more skipped examples than this stop the run
        "augment": ("cube", "shift"),  # cube: rotations and reflections the fields allow; transpose: exchanges of axes only;
                                       # shift: periodic boxes only
        "fit_examples": 64,            # training examples that normalisers are fitted on
        "input_normaliser": (("standardise", {}),),    # chain of (name, arguments), see jaxvol/ops/normalise.py
        "target_normaliser": (("standardise", {}),),
    })


def cosmology() -> ConfigDict:
    """Boxes simulated on this machine (jaxvol/data/cosmology.py): evolved matter -> initial density, or tracers -> matter."""
    config = data()
    config.name = "cosmology"
    config.pairs = "dm2ic"             # dm2ic: evolved density -> linear delta today | tracers2dm: tracers -> evolved density
    config.evolution = "2lpt"          # 2lpt | pm: particle-mesh N-body (extra "nbody"; box_size / grid <= 4 Mpc/h)
    config.boxes = ConfigDict({"train": 200, "val": 20, "test": 40})   # independent realisations per split
    config.grid = 32                   # cells, and particles, along an axis
    config.box_size = 128.0            # Mpc/h
    config.redshift = 0.0              # of the evolved density and the tracers
    config.simulation_seed = 0         # of the boxes; config.seed shuffles and augments them
    config.pm_steps = 32               # steps of the particle-mesh run, equal in scale factor
    config.parameters = ConfigDict({   # flat LCDM, Planck 2015
        "omega_m": 0.3075, "omega_b": 0.0486, "h": 0.6774, "n_s": 0.9667, "sigma8": 0.8159})
    config.tracers = ConfigDict({
        "nbar": 3e-3,                  # mean number density, (h/Mpc)^3
        "bias": 1.5,                   # their expected density goes as matter density ** bias
        "redshift_space": True,        # move them by their velocity along the line of sight
        "line_of_sight": 2,            # axis
    })
    config.cache_dir = "~/.cache/jaxvol"   # simulated boxes; one that cannot be written falls back to the temporary folder
    config.input_normaliser = (("log10", {"floor": 0.03}), ("standardise", {}))    # tracers2dm: (("log1p", {"floor": 0.0}), ...)
    config.target_normaliser = (("standardise", {}),)                              # tracers2dm: as the input of dm2ic
    return config


def fno() -> ConfigDict:
    """Fourier neural operator; the defaults keep every frequency up to |k| = 8 on each axis."""
    return ConfigDict({
        "name": "fno",
        "width": 20,                   # channels of the hidden field
        "layers": 4,                   # blocks
        "modes": (8, 8, 8),            # highest |k| kept along D, H, W; at most half the grid, 0 on an axis of length 1
        "window": "symmetric",         # symmetric: k = -m..m | one_sided: k = -m..m-1, the neuraloperator layout of n_modes = 2m
        "factorization": "dense",      # of the spectral weights: dense | tucker | cp (TFNO)
        "rank": 0.1,                   # factorised: parameters as a fraction of the dense tensor's; tucker 1.0 = full rank
        "implementation": "auto",      # auto | fft | dft (truncated DFT as matrix products)
        "lifting_ratio": 2.0,          # hidden channels of the lifting MLP / width; 0 = one linear layer
        "projection_ratio": 2.0,       # hidden channels of the projection MLP / width; 0 = one linear layer
        "bypass": "linear",            # around the spectral convolution: linear (1x1) | identity | soft_gating | none
        "channel_mlp_ratio": 0.5,      # hidden channels of each block's MLP / width; 0 = no MLP
        "channel_mlp_skip": "soft_gating",  # around that MLP, from the block's input: linear | identity | soft_gating | none
        "norm": "none",                # none | instance | group (all channels together)
        "activate_last": False,        # activation in the last block as well
        "coordinates": "auto",         # input channels j/n: auto (axes that are not periodic) | all | none
        "padding": 0.0,                # zeros appended to axes that are not periodic, as a fraction of their length
        "remat": False,                # recompute each block in the backward pass: less memory on GPU and TPU, none saved on CPU
    })


def volumes() -> ConfigDict:
    """The users' own files (jaxvol/data/volumes.py): HDF5, .npy, .npz, Zarr or NIfTI, found by globs or by a CSV manifest."""
    def files(channels: tuple) -> ConfigDict:
        return ConfigDict({
            "files": "",               # glob for all splits, seen from root; divided by `split`
            "train": "", "val": "", "test": "",   # or a glob per split; all empty (target, mask): in the input's files
            "key": "",                 # dataset inside the file; "" = its only one
            "channels": channels,      # names, one per channel
            "kind": "scalar",          # scalar | vector (channels in threes: d, h, w) | line_of_sight=<axis 0..2>
            "unit": "",                # physical unit of the values, for labels
        })

    config = data()
    config.name = "volumes"
    config.augment = ("cube",)
    config.root = ""                   # folder that the globs start from; "" = the current one
    config.layout = "stacked"          # stacked: a file holds many examples [N, ...] | single: a file is one example
    config.ndim = 3                    # spatial axes in the files: 3 | 2 (volumes of depth 1)
    config.channel_axis = -1           # where there is a channel axis: -1 behind the spatial axes | 0 before them
    config.input = files(("input",))
    config.target = files(("target",))
    config.mask = ConfigDict({"files": "", "train": "", "val": "", "test": "",
                              "key": ""})          # > 0 = observed; no glob and no key = no mask
    config.manifest = ConfigDict({
        "path": "",                    # CSV with a header line and one row per file, instead of the globs
        "input": "input", "target": "target",      # its columns with files; target "" = in the input's file
        "mask": "", "group": "",       # columns with mask files; with the patient, box, ... that must not cross a split
        "split": "",                   # column with train, val or test; "" = by fractions
    })
    config.split = ConfigDict({
        "fractions": (0.8, 0.1, 0.1),  # train, val, test, where neither globs nor a column say it
        "over": "groups",              # groups (files where there are none) | examples (only if neighbours do not overlap)
        "seed": 0,                     # of the division
    })
    config.spacing = ()                # voxel size (D, H, W); () = the files' own, else 1
    config.unit = ""                   # unit of lengths: "Mpc/h", "mm"
    config.periodic = (False, False, False)        # a volume wraps along this axis (augment may then have "shift")
    return config


def crops() -> ConfigDict:
    """Fields of datasets that draw crops from a box; a crop's inner part lies in its slab, its margin may lie in the buffer."""
    config = data()
    config.augment = ("cube",)
    config.crop = (32, 32, 32)         # voxels (D, H, W), margin included
    config.margin = (0, 0, 0)          # voxels inside each face that are context only (mask 0)
    config.split = "slabs"             # slabs: one per split, along `axis` | boxes: each box in one split (three or more boxes)
    config.axis = 0                    # along which the slabs are cut
    config.fractions = (0.6, 0.2, 0.2)             # train, val, test; of what the buffers leave, or of the boxes
    config.split_seed = 0              # of the division of boxes
    config.buffer = 0                  # voxels between slabs, at least a crop along `axis`; 0 = one crop
    config.crops_per_epoch = 256       # random training crops that count as one epoch
    config.periodic = (False, False, False)        # the box wraps along this axis
    config.unit = ""                   # unit of lengths: "Mpc/h", "mm"
    return config


def box() -> ConfigDict:
    """Random crops of one large box, or of a few (jaxvol/data/box.py)."""
    config = crops()
    config.name = "box"
    for leaf in ("input", "target"):
        config[leaf] = ConfigDict({
            "path": "",                # file, or glob for several boxes; target "" = the input's
            "key": "",                 # dataset inside the file; "" = its only one
            "channels": (leaf,),       # names, one per channel
            "kind": "scalar",          # scalar | vector (channels in threes: d, h, w) | line_of_sight=<axis 0..2>
            "unit": "",                # physical unit of the values, for labels
        })
    config.mask = ConfigDict({"path": "", "key": ""})    # > 0 = observed; both "" = no mask
    config.ndim = 3                    # spatial axes in the files: 3 | 2 (a box of depth 1: axis 1 or 2)
    config.channel_axis = -1           # where there is a channel axis: -1 behind the spatial axes | 0 before them
    config.spacing = ()                # voxel size (D, H, W); () = the file's own, else 1
    return config


def galaxies() -> ConfigDict:
    """Density of one random half of a galaxy catalogue -> that of the other half (jaxvol/data/galaxies.py), periodic box."""
    config = crops()
    config.name = "galaxies"
    config.path = ""                   # counts (.npz: counts, boxsize) or a Corrfunc catalogue (.ff)
    config.grid = 128                  # cells along an axis
    config.thinning_fraction = 0.5     # probability that a galaxy goes to the input
    config.thinning_seed = 0           # of the two halves
    config.crop = (16, 32, 32)
    config.periodic = (True, True, True)
    config.unit = "Mpc/h"
    config.input_normaliser = (("log1p", {"floor": 0.0}), ("standardise", {}))
    return config


def pix2pixcc() -> ConfigDict:
    """Pix2PixCC generator; `norm="instance", down_padding="zero", bias_before_norm=True, skips="none"` is the published one."""
    return ConfigDict({
        "name": "pix2pixcc",
        "width": 16,                   # channels at full resolution; doubled by each step down
        "downs": 2,                    # steps down, and up again: convolutions of stride 2; any size of volume comes out as it was
        "blocks": 4,                   # residual blocks at the coarsest resolution
        "norm": "none",                # none | group (8 groups) | instance (forgets the amplitude of its input) | batch
        "skips": "add",                # none | add: the encoder's features to the decoder's of the same size
        "upsampling": "trilinear",     # trilinear (and a convolution) | transposed (convolution)
        "padding": "auto",             # auto (periodic where all axes wrap, else replicate) | zero | replicate | periodic | reflect
        "down_padding": "auto",        # the same, of the steps down
        "bias_before_norm": False,     # biases that a norm takes away again
        "remat": False,                # recompute each block in the backward pass: less memory on GPU and TPU, none saved on CPU
    })


def discriminator() -> ConfigDict:
    """Multi-scale patch discriminator (`config.task.discriminator`); norm="instance", no spectral norm is Pix2PixCC's."""
    return ConfigDict({
        "scales": 2,                   # discriminators; number s sees the volume average-pooled s times
        "width": 32,                   # channels of the first convolution; doubled by each further one
        "max_width": 256,              # at most
        "strides": (2, 2, 2, 1, 1),    # one 4^3 convolution each, the last gives the logits; smaller volumes need fewer 2s
        "pad_width": 1,                # voxels added at each face before each convolution
        "padding": "auto",             # auto (periodic where all axes wrap, else zero) | zero | replicate | periodic | reflect
        "norm": "instance",            # of all convolutions but the first and the last: none | group | instance | batch
        "spectral_norm": False,        # divide each kernel by its largest singular value, followed by one power iteration per call
        "count_padding": False,        # zeros beyond the border count in the average-pooling between scales (Pix2PixCC in 3D)
        "remat": False,                # recompute each convolution in the backward pass
    })


def vit3d() -> ConfigDict:
    """Vision transformer for volumes; `embed`, `head` = "linear" and `position` = "learned" is the plain ViT."""
    return ConfigDict({
        "name": "vit3d",
        "patch": (4, 4, 4),            # voxels of a token along D, H, W; they have to divide the volume
        "width": 128,                  # features of a token
        "layers": 4,                   # blocks
        "heads": 4,                    # attention heads
        "head_features": 32,           # features of each head
        "mlp_ratio": 2.0,              # hidden features of each block's MLP / width
        "embed": "conv",               # conv: the grid is halved step by step, with convolutions | linear: patches alone
        "head": "conv",                # conv: back by interpolation and convolutions, with the embedding's features | linear: has seams
        "stem_width": 16,              # channels of those convolutions on the finest grid, twice as many on each coarser one
        "stem_layers": 2,              # their number on each grid
        "position": "relative",        # relative (in every block) | learned | sincos (added to the tokens) | none
        "position_std": 0.02,          # of a learned table at the start
        "window": 0,                   # attention within cubes of so many tokens, moved by half of it in every other block; 0 = all tokens
        "dropout": 0.0,                # of tokens and of both sub-layers, while training
        "attention": "auto",           # auto | matmul (fastest on CPU) | xla | cudnn (NVIDIA GPUs, bf16)
        "remat": False,                # recompute each block in the backward pass: less memory on GPU and TPU, none saved on CPU
    })


def adversarial() -> ConfigDict:
    """Volume to volume against a discriminator (jaxvol/tasks/adversarial.py); the generator is config.model.

    Parameter groups gen and disc: learning rates, clip norms, update ratio and head start are optimizer.groups.<group>.<field>.
    """
    return ConfigDict({
        "name": "adversarial",
        "losses": (("l1", 1.0),),      # voxel terms: (name in jaxvol/scores/losses.py, weight), ...; a weight of 0 only reports it
        "resolutions": (1,),           # a voxel loss is its mean over volumes averaged over cubes of these sides, e.g. (1, 2, 4)
        "weights": ConfigDict({        # of the other terms of the generator; one of weight 0 is not computed
            "adversarial": 0.2, "feature_matching": 1.0, "correlation": 0.0}),
        "mode": "lsgan",               # lsgan | hinge
        "label_smoothing": 0.0,        # lsgan: the discriminator's label of real pairs is 1 - this (one-sided)
        "feature_matching_logits": True,   # feature matching counts the logits as a layer (Pix2PixCC; pix2pixHD does not)
        "correlation": ConfigDict({
            "kind": "pcc",             # pcc | ccc (concordance: mean and amplitude count as well)
            "scope": "sample",         # sample | batch: one coefficient over the whole batch, as published; needs micro_batches=1
            "scales": 1,               # volumes average-pooled 0 ... scales - 1 times
            "count_padding": False,    # zeros beyond the border count in this pooling (the published 3D code)
        }),
        "discriminator": discriminator(),
        "channel_balance": 0.0,        # r = this * C / K: the target (r < 1: the input, 1 / r) is shown floor(r) times; 0 = once
        "ramp": ConfigDict({           # of the adversarial weight, which is 0 before step `start`
            "start": 0, "steps": 0}),  # and then grows linearly for so many steps; 0 = at once
        "noise": ConfigDict({          # instance noise on the images that the discriminator sees
            "std": 0.0, "steps": 0}),  # falls to 0 over so many steps; 0 = stays
        "augment": ConfigDict({        # what the discriminator sees (DiffAugment), the same for real and generated
            "translation": 0.0,        # by up to this fraction of each side; wraps along periodic axes
            "intensity": 0.0,          # contrast 1 +- this and brightness +- this
        }),
        "r1": ConfigDict({             # gradient penalty of the discriminator
            "weight": 0.0, "every": 16}),  # at every k-th step only, k times as strong there
        "metrics": ("vrmse", "rmse", "mae", "relative_l2", "pearson", "ssim", "psnr"),  # names in jaxvol/scores/metrics.py
        "spectra": True,               # P(k), T(k), r(k) per box (needs cubic voxels)
    })


def preflight() -> ConfigDict:
    """The checks before a fresh training; their limits stand in jaxvol/config/limits.py."""
    return ConfigDict({
        "run": True,                   # before a fresh --mode=train; a run that was passed or resumed is not checked again
        "only": (),                    # names of the checks to run, e.g. ("data",); () = all that apply
        "waive": (),                   # checks whose FAIL does not stop the training; stays visible in every report
        "stop_on": (),                 # checks that stop a training that is under way when a cheap reading turns red
        "baseline": "",                # workdir of an earlier run to compare with; "" = none
        "steps": 40,                   # updates of the short runs (overfit, schedule, prediction)
        "examples": 8,                 # examples per split that are looked at
        "limits": ConfigDict({check: ConfigDict(metrics) for check, metrics in LIMITS.items()}),
    })


def unet() -> ConfigDict:
    """U-Net on images, volumes of depth 1; widths=(64, 128, 256, 512), norm="batch" is the published one of the fringe images."""
    return ConfigDict({
        "name": "unet",
        "widths": (16, 32, 64),        # channels per level, each on half the grid of the one before
        "norm": "group",               # group (8 groups) | instance (forgets the amplitude of its input) | batch | none
    })


def vnet() -> ConfigDict:
    """V-Net; `layout="original", head="norm_relu", fit="crop", norm="batch", bias_before_norm=True` is the published 3D U-Net."""
    return ConfigDict({
        "name": "vnet",
        "layout": "residual",          # residual: pre-activation blocks, sums with the skips | original: one convolution per level
        "widths": (16, 32, 64, 80),    # channels per level; residual: the first at full resolution, original: at half of it
        "norm": "group",               # group (8 groups) | instance (forgets the amplitude of its input) | batch | none
        "padding": "auto",             # auto (periodic where all axes wrap, else replicate) | zero | replicate | periodic | reflect
        "head": "linear",              # linear | norm_relu (as published: no output below 0)
        "fit": "resize",               # up-sampled features to the skip's grid: resize | crop (drops the first voxel, as published)
        "bias_before_norm": False,     # biases that a norm takes away again
        "remat": False,                # recompute each block in the backward pass: less memory on GPU and TPU, none saved on CPU
    })
