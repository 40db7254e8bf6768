"""Every field of every config, with its default and its meaning.

An experiment file calls `common()`, fills `model`, `task` and `data` with the component functions
below (or with those in this folder's other files: physics.py has those of physics-informed
networks), overrides what it needs and returns the ConfigDict.  Choices are made by name; a block of
alternatives (`optimizer.schedule`) lists all of them, and only the chosen one is read.
"""

from ml_collections import ConfigDict

from jaxvol.config.limits import LIMITS


def common() -> ConfigDict:
    """Fields that every run has."""
    config = ConfigDict()
    config.seed = 0  # everything random is a function of (seed, step)
    config.total_steps = 1000  # number of updates; with phases, the sum of theirs
    config.batch_size = 2  # examples per update over all devices
    # split each batch in k parts, one after another (gradient accumulation)
    config.micro_batches = 1
    config.precision = "f32"  # f32 | bf16 (compute; parameters stay f32) | f64
    # default (TF32 on NVIDIA GPUs) | high | highest, see jax_default_matmul_precision
    config.matmul_precision = "default"
    config.ema_decay = 0.999  # weights used by evaluation and prediction; 0 = no averaging
    # wall-clock budget: save and exit 75 when it is spent; 0 = none
    config.max_hours = 0.0
    # auto: go on from the newest sound checkpoint | fresh: discard them
    config.resume = "auto"
    config.init_from = ""  # workdir whose weights start this run (step 0, own schedule)
    config.init_checkpoint = "best"  # which of its checkpoints: best | final | <step>
    # ((group of this run, group of that run), ...) where they differ, e.g. (("gen", "net"),)
    config.init_groups = ()
    # ((name, steps, {"optimizer.learning_rate": 1e-4, ...}), ...); () = one phase
    config.phases = ()
    config.log_every = 10  # updates between rows of metrics.csv
    # say so when no batch came for so long; after twice that, save and exit 75; 0 = wait for ever
    config.stall_minutes = 10.0
    # write a profiler trace of updates 10-20 to <workdir>/profile
    config.profile = False
    config.mesh = ConfigDict(
        {
            # devices over which the batch is split; -1 = all that are left
            "data": -1,
            # devices over which parameters and optimizer state are split (the batch as well)
            "fsdp": 1,
            "space": 1,  # devices over which the depth axis of volumes is split
        }
    )
    # several processes; Slurm, Open MPI and JAX_COORDINATOR_ADDRESS are seen without it
    config.distributed = ConfigDict(
        {
            # HOST:PORT of process 0; "" = as the environment says, else one process
            "coordinator": "",
            "processes": 1,  # their number
            "process": 0,  # number of this one, the only field in which they may differ
            # a process that was not heard of for so long counts as lost, and all end
            "heartbeat_seconds": 60,
        }
    )
    config.optimizer = optimizer()
    config.checkpoint = ConfigDict(
        {
            "every": 100,  # updates between saves
            "keep": 2,  # newest checkpoints kept, besides best and final
            "best_metric": "vrmse",  # validation metric that decides "best" and early stopping
            "best_mode": "min",  # min | max
        }
    )
    config.early_stopping = ConfigDict(
        {
            # evaluations without improvement before the run ends; 0 = never
            "patience": 0,
            "min_delta": 0.0,  # improvement smaller than this counts as none
        }
    )
    config.evaluate = evaluation()
    config.predict = ConfigDict(
        {
            "input": "",  # file or glob to predict
            "key": "",  # dataset inside the file; "" = the one the config trains on
            "tile": (),  # tile size (D, H, W); () = the whole volume at once
            "overlap": 0.5,  # fraction of a tile shared with the next one
        }
    )
    config.preflight = preflight()
    config.compare = ConfigDict(
        {
            "runs": "",  # workdirs to put side by side: a,b,c
        }
    )
    config.wandb = ConfigDict(
        {
            "project": "",  # Weights & Biases project; "" = off
            "entity": "",  # team or user; "" = the account's default
            "offline": False,  # write locally, upload later with `wandb sync`
            "images_every": 5,  # evaluations between pictures
        }
    )
    return config


