"""A training from start to finish: what comes before its first stage and after its last one."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np

import dataset
from brains import cli, devices, loop, stream, weights
from brains.backend import keras, tf
from brains.cli import UserError, note
from brains.config import OF_SLICES, PRESETS, STAGES
from brains.names import hold_out, owners
from brains.surprise import views_of
from brains.usual import measure_usual

FEW_STEPS = 500  # of the VQ-VAE: on the slices of ten people, 90 taught it little and 1,200 much


@dataclasses.dataclass(frozen=True)
class Job:
    """What the stages of a training share.

    `images` (N, 128, 128, 1) float32 are a Store. So are their `masks` (N, 128, 128) uint8, which only a segmenter has;
    they and their digest are None for others. `cases` (N,) str are their people and
    `levels` (N,) int32 their places in the head. `seen` are the
    indices of those to learn from, and `unseen` of those of the held-out cases.
    """

    preset: str
    images: stream.Store
    cases: np.ndarray
    levels: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray
    held_out_cases: list
    digest_of_slices: str
    validation_share: float
    seed: int
    precision: str
    resume: bool
    checkpoints: Path  # shared by all workers
    scratch: Path  # this worker's own
    folder: Path  # of the slices
    people: Path | None = None  # the table of them that is asked for
    masks: stream.Store | None = None
    digest_of_masks: str | None = None

    def training(self, preset, stage, model, optimizer, *, monitor=None, others=(), follows=(), may_change=()):
        """Return the Training of a stage, taken up from its checkpoint if that is wanted and there is one.

        A resumed stage must have the settings of the interrupted one, but for those that `may_change`. If the variables
        that it `follows` have changed, it starts afresh. For the rest see `loop.Training`.
        """
        name, network = STAGES[stage]
        content = dataclasses.asdict(preset)
        settings = {"preset": self.preset, "digest": self.digest_of_slices, "seed": self.seed}
        if self.masks is not None:
            settings["digest of masks"] = self.digest_of_masks
        settings |= {"precision": self.precision, "validation_share": self.validation_share}
        settings |= {key: value for key, value in content.items() if not isinstance(value, dict)}
        settings |= content[network] | content[stage]
        settings = {key: value for key, value in settings.items() if key not in may_change}
        if follows:
            values = b"".join(np.asarray(variable).tobytes() for variable in follows)
            settings["follows"] = hashlib.sha256(values).hexdigest()
        settings = json.loads(json.dumps(settings))  # as a checkpoint gives them back
        training = loop.Training(
            name,
            model,
            optimizer,
            self.checkpoints / f"{stage}.npz",
            settings,
            monitor=monitor,
            others=others,
            schedule=getattr(preset, stage),
            seed=self.seed,
        )
        if self.resume:
            training.restore()
        if stage == "vqvae" and not training.history and devices.writes():
            count = len(self.seen if stage in preset.held_out_from else self.images)
            steps = training.schedule.epochs * -(-count // training.schedule.batch_size)
            if steps < FEW_STEPS:
                note(
                    f"note: {count:,} slices make {steps} training steps of the VQ-VAE, but it needs {FEW_STEPS} steps "
                    "or more; lower --vqvae-batch-size and raise --vqvae-epochs"
                )
        return training


@contextlib.contextmanager
def start(
    preset, models, out, data=None, url=None, *, validation_share, seed, resume, precision, deterministic, people=None
):
    """Give the Job of a training that will write the set of weights `models`, and figures to the folder `out`.

    It is given in the scope of the training's devices. `precision` is a Keras dtype policy, or "auto". What goes wrong
    on the way is raised as UserError.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, labelled = devices.choose_strategy(), hasattr(PRESETS[preset], "segmenter")
    try:
        with strategy.scope(), contextlib.ExitStack() as stack:
            if devices.writes():
                cli.make_folder(out)
                weights.make_staging(models).rmdir()  # found unfit now rather than after an hour
            else:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            checkpoints = Path(os.path.abspath(models) + ".checkpoint")
            scratch = checkpoints if devices.writes() else checkpoints / f"worker_{devices.worker()}"
            cli.make_folder(scratch)
            stack.callback(_remove_if_empty, scratch)
            if strategy.cluster_resolver:  # the first worker fetches or cuts slices for those that share its folder
                for split in ("train", *(["seg_train"] if labelled else [])) if devices.writes() else ():
                    dataset.find_split(split, data, url)
                devices.of_all(strategy, 0.0)
            slices = stream.open_split("train", scratch, data, url)
            masks, masks_digest = stream.open_masks("train", scratch, data, url) if labelled else (None, None)
            cases, levels = owners(slices.names)
            held_out_cases = hold_out(cases, validation_share, 0)  # whatever the seed, so that trainings compare
            held_out = np.isin(cases, held_out_cases)
            first = checkpoints / f"{next(stage for stage in STAGES if hasattr(PRESETS[preset], stage))}.npz"
            check_resume(models, first, resume)
            precision = _choose_precision(strategy, precision, deterministic, first, resume)
            yield Job(
                preset=preset,
                images=slices.images,
                masks=masks,
                cases=cases,
                levels=levels,
                seen=np.flatnonzero(~held_out),
                unseen=np.flatnonzero(held_out),
                held_out_cases=held_out_cases,
                digest_of_slices=slices.digest,
                digest_of_masks=masks_digest,
                validation_share=validation_share,
                seed=seed,
                precision=precision,
                resume=resume,
                checkpoints=checkpoints,
                scratch=scratch,
                folder=dataset.find_split("train", data, url),
                people=people,
            )
    except tf.errors.ResourceExhaustedError as error:
        raise UserError("out of memory; lower the batch size") from error
    except tf.errors.OpError as error:
        if strategy.cluster_resolver is None:
            raise
        message = re.sub(r"{{.*?}}", "", error.message).strip().splitlines()[0]
        raise UserError(f"the workers no longer reach each other ({message:.200}); start all with --resume") from error


