"""The miniature models as stock classes: the same parts as Stable Diffusion, small enough to train on two cores."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from selfsame.diffusion.schedule import scaled_linear_alphas_cumprod
from selfsame.weights.mannequin import checked

LATENT_CHANNELS = 16
CONTEXT_DIM = 128
MAX_TOKENS = 48

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,  # sigma up to 66: at Stable Diffusion's 14.6 these latents still show through, and the first noise would choose the person
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


def new_vae() -> AutoencoderKL:
    """128 px -> 16 x 16 x 16 latents; no attention, so any multiple of 8 works."""
    config: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 96),
        "layers_per_block": 1,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 1,
        "sample_size": 128,
        "scaling_factor": 1.0,
        "force_upcast": False,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(**config)


def new_unet() -> UNet2DConditionModel:
    """The base U-Net: attention at 16 x 16 and 8 x 8, heads of 32."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (96, 96, 128),
        "layers_per_block": 1,
        "attention_head_dim": (3, 3, 4),  # diffusers' name for the number of heads
        "cross_attention_dim": CONTEXT_DIM,
        "norm_num_groups": 32,
    }
    return UNet2DConditionModel(**config)


def new_text_encoder(vocab_size: int, bos: int, eos: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=CONTEXT_DIM,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=CONTEXT_DIM,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def new_image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=128,
            patch_size=16,
            projection_dim=CONTEXT_DIM,
        )
    )


def alphas_cumprod() -> Tensor:
    """The miniature's schedule. t float32."""
    return scaled_linear_alphas_cumprod(SCHEDULE["num_train_timesteps"], SCHEDULE["beta_start"], SCHEDULE["beta_end"])


def new_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M with trailing timesteps, what the miniature samples with by default."""
    return DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing", algorithm_type="dpmsolver++", solver_order=2)


def load_image_encoder() -> CLIPVisionModelWithProjection:
    """The shipped CLIP image tower: pixels b 3 128 128 in [-1, 1]; no picture is zeros."""
    tower = new_image_encoder()
    values = load_file(checked("clip_image.safetensors"))
    tower.load_state_dict({k.removeprefix("image."): v.float() for k, v in values.items() if k.startswith("image.")})
    return tower.eval().requires_grad_(False)


def load_text_projection() -> nn.Linear:
    """The shipped projection of pooled text states into the space of image features."""
    values = load_file(checked("clip_image.safetensors"))
    made = nn.Linear(CONTEXT_DIM, CONTEXT_DIM, bias=False)
    made.load_state_dict({k.removeprefix("text_projection."): v.float() for k, v in values.items() if k.startswith("text_projection.")})
    return made.requires_grad_(False)


@torch.no_grad()
def image_states(tower: Any, pixels: Tensor) -> Tensor:
    """CLIP's second-to-last states of pixels b 3 h w, b t c: what MimicBrush makes image tokens of."""
    return tower(pixels.to(tower.device), output_hidden_states=True).hidden_states[-2]