def choose(variant: str, known: dict):
    """The entry of a config file's variants that was asked for; ValueError with the list of known
    ones otherwise.
    """
    if variant not in known:
        raise ValueError(
            f"there is no variant {variant!r}; known are "
            f"{', '.join(name or '(none)' for name in known)}"
        )
    return known[variant]


def evaluation() -> ConfigDict:
    """What is scored, with which weights; it may change when a run goes on."""
    return ConfigDict(
        {
            "every": 100,  # updates between validations
            "batch_size": 4,  # examples per evaluation batch
            "max_examples": 0,  # validation examples per evaluation while training; 0 = all
            "weights": "ema",  # ema | raw
            # what evaluate, predict and compare load: best | final | <step>
            "checkpoint": "best",
            "split": "test",  # split that --mode=evaluate scores
            # mean over transformed inputs: none | cube | flips | rotations (flips and small
            # rotations);
            # only what spacing, periodic axes, lines of sight and vectors allow; predict as well
            "tta": "none",
            "figures": True,  # draw slices, spectra, PDF and loss curves
        }
    )


def optimizer() -> ConfigDict:
    """The update rule; `groups` overrides fields for one parameter group, e.g. {"disc":
    {"learning_rate": 1e-4}}.
    """
    return ConfigDict(
        {
            # adamw | adam | sgd | lion | lbfgs (optax names) | broyden (ops/quasi_newton.py)
            "name": "adamw",
            "learning_rate": 1e-3,  # peak rate, reached at the end of the warm-up
            "clip_norm": 1.0,  # clip the group's gradient to this global norm; 0 = off
            # move the group at every k-th step only; its moments, schedule and average wait with it
            "every": 1,
            "delay": 0,  # do not move it during the first steps of a phase
            "schedule": schedule(),
            "adamw": ConfigDict(
                {
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-8,
                    # decays arrays with two or more axes only
                    "weight_decay": 1e-4,
                }
            ),
            "adam": ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8}),
            "sgd": ConfigDict({"momentum": 0.0, "nesterov": False}),
            "lion": ConfigDict({"b1": 0.9, "b2": 0.99, "weight_decay": 1e-3}),  # same mask as adamw
            # the loss has to stay the same from update to update: no minibatches, no points that
            # are
            # drawn anew (broyden bears them)
            "lbfgs": ConfigDict({"memory_size": 10, "max_linesearch_steps": 20}),
            "broyden": ConfigDict({"max_linesearch_steps": 20}),
            # group -> {field: value}; a group that is not named uses the fields above
            "groups": ConfigDict(),
        }
    )


def schedule() -> ConfigDict:
    """Learning-rate multiplier over a phase: linear warm-up, then one of the named shapes."""
    return ConfigDict(
        {
            # constant | cosine | exponential | step | onecycle | cyclic | plateau
            "name": "cosine",
            # rate (t + 1) / w of the full one at step t < w; 0 gives the full rate at step 0
            "warmup_steps": 0,
            # floor, as a fraction of the peak
            "cosine": ConfigDict({"end_factor": 0.01}),
            # rate * decay_rate ** (step / every)
            "exponential": ConfigDict({"decay_rate": 0.5, "every": 1000}),
            # times factor at each boundary
            "step": ConfigDict({"boundaries": (500, 800), "factor": 0.1}),
            "onecycle": ConfigDict(
                {"peak_fraction": 0.3, "start_factor": 0.04, "end_factor": 4e-6}
            ),
            # triangular: start -> peak -> start
            "cyclic": ConfigDict({"period": 1000, "start_factor": 0.1}),
            "plateau": ConfigDict(
                {"patience": 5, "factor": 0.5, "cooldown": 0, "min_factor": 0.01, "rtol": 1e-3}
            ),
        }
    )