def _remove_if_empty(folder):
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_resume(models, checkpoint, resume):
    """Tell the user what becomes of an interrupted training. Raises UserError if --resume finds a finished one."""
    if resume and not checkpoint.exists():
        if weights.is_set(models):
            raise UserError(
                f"{models}: holds finished weights and no interrupted training; without --resume, a new training "
                "replaces them"
            )
        note("no interrupted training to continue; starting afresh")
    elif checkpoint.exists() and not resume:
        note("--resume would continue an interrupted training; its checkpoint is lost once the first epoch is finished")


def _choose_precision(strategy, asked, deterministic, checkpoint, resume):
    """Set the dtype policy, and say it and the devices: as asked, or that of a checkpoint, or the faster one.

    Timings vary, so a deterministic training always uses float32. What is slow on one worker makes all wait.
    """
    if asked == "auto" and resume and checkpoint.exists():
        asked = loop.load_checkpoint(checkpoint)[0]["settings"]["precision"]
    elif asked == "auto":
        asked = "float32" if deterministic else devices.choose_precision()
    policy = "float32" if np.any(devices.of_all(strategy, asked == "float32")) else asked
    keras.config.set_dtype_policy(policy)
    replicas = strategy.num_replicas_in_sync
    several = f"; {replicas} replicas" if replicas > 1 else ""
    print(f"device: {devices.describe()}; precision: {policy}{several}", flush=True)
    return policy


def finish(job, preset, models, trainings, mean, variance):
    """Write the set of weights of a finished Job and delete its checkpoints; returns config.json.

    `trainings` are the Trainings by stage. Only the worker that writes does so; the others return None.
    """
    networks = {stage: training.model for stage, training in trainings.items() if stage in weights.TRAINED_ON}
    usual = None
    if job.preset in OF_SLICES:  # on all workers, since networks are built by all or none
        print("measuring what is usual in held-out slices", flush=True)
        used = [weights.as_used(networks[part]) for part in ("vqvae", "pixelcnn")]
        where = (job.images, job.levels, job.seen, job.unseen)
        usual = measure_usual(*used, views_of(preset.mirrored), *where, job.seed)
    if tf.distribute.get_strategy().cluster_resolver:
        devices.of_all(tf.distribute.get_strategy(), 0.0)  # no worker still reads what is deleted here
    if not devices.writes():
        return None
    content = {"preset": job.preset}
    for stage, training in trainings.items():
        epochs = {"epochs": len(training.history), "best_epoch": training.best_epoch}
        content[stage] = epochs | training.about | {"history": training.history}
    if (prior := weights.prior_of(trainings)) in trainings:
        content[prior]["temperature"] = preset.temperature
    if "critic" in trainings:
        content["critic"]["candidates"] = preset.candidates
    content["data"] = {"digest": job.digest_of_slices, "genuine": dataset.is_genuine("train", job.digest_of_slices)}
    if job.masks is not None:
        content["data"]["digest_of_masks"] = job.digest_of_masks
    content["data"] |= {"slices": len(job.images), "variance": variance, "held_out_cases": job.held_out_cases}
    content["data"] |= {"held_out_from": preset.held_out_from, "mirrored": preset.mirrored}
    content |= {"seed": job.seed, "precision": job.precision, "recipe": dataclasses.asdict(preset)}
    content["versions"] = {"python": platform.python_version()}
    content["versions"] |= {name: version(name) for name in ("tensorflow", "keras", "numpy")}
    weights.save_set(models, networks, content, mean.astype(np.float32), usual)
    shutil.rmtree(job.checkpoints)
    print(f"weights in {models}")
    return content
