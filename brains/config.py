"""Paths, sizes, and the typed configuration of networks and presets. It imports nothing of this project.

A network is built from a frozen dataclass (`VQVAEConfig`, ...) and nothing else. config.json keeps that dataclass, and
the name of the network's class, beside the weights. A preset (`Faithful`, `Sharp`) says which networks are trained and
how.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATASET = ROOT / "dataset"  # where slices are fetched, extracted or cut to
MODELS = ROOT / "trained_models"
TOP_FOLDER = "keras_png_slices_data"
PARTICIPANTS = "participants.tsv"  # BIDS's table of people, beside the slices of own scans
SPLITS = ("train", "validate", "test")
MASKS = ("seg_train", "seg_validate", "seg_test")  # folders with the tissue masks of the splits
TISSUES = ("background", "CSF", "grey matter", "white matter")  # by label
SIZE = 128  # pixels a side, as the networks see a slice
LEVELS = 32  # slices of a head in the course's data
COMMITMENT_COST = 0.25
CODEBOOK_INITS = ("uniform", "kmeans")  # how the faithful codebook can start
CACHE = 2**30  # bytes of slices that are kept in memory; more go to a file

STAGES = {  # of a training: the name of each, and the field of a preset with the network that it trains
    "vqvae": ("VQ-VAE", "vqvae_network"),
    "adversarial": ("adversarial", "discriminator_network"),
    "pixelcnn": ("PixelCNN", "prior_network"),
    "flow": ("flow", "flow_network"),
    "critic": ("critic", "critic_network"),
    "segmenter": ("segmenter", "segmenter_network"),
}
FIGURES = {  # names of the figures that the scripts write
    "reconstruct": "reconstructions.png",
    "generate": "generations.png",
    "tissue": "tissue.png",
    "restore": "restorations.png",
    "ssim": "ssim_plot.png",
    "nearest": "nearest.png",
    "distances": "nearest_distances.png",
    "temperatures": "temperatures.png",
    "utility": "utility.png",
    "anomalies": "anomalies.png",
}
FIGURES |= {stage: f"{stage}_training_plot.png" for stage in STAGES}


@dataclass(frozen=True)
class VQVAEConfig:
    """The faithful VQ-VAE, built by `modules.build_vqvae`. `filters` run from fine to coarse."""

    latent_dim: int = 16
    num_embeddings: int = 128
    filters: tuple = (32, 32, 64, 64)
    bottleneck: int = 128
    size: int = SIZE
    commitment_cost: float = COMMITMENT_COST


@dataclass(frozen=True)
class SharpVQVAEConfig:
    """The sharp VQ-VAE, built by `brains.sharp.build_vqvae`.

    `decoder_filters` run from coarse to fine. Encoder and decoder have `residual_blocks` at the size of the codes; the
    decoder also has `fine_blocks` at each later size but the last. `codebook_decay` is that of the moving averages.
    """

    latent_dim: int = 32
    num_embeddings: int = 1024
    filters: tuple = (48, 96, 128)
    decoder_filters: tuple = (96, 48, 24)
    bottleneck: int = 128
    residual_blocks: int = 3
    fine_blocks: int = 1
    codebook_decay: float = 0.99
    size: int = SIZE
    commitment_cost: float = COMMITMENT_COST


@dataclass(frozen=True)
class HeadVQVAEConfig:
    """The VQ-VAE of whole heads, built by `brains.heads.build_vqvae`.

    A head of `levels` slices is cut into slabs of `slab` neighbouring slices. Encoder and decoder also see, or paint,
    `margin` slices on either side of a slab. A cell of its grid has `depth` codes, each from a codebook of its own. The
    other sizes are as in a SharpVQVAEConfig.
    """

    levels: int = LEVELS
    slab: int = 4
    margin: int = 1
    depth: int = 8
    latent_dim: int = 32
    num_embeddings: int = 1024
    filters: tuple = (64, 96, 128)
    decoder_filters: tuple = (96, 64, 32)
    bottleneck: int = 128
    residual_blocks: int = 3
    fine_blocks: int = 1
    codebook_decay: float = 0.99
    size: int = SIZE
    commitment_cost: float = COMMITMENT_COST


@dataclass(frozen=True)
class PixelCNNConfig:
    """The faithful prior, `modules.PixelCNN`, over grids (h, w) of codes."""

    grid: tuple = (8, 8)
    num_embeddings: int = 128
    filters: int = 128
    residual_blocks: int = 2
    masked_layers: int = 2


@dataclass(frozen=True)
class GatedPixelCNNConfig:
    """The sharp prior, `brains.sharp.GatedPixelCNN`, over grids (h, w) of codes of slices of so many levels."""

    grid: tuple = (16, 16)
    num_embeddings: int = 1024
    levels: int = LEVELS
    filters: int = 128
    gated_layers: int = 5
    kernel_size: int = 5
    dropout: float = 0.2


@dataclass(frozen=True)
class HeadFlowConfig:
    """The prior of whole heads, `brains.flow.HeadFlow`, over grids (S, h, w) of latents.

    `filters` and `local_blocks`, before and after the others, are of the convolutions. `width`, `blocks` and `heads`
    are of the transformer between them.
    """

    grid: tuple = (8, 16, 16)
    latent_dim: int = 32
    traits: int = 8
    filters: int = 96
    local_blocks: int = 1
    width: int = 256
    blocks: int = 6
    heads: int = 8


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminator of the sharp VQ-VAE, `brains.sharp.Discriminator`."""

    filters: tuple = (32, 64, 128)