def regression() -> ConfigDict:
    """Volume to volume: weighted sum of named losses in normalised units, metrics in physical
    units.
    """
    return ConfigDict(
        {
            "name": "regression",
            "losses": (("mse", 1.0),),  # (name in jaxvol/scores/losses.py, weight), ...
            # a loss is its mean over volumes averaged over cubes of these sides, e.g. (1, 2, 4)
            "resolutions": (1,),
            # names in jaxvol/scores/metrics.py
            "metrics": ("vrmse", "rmse", "mae", "relative_l2", "pearson", "ssim", "psnr"),
            "spectra": True,  # P(k), T(k), r(k) per box (needs cubic voxels)
        }
    )


def data() -> ConfigDict:
    """Fields that every dataset of volumes has; a dataset's own function adds to them."""
    return ConfigDict(
        {
            "num_workers": 2,  # reader threads; the batches do not depend on it
            # stop | skip an example that cannot be read after three tries
            "on_error": "stop",
            "max_skips": 10,  # more skipped examples than this stop the run
            # cube: rotations and reflections the fields allow; transpose: exchanges of axes only;
            # shift: periodic boxes only
            "augment": ("cube", "shift"),
            "fit_examples": 64,  # training examples that normalisers are fitted on
            # chain of (name, arguments), see jaxvol/ops/normalise.py
            "input_normaliser": (("standardise", {}),),
            "target_normaliser": (("standardise", {}),),
        }
    )


def cosmology() -> ConfigDict:
    """Boxes simulated on this machine (jaxvol/data/cosmology.py): evolved matter -> initial
    density, or tracers -> matter.
    """
    config = data()
    config.name = "cosmology"
    # dm2ic: evolved density -> linear delta today | tracers2dm: tracers -> evolved density
    config.pairs = "dm2ic"
    # 2lpt | pm: particle-mesh N-body (extra "nbody"; box_size / grid <= 4 Mpc/h)
    config.evolution = "2lpt"
    # independent realisations per split
    config.boxes = ConfigDict({"train": 200, "val": 20, "test": 40})
    config.grid = 32  # cells, and particles, along an axis
    config.box_size = 128.0  # Mpc/h
    config.redshift = 0.0  # of the evolved density and the tracers
    config.simulation_seed = 0  # of the boxes; config.seed shuffles and augments them
    config.pm_steps = 32  # steps of the particle-mesh run, equal in scale factor
    config.parameters = ConfigDict(
        {  # flat LCDM, Planck 2015
            "omega_m": 0.3075,
            "omega_b": 0.0486,
            "h": 0.6774,
            "n_s": 0.9667,
            "sigma8": 0.8159,
        }
    )
    config.tracers = ConfigDict(
        {
            "nbar": 3e-3,  # mean number density, (h/Mpc)^3
            "bias": 1.5,  # their expected density goes as matter density ** bias
            "redshift_space": True,  # move them by their velocity along the line of sight
            "line_of_sight": 2,  # axis
        }
    )
    # simulated boxes; one that cannot be written falls back to the temporary folder
    config.cache_dir = "~/.cache/jaxvol"
    # tracers2dm: (("log1p", {"floor": 0.0}), ...)
    config.input_normaliser = (("log10", {"floor": 0.03}), ("standardise", {}))
    # tracers2dm: as the input of dm2ic
    config.target_normaliser = (("standardise", {}),)
    return config


