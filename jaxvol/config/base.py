"""Every field of every config, with its default and its meaning.

An experiment file calls `common()`, fills its blocks with `model("fno")`, `task("regression")` and
`data("volumes")`, overrides what it needs and returns the ConfigDict.  The fields of a component
are stated in its own file, as `fields()`.  Choices are made by name; a block of alternatives
(`optimizer.schedule`) lists all of them, and only the chosen one is read.
"""

from ml_collections import ConfigDict

from jaxvol.config.limits import limits
from jaxvol.runtime import modules

# what can be chosen by name
RULES = ("adamw", "adam", "sgd", "lion", "lbfgs", "broyden")  # jaxvol/training/optim.py
SCHEDULES = ("constant", "cosine", "exponential", "step", "onecycle", "cyclic", "plateau")
TRANSFORMS = ("none", "cube", "flips", "rotations")  # jaxvol/evaluation/tta.py


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
    # further sources: ((workdir, checkpoint, raw | ema, ((group, group), ...)), ...)
    config.init_sources = ()
    # take what fits where the source's groups of weights have other shapes, instead of refusing
    config.init_partial = False
    # ((name, steps, {"optimizer.learning_rate": 1e-4, ...}), ...); () = one phase; a fourth entry
    # {"start": "ema", "from": "best"} says what is taken over (jaxvol/config/phases.py)
    config.phases = ()
    config.log_every = 10  # updates between rows of metrics.csv
    # say so when no batch came for so long; after twice that, save and exit 75; 0 = wait for ever
    config.stall_minutes = 10.0
    # write a profiler trace of updates 10-20 to <workdir>/profile
    config.profile = False
    machines(config)
    config.optimizer = optimizer()
    selection(config)
    config.evaluate = evaluation()
    config.preflight = preflight()
    outputs(config)
    return config


def machines(config: ConfigDict) -> None:
    """Where a run computes; it may change when a run goes on."""
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


def selection(config: ConfigDict) -> None:
    """Which weights are kept, and when a run ends early."""
    config.checkpoint = ConfigDict(
        {
            "every": 100,  # updates between saves
            "keep": 2,  # newest checkpoints kept, besides best and final
            # validation metric that decides "best" and early stopping, in the direction it states
            "best_metric": "vrmse",
        }
    )
    config.early_stopping = ConfigDict(
        {
            # evaluations without improvement before the run ends; 0 = never
            "patience": 0,
            "min_delta": 0.0,  # improvement smaller than this counts as none
        }
    )


def outputs(config: ConfigDict) -> None:
    """What other modes read, and where else a run is reported; nothing of it shapes a run."""
    config.predict = ConfigDict(
        {
            "input": "",  # file or glob to predict
            "key": "",  # dataset inside the file; "" = the one the config trains on
            "tile": (),  # tile size (D, H, W); () = the whole volume at once
            "overlap": 0.5,  # fraction of a tile shared with the next one
        }
    )
    config.compare = ConfigDict(
        {
            "runs": "",  # workdirs to put side by side: a,b,c
        }
    )
    config.sweep = ConfigDict(
        {
            "jobs": 1,  # points of the config file's sweep() that are trained at once
            # print one command per point, for a scheduler, and train nothing
            "print_only": False,
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


def model(name: str) -> ConfigDict:
    """Fields of the network `jaxvol/models/<name>.py`, or of the user's own module."""
    return fields("models", name)


def task(name: str) -> ConfigDict:
    """Fields of what is learned, `jaxvol/tasks/<name>.py`, or of the user's own module."""
    return fields("tasks", name)


def data(name: str) -> ConfigDict:
    """Fields of the data set `jaxvol/data/<name>.py`, or of the user's own module."""
    return fields("data", name)


def fields(room: str, name: str) -> ConfigDict:
    """What `fields()` of a component says; the block always has the component's name."""
    config = ConfigDict(modules.module(room, name).fields())
    config.name = name
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
            # rotations); only what spacing, periodic axes, lines of sight and vectors allow;
            # predict as well
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
                    "b1": 0.9,  # decay of the average of gradients
                    "b2": 0.999,  # decay of the average of their squares
                    "eps": 1e-8,  # added to the root of the latter
                    # decays arrays with two or more axes only
                    "weight_decay": 1e-4,
                }
            ),
            # as in adamw
            "adam": ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8}),
            # as in optax.sgd; momentum 0 = none
            "sgd": ConfigDict({"momentum": 0.0, "nesterov": False}),
            "lion": ConfigDict({"b1": 0.9, "b2": 0.99, "weight_decay": 1e-3}),  # same mask as adamw
            # the loss has to stay the same from update to update: no minibatches, no points that
            # are drawn anew (broyden bears them)
            "lbfgs": ConfigDict({"memory_size": 10, "max_linesearch_steps": 20}),
            # trial steps of its line search
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
            # of what the shape is stretched over, and what a phase goes on with: phase | run
            "span": "phase",
            # rate (t + 1) / w of the full one at step t < w; 0 gives the full rate at step 0
            "warmup_steps": 0,
            # floor, as a fraction of the peak
            "cosine": ConfigDict({"end_factor": 0.01}),
            # rate * decay_rate ** (step / every)
            "exponential": ConfigDict({"decay_rate": 0.5, "every": 1000}),
            # times factor at each boundary
            "step": ConfigDict({"boundaries": (500, 800), "factor": 0.1}),
            # up from start_factor in peak_fraction of the steps, then down to end_factor
            "onecycle": ConfigDict(
                {"peak_fraction": 0.3, "start_factor": 0.04, "end_factor": 4e-6}
            ),
            # triangular: start -> peak -> start
            "cyclic": ConfigDict({"period": 1000, "start_factor": 0.1}),
            # times factor after `patience` evaluations that were not better by rtol; then rests
            # for `cooldown` evaluations; not below min_factor
            "plateau": ConfigDict(
                {"patience": 5, "factor": 0.5, "cooldown": 0, "min_factor": 0.01, "rtol": 1e-3}
            ),
        }
    )


def preflight() -> ConfigDict:
    """The checks before a fresh training; their limits are LIMITS of each check's file."""
    return ConfigDict(
        {
            # before a fresh --mode=train; a run that was passed or resumed is not checked again
            "run": True,
            # names of the checks to run, e.g. ("data",); () = all that apply
            "only": (),
            # your own checks, as module paths, e.g. ("mylab.symmetry",); see diagnostics/engine.py
            "checks": (),
            # checks whose FAIL does not stop the training; stays visible in every report
            "waive": (),
            # checks that stop a training that is under way when a cheap reading turns red
            "stop_on": (),
            "baseline": "",  # workdir of an earlier run to compare with; "" = none
            "steps": 40,  # updates of the short runs (overfit, schedule, prediction)
            "examples": 8,  # examples per split that are looked at
            "limits": limits(),
        }
    )