@dataclass(frozen=True)
class CriticConfig:
    """The network that chooses among samples, `brains.sharp.Critic`."""

    filters: tuple = (32, 64, 128, 128)
    dropout: float = 0.3


@dataclass(frozen=True)
class UNetConfig:
    """The segmenter, `brains.tissue.UNet`. `filters` run from fine to coarse."""

    filters: tuple = (16, 32, 64, 96)


@dataclass(frozen=True)
class Schedule:
    """How long a stage is trained, on how many items a step, and Adam's learning rate."""

    epochs: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Faithful:
    """The small models of the course: a VQ-VAE of 8x8 codes and a PixelCNN."""

    vqvae_network: VQVAEConfig = VQVAEConfig()
    prior_network: PixelCNNConfig = PixelCNNConfig()
    vqvae: Schedule = Schedule(epochs=30, batch_size=128, learning_rate=1e-3)
    pixelcnn: Schedule = Schedule(epochs=30, batch_size=128, learning_rate=3e-4)
    codebook_init: str = "kmeans"  # the centres of latents after the warm-up, or "uniform": the tutorials' way
    warm_up_epochs: int = 1  # of the VQ-VAE without quantization, before k-means
    codebook_learning_rate: float = 5e-3  # after k-means
    temperature: float = 1.0  # of sampling
    held_out_from: tuple = ("pixelcnn",)  # the stages that do not see the held-out cases
    mirrored: bool = False  # whether mirror images of slices are learned too


@dataclass(frozen=True)
class Sharp:
    """Larger models for slices with texture: 16x16 codes, a discriminator, a gated prior and a critic."""

    vqvae_network: SharpVQVAEConfig = SharpVQVAEConfig()
    discriminator_network: DiscriminatorConfig = DiscriminatorConfig()
    prior_network: GatedPixelCNNConfig = GatedPixelCNNConfig()
    critic_network: CriticConfig = CriticConfig()
    vqvae: Schedule = Schedule(epochs=12, batch_size=32, learning_rate=1e-3)
    adversarial: Schedule = Schedule(epochs=10, batch_size=32, learning_rate=2e-4)
    pixelcnn: Schedule = Schedule(epochs=18, batch_size=32, learning_rate=1.5e-3)
    critic: Schedule = Schedule(epochs=5, batch_size=32, learning_rate=5e-4)
    ssim_weight: float = 0.5  # of 1 - SSIM in the loss of the first stage
    discriminator_learning_rate: float = 1e-3
    adversarial_ssim_weight: float = 0.3  # this and the next three weigh the losses of the adversarial stage
    adversarial_weight: float = 0.3
    feature_weight: float = 2.0
    penalty_weight: float = 0.2  # low, for the discriminator sees an enlarged detail
    temperature: float = 1.0  # of sampling
    candidates: int = 8  # samples a slice that the critic chooses from
    held_out_from: tuple = ("vqvae", "adversarial", "pixelcnn", "critic")
    mirrored: bool = True


@dataclass(frozen=True)
class Head:
    """Models of whole heads: slabs of slices with residual codes, two discriminators, and a flow with age and sex."""

    vqvae_network: HeadVQVAEConfig = HeadVQVAEConfig()
    discriminator_network: DiscriminatorConfig = DiscriminatorConfig()
    flow_network: HeadFlowConfig = HeadFlowConfig()
    vqvae: Schedule = Schedule(epochs=36, batch_size=2, learning_rate=1e-3)
    adversarial: Schedule = Schedule(epochs=12, batch_size=2, learning_rate=2e-4)
    flow: Schedule = Schedule(epochs=120, batch_size=4, learning_rate=7e-4)
    ssim_weight: float = 0.5
    discriminator_learning_rate: float = 1e-3
    adversarial_ssim_weight: float = 0.3
    adversarial_weight: float = 0.3
    feature_weight: float = 2.0
    penalty_weight: float = 0.2
    temperature: float = 1.0
    held_out_from: tuple = ("vqvae", "adversarial", "flow")
    mirrored: bool = True


@dataclass(frozen=True)
class Tissue:
    """A U-Net that tells the tissue of each pixel. It generates nothing."""

    segmenter_network: UNetConfig = UNetConfig()
    segmenter: Schedule = Schedule(epochs=5, batch_size=32, learning_rate=2e-3)
    held_out_from: tuple = ("segmenter",)
    mirrored: bool = True


PRESETS = {"faithful": Faithful(), "sharp": Sharp(), "head": Head(), "tissue": Tissue()}
OF_SLICES = ("faithful", "sharp")  # those that generate slices
GENERATIVE = (*OF_SLICES, "head")