def fno() -> ConfigDict:
    """Fourier neural operator; the defaults keep every frequency up to |k| = 8 on each axis."""
    return ConfigDict(
        {
            "name": "fno",
            "width": 20,  # channels of the hidden field
            "layers": 4,  # blocks
            # highest |k| kept along D, H, W; at most half the grid, 0 on an axis of length 1
            "modes": (8, 8, 8),
            # symmetric: k = -m..m | one_sided: k = -m..m-1, the neuraloperator layout of n_modes =
            # 2m
            "window": "symmetric",
            "factorization": "dense",  # of the spectral weights: dense | tucker | cp (TFNO)
            # factorised: parameters as a fraction of the dense tensor's; tucker 1.0 = full rank
            "rank": 0.1,
            "implementation": "auto",  # auto | fft | dft (truncated DFT as matrix products)
            # hidden channels of the lifting MLP / width; 0 = one linear layer
            "lifting_ratio": 2.0,
            # hidden channels of the projection MLP / width; 0 = one linear layer
            "projection_ratio": 2.0,
            # around the spectral convolution: linear (1x1) | identity | soft_gating | none
            "bypass": "linear",
            "channel_mlp_ratio": 0.5,  # hidden channels of each block's MLP / width; 0 = no MLP
            # around that MLP, from the block's input: linear | identity | soft_gating | none
            "channel_mlp_skip": "soft_gating",
            "norm": "none",  # none | instance | group (all channels together)
            "activate_last": False,  # activation in the last block as well
            # input channels j/n: auto (axes that are not periodic) | all | none
            "coordinates": "auto",
            # zeros appended to axes that are not periodic, as a fraction of their length
            "padding": 0.0,
            # recompute each block in the backward pass: less memory on GPU and TPU, none saved on
            # CPU
            "remat": False,
        }
    )


def volumes() -> ConfigDict:
    """The users' own files (jaxvol/data/volumes.py): HDF5, .npy, .npz, Zarr or NIfTI, found by
    globs or by a CSV manifest.
    """

    def files(channels: tuple) -> ConfigDict:
        return ConfigDict(
            {
                "files": "",  # glob for all splits, seen from root; divided by `split`
                # or a glob per split; all empty (target, mask): in the input's files
                "train": "",
                "val": "",
                "test": "",
                "key": "",  # dataset inside the file; "" = its only one
                "channels": channels,  # names, one per channel
                # scalar | vector (channels in threes: d, h, w) | line_of_sight=<axis 0..2>
                "kind": "scalar",
                "unit": "",  # physical unit of the values, for labels
            }
        )

    config = data()
    config.name = "volumes"
    config.augment = ("cube",)
    config.root = ""  # folder that the globs start from; "" = the current one
    # stacked: a file holds many examples [N, ...] | single: a file is one example
    config.layout = "stacked"
    config.ndim = 3  # spatial axes in the files: 3 | 2 (volumes of depth 1)
    # where there is a channel axis: -1 behind the spatial axes | 0 before them
    config.channel_axis = -1
    config.input = files(("input",))
    config.target = files(("target",))
    # > 0 = observed; no glob and no key = no mask
    config.mask = ConfigDict({"files": "", "train": "", "val": "", "test": "", "key": ""})
    config.manifest = ConfigDict(
        {
            # CSV with a header line and one row per file, instead of the globs
            "path": "",
            # its columns with files; target "" = in the input's file
            "input": "input",
            "target": "target",
            # columns with mask files; with the patient, box, ... that must not cross a split
            "mask": "",
            "group": "",
            "split": "",  # column with train, val or test; "" = by fractions
        }
    )
    config.split = ConfigDict(
        {
            "fractions": (
                0.8,
                0.1,
                0.1,
            ),  # train, val, test, where neither globs nor a column say it
            # groups (files where there are none) | examples (only if neighbours do not overlap)
            "over": "groups",
            "seed": 0,  # of the division
        }
    )
    config.spacing = ()  # voxel size (D, H, W); () = the files' own, else 1
    config.unit = ""  # unit of lengths: "Mpc/h", "mm"
    # a volume wraps along this axis (augment may then have "shift")
    config.periodic = (False, False, False)
    return config


