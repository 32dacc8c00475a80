"""Recipe of the few-step LoRA: the base paints in four steps and unguided what it paints in sixteen guided ones.

Progressive distillation (Salimans and Ho, arXiv:2202.00512, Sec. 3) of a guided model (Meng et al., arXiv:2210.03142), four of the teacher's steps to each of
the student's, learned by a LoRA as LCM-LoRA is (arXiv:2311.05556): InstantID and learned words stand upon it unchanged. The teacher paints from noise, so
that the student learns where it will be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from selfsame.data.tables import open_table
from selfsame.diffusion.sampling import guided_together, sample
from selfsame.diffusion.schedule import denoised_of
from selfsame.methods.instantid.method import InstantID, predict
from selfsame.methods.instantid.objective import InstantIDTrainer
from selfsame.methods.instantid.samples import InstantIDSamples, PhotosOf, lend_faces
from selfsame.models.mannequin import SCHEDULE, alphas_cumprod
from selfsame.models.text import encode_prompts
from selfsame.perception.embedders import FaceEncoder
from selfsame.recipes import base as base_recipe
from selfsame.recipes.caches import as_tensor, drawings_of, faces_of, text_of
from selfsame.recipes.common import Options, Trained, epoch_rows, finish, generator_at, save_grid, torch_generator
from selfsame.recipes.faces import face_rows
from selfsame.recipes.instantid import PROMPTS
from selfsame.recipes.resident import Resident
from selfsame.studio.crowd import Shown
from selfsame.studio.painting import Row, scheduler_of
from selfsame.studio.request import MANNEQUIN, Request
from selfsame.studio.studio import TURBO, Studio
from selfsame.training.run import Batch, Loss, Run
from selfsame.values.conditioning import Conditioning
from selfsame.weights.mannequin import checked, checked_folder, load_into, load_text, load_unet

RANK, LAYERS = 2, ["to_q", "to_v", "to_out.0"]  # all that the package's limit leaves room for
LEGS = MANNEQUIN.turbo.num_steps
FACE_SHARE = 0.5  # of the steps learn with InstantID upon the base, the others without


class Hurried(nn.Module):
    """The base with a LoRA, which alone learns, and InstantID attached: it acts in rows that bring a face."""

    def __init__(self, unet: nn.Module, method: InstantID) -> None:
        super().__init__()
        self.unet, self.with_faces = unet, InstantIDTrainer(method, unet)  # type: ignore[arg-type]
        self.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights=True, target_modules=LAYERS))  # type: ignore[operator]

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, embedding: Tensor | None = None, kps_image: Tensor | None = None) -> Tensor:
        """noisy b c h w (VP), timesteps b, text b t c; embedding b k 512 and kps_image b 3 H W in [0, 1] of rows with faces."""
        if embedding is None or kps_image is None:
            return predict(self.unet, None, noisy, timesteps, Conditioning(text))  # type: ignore[arg-type]
        return self.with_faces(noisy, timesteps, text, embedding, kps_image)


def leg_target(x: Tensor, later: Tensor, abar: Tensor, abar_later: Tensor) -> Tensor:
    """The clean latents that one DDIM step has to assume to come from `x` to `later` (arXiv:2202.00512, Appendix G).

    Args:
        x, later: b c h w, VP scaling.
        abar, abar_later: the schedule there, broadcastable.
    """
    share = ((1 - abar_later) / (1 - abar)).sqrt()
    return (later - share * x) / (abar_later.sqrt() - share * abar.sqrt())


def turbo(options: Options) -> Trained:
    """LoRA on the attention of the base, beside InstantID as it ships."""
    run = options.run(
        Run(
            folder=options.folder("turbo"), max_steps=400, batch_size=8, learning_rate=1e-3, warmup_steps=10, ema_decay=0.97, log_every=5, look_every=100,
            seed=47,
        ),
        after=("base", "encoder.safetensors", "instantid"), graphs=False,
    )  # fmt: skip
    (tokenizer, text_encoder), encoder = load_text(), load_into(FaceEncoder(), "encoder.safetensors")
    table, held = open_table(options.data, "train"), open_table(options.data, "validation")
    cache, abar, rows = options.runs / "cache", alphas_cumprod(), face_rows(table)
    text = Resident(text_of(tokenizer, text_encoder, table, cache, "train"))
    faces = Resident(faces_of(encoder, table, rows, cache, "train"))
    drawings = Resident(drawings_of(table, rows, table.kps.__getitem__, cache, "train"))
    photos = PhotosOf(table.people, rows)
    empty = encode_prompts(tokenizer, text_encoder, [""]).encoder_hidden_states[0]

    unet = load_unet()
    hurried = Hurried(unet, InstantID.from_pretrained(checked_folder("instantid"), unet))
    if run.warm:
        installed = {k.removeprefix("unet."): v.float() for k, v in load_file(checked(TURBO)).items()}
        set_peft_model_state_dict(hurried.unet, installed)  # type: ignore[arg-type]
    size = int(hurried.unet.config.in_channels), MANNEQUIN.side // 8, MANNEQUIN.side // 8  # type: ignore[union-attr, arg-type]
    own = scheduler_of(SCHEDULE, MANNEQUIN.turbo.solver, timestep_spacing="trailing")
    own.set_timesteps(LEGS)
    at = own.timesteps.long()
    here, there = abar[at], torch.cat([abar[at[1:]], torch.ones(1)])

    def batch_at(step: int) -> Batch:
        rng = generator_at(run.seed, step)
        has_faces = rng.random() < FACE_SHARE
        among = photos.rows if has_faces else np.arange(len(table))
        chosen = np.sort(among[epoch_rows(len(among), run.batch_size, run.seed, step)])
        batch: Batch = {"text": text[chosen]}
        batch["start"] = torch.randn(len(chosen), *size, generator=torch_generator(rng)).to(batch["text"])
        if has_faces:
            batch["embedding"] = lend_faces(faces, photos, chosen, InstantIDSamples(), rng)
            batch["kps_image"] = drawings[chosen].permute(0, 3, 1, 2) / 255
        return batch

    @torch.no_grad()
    def way(batch: Batch) -> Tensor:
        """Where the teacher is when the student steps, LEGS + 1 b c h w."""
        shown = {k: v for k, v in batch.items() if k not in ("text", "start")}
        nobody = shown | {"embedding": torch.zeros_like(shown["embedding"])} if shown else {}
        both = {k: torch.cat([nobody[k], shown[k]]) for k in shown}
        both["text"] = torch.cat([empty.to(batch["text"]).expand_as(batch["text"]), batch["text"]])

        def raw(latents: Tensor, t: Tensor, index: int) -> Tensor:
            return hurried(latents, t.long().to(latents.device).expand(len(latents)), **both).float()

        guided = guided_together(raw, MANNEQUIN.guidance_scale)
        scheduler = scheduler_of(SCHEDULE, "dpmpp-2m", timestep_spacing="trailing")
        hurried.unet.disable_adapters()  # type: ignore[operator]
        try:
            states = [batch["start"], *(s.latents for s in sample(guided, batch["start"], scheduler, MANNEQUIN.num_steps))]
        finally:
            hurried.unet.enable_adapters()  # type: ignore[operator]
        return torch.stack(states[:: MANNEQUIN.num_steps // LEGS])

    def objective(model: nn.Module, batch: Batch) -> Loss:
        states = way(batch)
        x, later = states[:-1].flatten(0, 1), states[1:].flatten(0, 1)
        said = {k: torch.cat([v] * LEGS) for k, v in batch.items() if k != "start"}
        each = len(batch["start"])
        raw = model(x, at.to(x.device).repeat_interleave(each), **said).float()
        a, b = (v.to(x).repeat_interleave(each).view(-1, 1, 1, 1) for v in (here, there))
        square = (denoised_of(SCHEDULE["prediction_type"], raw, x, a) - leg_target(x, later, a, b)).square().mean((1, 2, 3))
        return Loss(square.mean(), {f"leg_{k + 1}": part.mean() for k, part in enumerate(square.chunk(LEGS))})

    seen = face_rows(held)
    encoded, mine = faces_of(encoder, held, seen, cache, "validation"), list(PhotosOf(held.people, seen).of.values())[: len(PROMPTS)]
    posed = [Row(p, faces=(Shown(as_tensor(encoded[i])[None, None], held.kps[j].astype(np.float64)),)) for p, (i, j, *_) in zip(PROMPTS, mine, strict=False)]
    asked = posed, [Row(p) for p in base_recipe.PROMPTS[: len(posed)]]  # with faces, then without

    def painted(request: Request, studio: Studio) -> list[list[np.ndarray]]:
        return [studio.paint(rows, request, list(range(len(rows))))[0] for rows in asked]

    before: list[list[list[np.ndarray]]] = []  # the teacher's pictures, and the base's in as few steps

    def look(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Hurried)
        studio = Studio(str(next(model.parameters()).device)).with_parts(turbo_unet=model.unet, instantid=model.with_faces.method)
        if not before:
            before.extend(painted(r, studio) for r in (Request(), Request(num_steps=LEGS, guidance_scale=1, solver=MANNEQUIN.turbo.solver)))
        (usual, untaught), ours = before, painted(Request(speed="turbo"), studio)
        save_grid(run, step, [pictures[k] for k in range(len(asked)) for pictures in (usual, ours, untaught)])
        return {"grey_levels_away": _apart(ours, usual), "untaught_away": _apart(untaught, usual)}

    return finish(run, hurried, objective, batch_at, options, look)


def _apart(a: Sequence[Sequence[np.ndarray]], b: Sequence[Sequence[np.ndarray]]) -> float:
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())