def crops() -> ConfigDict:
    """Fields of datasets that draw crops from a box; a crop's inner part lies in its slab, its
    margin may lie in the buffer.
    """
    config = data()
    config.augment = ("cube",)
    config.crop = (32, 32, 32)  # voxels (D, H, W), margin included
    config.margin = (0, 0, 0)  # voxels inside each face that are context only (mask 0)
    # slabs: one per split, along `axis` | boxes: each box in one split (three or more boxes)
    config.split = "slabs"
    config.axis = 0  # along which the slabs are cut
    # train, val, test; of what the buffers leave, or of the boxes
    config.fractions = (0.6, 0.2, 0.2)
    config.split_seed = 0  # of the division of boxes
    # voxels between slabs, at least a crop along `axis`; 0 = one crop
    config.buffer = 0
    config.crops_per_epoch = 256  # random training crops that count as one epoch
    config.periodic = (False, False, False)  # the box wraps along this axis
    config.unit = ""  # unit of lengths: "Mpc/h", "mm"
    return config


def box() -> ConfigDict:
    """Random crops of one large box, or of a few (jaxvol/data/box.py)."""
    config = crops()
    config.name = "box"
    for leaf in ("input", "target"):
        config[leaf] = ConfigDict(
            {
                "path": "",  # file, or glob for several boxes; target "" = the input's
                "key": "",  # dataset inside the file; "" = its only one
                "channels": (leaf,),  # names, one per channel
                # scalar | vector (channels in threes: d, h, w) | line_of_sight=<axis 0..2>
                "kind": "scalar",
                "unit": "",  # physical unit of the values, for labels
            }
        )
    config.mask = ConfigDict({"path": "", "key": ""})  # > 0 = observed; both "" = no mask
    # spatial axes in the files: 3 | 2 (a box of depth 1: axis 1 or 2)
    config.ndim = 3
    # where there is a channel axis: -1 behind the spatial axes | 0 before them
    config.channel_axis = -1
    config.spacing = ()  # voxel size (D, H, W); () = the file's own, else 1
    return config


def galaxies() -> ConfigDict:
    """Density of one random half of a galaxy catalogue -> that of the other half
    (jaxvol/data/galaxies.py), periodic box.
    """
    config = crops()
    config.name = "galaxies"
    # counts (.npz: counts, boxsize) or a Corrfunc catalogue (.ff)
    config.path = ""
    config.grid = 128  # cells along an axis
    config.thinning_fraction = 0.5  # probability that a galaxy goes to the input
    config.thinning_seed = 0  # of the two halves
    config.crop = (16, 32, 32)
    config.periodic = (True, True, True)
    config.unit = "Mpc/h"
    config.input_normaliser = (("log1p", {"floor": 0.0}), ("standardise", {}))
    return config


def pix2pixcc() -> ConfigDict:
    """Pix2PixCC generator; `norm="instance", down_padding="zero", bias_before_norm=True,
    skips="none"` is the published one.
    """
    return ConfigDict(
        {
            "name": "pix2pixcc",
            "width": 16,  # channels at full resolution; doubled by each step down
            # steps down, and up again: convolutions of stride 2; any size of volume comes out as it
            # was
            "downs": 2,
            "blocks": 4,  # residual blocks at the coarsest resolution
            # none | group (8 groups) | instance (forgets the amplitude of its input) | batch
            "norm": "none",
            # none | add: the encoder's features to the decoder's of the same size
            "skips": "add",
            "upsampling": "trilinear",  # trilinear (and a convolution) | transposed (convolution)
            # auto (periodic where all axes wrap, else replicate) | zero | replicate | periodic |
            # reflect
            "padding": "auto",
            "down_padding": "auto",  # the same, of the steps down
            "bias_before_norm": False,  # biases that a norm takes away again
            # recompute each block in the backward pass: less memory on GPU and TPU, none saved on
            # CPU
            "remat": False,
        }
    )


def discriminator() -> ConfigDict:
    """Multi-scale patch discriminator (`config.task.discriminator`); norm="instance", no spectral
    norm is Pix2PixCC's.
    """
    return ConfigDict(
        {
            # discriminators; number s sees the volume average-pooled s times
            "scales": 2,
            # channels of the first convolution; doubled by each further one
            "width": 32,
            "max_width": 256,  # at most
            # one 4^3 convolution each, the last gives the logits; smaller volumes need fewer 2s
            "strides": (2, 2, 2, 1, 1),
            "pad_width": 1,  # voxels added at each face before each convolution
            # auto (periodic where all axes wrap, else zero) | zero | replicate | periodic | reflect
            "padding": "auto",
            # of all convolutions but the first and the last: none | group | instance | batch
            "norm": "instance",
            # divide each kernel by its largest singular value, followed by one power iteration per
            # call
            "spectral_norm": False,
            # zeros beyond the border count in the average-pooling between scales (Pix2PixCC in 3D)
            "count_padding": False,
            "remat": False,  # recompute each convolution in the backward pass
        }
    )


def vit3d() -> ConfigDict:
    """Vision transformer for volumes; `embed`, `head` = "linear" and `position` = "learned" is the
    plain ViT.
    """
    return ConfigDict(
        {
            "name": "vit3d",
            # voxels of a token along D, H, W; they have to divide the volume
            "patch": (4, 4, 4),
            "width": 128,  # features of a token
            "layers": 4,  # blocks
            "heads": 4,  # attention heads
            "head_features": 32,  # features of each head
            "mlp_ratio": 2.0,  # hidden features of each block's MLP / width
            # conv: the grid is halved step by step, with convolutions | linear: patches alone
            "embed": "conv",
            # conv: back by interpolation and convolutions, with the embedding's features | linear:
            # has
            # seams
            "head": "conv",
            # channels of those convolutions on the finest grid, twice as many on each coarser one
            "stem_width": 16,
            "stem_layers": 2,  # their number on each grid
            # relative (in every block) | learned | sincos (added to the tokens) | none
            "position": "relative",
            "position_std": 0.02,  # of a learned table at the start
            # attention within cubes of so many tokens, moved by half of it in every other block; 0
            # =
            # all tokens
            "window": 0,
            "dropout": 0.0,  # of tokens and of both sub-layers, while training
            # auto | matmul (fastest on CPU) | xla | cudnn (NVIDIA GPUs, bf16)
            "attention": "auto",
            # recompute each block in the backward pass: less memory on GPU and TPU, none saved on
            # CPU
            "remat": False,
        }
    )


def adversarial() -> ConfigDict:
    """Volume to volume against a discriminator (jaxvol/tasks/adversarial.py); the generator is
    config.model.

    Parameter groups gen and disc: learning rates, clip norms, update ratio and head start are
    optimizer.groups.<group>.<field>.
    """
    return ConfigDict(
        {
            "name": "adversarial",
            # voxel terms: (name in jaxvol/scores/losses.py, weight), ...; a weight of 0 only
            # reports it
            "losses": (("l1", 1.0),),
            # a voxel loss is its mean over volumes averaged over cubes of these sides, e.g. (1, 2,
            # 4)
            "resolutions": (1,),
            # of the other terms of the generator; one of weight 0 is not computed
            "weights": ConfigDict(
                {"adversarial": 0.2, "feature_matching": 1.0, "correlation": 0.0}
            ),
            "mode": "lsgan",  # lsgan | hinge
            # lsgan: the discriminator's label of real pairs is 1 - this (one-sided)
            "label_smoothing": 0.0,
            # feature matching counts the logits as a layer (Pix2PixCC; pix2pixHD does not)
            "feature_matching_logits": True,
            "correlation": ConfigDict(
                {
                    "kind": "pcc",  # pcc | ccc (concordance: mean and amplitude count as well)
                    # sample | batch: one coefficient over the whole batch, as published; needs
                    # micro_batches=1
                    "scope": "sample",
                    "scales": 1,  # volumes average-pooled 0 ... scales - 1 times
                    # zeros beyond the border count in this pooling (the published 3D code)
                    "count_padding": False,
                }
            ),
            "discriminator": discriminator(),
            # r = this * C / K: the target (r < 1: the input, 1 / r) is shown floor(r) times; 0 =
            # once
            "channel_balance": 0.0,
            "ramp": ConfigDict(
                {  # of the adversarial weight, which is 0 before step `start`
                    "start": 0,
                    "steps": 0,
                }
            ),  # and then grows linearly for so many steps; 0 = at once
            "noise": ConfigDict(
                {  # instance noise on the images that the discriminator sees
                    "std": 0.0,
                    "steps": 0,
                }
            ),  # falls to 0 over so many steps; 0 = stays
            # what the discriminator sees (DiffAugment), the same for real and generated
            "augment": ConfigDict(
                {
                    # by up to this fraction of each side; wraps along periodic axes
                    "translation": 0.0,
                    "intensity": 0.0,  # contrast 1 +- this and brightness +- this
                }
            ),
            "r1": ConfigDict(
                {  # gradient penalty of the discriminator
                    "weight": 0.0,
                    "every": 16,
                }
            ),  # at every k-th step only, k times as strong there
            # names in jaxvol/scores/metrics.py
            "metrics": ("vrmse", "rmse", "mae", "relative_l2", "pearson", "ssim", "psnr"),
            "spectra": True,  # P(k), T(k), r(k) per box (needs cubic voxels)
        }
    )


def preflight() -> ConfigDict:
    """The checks before a fresh training; their limits stand in jaxvol/config/limits.py."""
    return ConfigDict(
        {
            # before a fresh --mode=train; a run that was passed or resumed is not checked again
            "run": True,
            # names of the checks to run, e.g. ("data",); () = all that apply
            "only": (),
            # checks whose FAIL does not stop the training; stays visible in every report
            "waive": (),
            # checks that stop a training that is under way when a cheap reading turns red
            "stop_on": (),
            "baseline": "",  # workdir of an earlier run to compare with; "" = none
            "steps": 40,  # updates of the short runs (overfit, schedule, prediction)
            "examples": 8,  # examples per split that are looked at
            "limits": ConfigDict({check: ConfigDict(metrics) for check, metrics in LIMITS.items()}),
        }
    )


def unet() -> ConfigDict:
    """U-Net on images, volumes of depth 1; widths=(64, 128, 256, 512), norm="batch" is the
    published one of the fringe images.
    """
    return ConfigDict(
        {
            "name": "unet",
            "widths": (16, 32, 64),  # channels per level, each on half the grid of the one before
            # group (8 groups) | instance (forgets the amplitude of its input) | batch | none
            "norm": "group",
        }
    )


def vnet() -> ConfigDict:
    """V-Net; `layout="original", head="norm_relu", fit="crop", norm="batch", bias_before_norm=True`
    is the published 3D U-Net.
    """
    return ConfigDict(
        {
            "name": "vnet",
            # residual: pre-activation blocks, sums with the skips | original: one convolution per
            # level
            "layout": "residual",
            # channels per level; residual: the first at full resolution, original: at half of it
            "widths": (16, 32, 64, 80),
            # group (8 groups) | instance (forgets the amplitude of its input) | batch | none
            "norm": "group",
            # auto (periodic where all axes wrap, else replicate) | zero | replicate | periodic |
            # reflect
            "padding": "auto",
            "head": "linear",  # linear | norm_relu (as published: no output below 0)
            # up-sampled features to the skip's grid: resize | crop (drops the first voxel, as
            # published)
            "fit": "resize",
            "bias_before_norm": False,  # biases that a norm takes away again
            # recompute each block in the backward pass: less memory on GPU and TPU, none saved on
            # CPU
            "remat": False,
        }
    )
