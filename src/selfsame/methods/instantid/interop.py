"""InstantID inside a user's own stock diffusers pipeline, in two lines:

    method = instantid_from_official("InstantID", pipe.unet)            # pipe was built with controlnet=method.identity_net
    with face_in(pipe, method, embedding):
        image = pipe("a watercolour of a person", image=kps_image, controlnet_conditioning_scale=0.8).images[0]

Text to image, image to image and inpainting of SD 1.5 and SDXL, alone or in a MultiControlNet beside nets that see the text, with
LoRA, with an IP-Adapter beside it (set its scale before), with offloading. Leaving the `with` restores the pipeline, also after an error. One pipeline
serves one request at a time there; rows of several requests belong to our own loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from selfsame.adapters.processors import attend, processors_replaced
from selfsame.methods.instantid.method import InstantID, masked_residuals
from selfsame.methods.instantid.modules import region_weights


class Binding:
    """Face tokens of one request, in the order and number of rows that a pipeline's batches have."""

    def __init__(self, pipe: Any, tokens: Tensor, nobody: Tensor, scale: float, region: Tensor | None) -> None:
        self.pipe, self.tokens, self.nobody, self.scale, self.region = pipe, tokens, nobody, scale, region

    def pick(self, count: int, *, conditional: bool = False) -> Tensor:
        """Which of [nobody, person 0, person 1 ...] each of `count` rows shows; with guidance the first half of a batch shows nobody.

        Raises:
            ValueError: the batch does not divide among the people.
        """
        people = len(self.tokens)
        guided = bool(self.pipe.do_classifier_free_guidance) and not conditional
        shown = count // 2 if guided else count
        if shown % people or (guided and count % 2):
            raise ValueError(f"{people} people cannot share a batch of {shown} pictures: give one embedding, or one for each prompt")
        who = 1 + torch.arange(people).repeat_interleave(shown // people)
        return torch.cat([torch.zeros(shown, dtype=who.dtype), who]) if guided else who

    @property
    def everyone(self) -> Tensor:
        """Tokens of nobody and of each person, (1 + people) m c."""
        return torch.cat([self.nobody, self.tokens])


class BoundFace:
    """Adds the face's share to whatever processor a cross-attention layer had: attention of the same queries over keys and values made once.

    out = to_out(z + scale * z_face) = old + scale * W_out z_face, since to_out is linear.
    """

    def __init__(self, previous: Any, projections: nn.Module, binding: Binding) -> None:
        self.previous, self.binding = previous, binding
        tokens = binding.everyone
        with torch.no_grad():
            self.k, self.v = projections.to_k_ip(tokens), projections.to_v_ip(tokens)  # type: ignore[operator]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        scale: float = 1.0,
        ip_adapter_masks: Any = None,
    ) -> Tensor:
        """Names what any processor may be given: diffusers hands on only what a processor names."""
        b = self.binding

        def before() -> Tensor:
            if isinstance(self.previous, nn.Module):  # an IP-Adapter's own layers, which offloading cannot see while they are put aside
                self.previous.to(hidden_states.device)
            named = {"temb": temb, "scale": scale, "ip_adapter_masks": ip_adapter_masks}
            call = type(self.previous).__call__
            wanted = inspect.signature(type(self.previous).forward if call is nn.Module.__call__ else call).parameters
            return self.previous(attn, hidden_states, encoder_hidden_states, attention_mask, **{k: v for k, v in named.items() if k in wanted})

        if not b.scale:
            return before()
        q = attn.to_q(hidden_states)
        self.k, self.v = self.k.to(q), self.v.to(q)  # once: device and precision stay
        rows = b.pick(len(hidden_states)).to(q.device)
        k, v = self.k[rows], self.v[rows]
        weight: Any = b.scale
        if b.region is not None:
            weight = weight * region_weights(b.region.to(q), q.shape[1])
        face = weight * attend(q, k, v, attn.heads)
        to_out = attn.to_out[0]
        if type(self.previous) in (AttnProcessor, AttnProcessor2_0) and attention_mask is None:
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            text = attend(q, attn.to_k(context), attn.to_v(context), attn.heads)
            return attn.to_out[1](to_out(text + face))
        return before() + to_out(face) - to_out(torch.zeros_like(face[:, :1]))


def _identity_nets(pipe: Any, method: InstantID) -> list[nn.Module]:
    """IdentityNet where the pipeline has it: as its ControlNet, or among several."""
    control = getattr(pipe, "controlnet", None)
    nets = list(getattr(control, "nets", [control])) if control is not None else []
    return [net for net in nets if net is method.identity_net]


@contextmanager
def face_in(pipe: Any, method: InstantID, embedding: Any, *, ip_scale: float = 0.8, region: Tensor | None = None, adapter_only: bool = False) -> Iterator[Any]:
    """A stock pipeline that paints a person, until the `with` is left.

    Args:
        pipe: of diffusers, for the base that `method` fits; with IdentityNet as its ControlNet or one of several, or without any.
        embedding: the recogniser's raw output, (512,); (k, 512): k photos of one person, jointly; (p, k, 512): a person for each of p prompts.
        ip_scale: strength of the Image Adapter; IdentityNet's is the call's `controlnet_conditioning_scale`.
        region: 1 1 H W in [0, 1], the picture's size: where the face may act.
        adapter_only: the pipeline's ControlNets, if it has any, are not IdentityNet, and shall not be.

    Raises:
        ValueError: the embedding has another width, the strength is below 0, or the pipeline's ControlNets are none of `method.identity_net`.
    """
    rows = torch.as_tensor(embedding).detach().clone()
    rows = rows.reshape(1, -1, rows.shape[-1]) if rows.ndim < 3 else rows
    if rows.shape[-1] != method.size.embedding_dim:
        raise ValueError(
            f"the embedding is {rows.shape[-1]} wide, this model needs {method.size.embedding_dim}: antelopev2's raw embedding for the released weights"
        )
    if ip_scale < 0:
        raise ValueError(f"ip_scale {ip_scale}: give 0 or more")
    nets = _identity_nets(pipe, method)
    if getattr(pipe, "controlnet", None) is not None and not nets and not adapter_only:
        raise ValueError("the pipeline's ControlNet is not method.identity_net: build it with controlnet=method.identity_net, or say adapter_only=True")
    with torch.no_grad():
        binding = Binding(pipe, method.tokens(rows), method.no_face(1, rows.shape[1]), ip_scale, region)
    signature = inspect.signature(type(method.identity_net).forward)

    def see_the_face(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = signature.bind(net, *args, **kwargs).arguments
        sample: Tensor = given["sample"]
        conditional = bool(given.get("guess_mode")) and bool(pipe.do_classifier_free_guidance)  # such a pipeline sends its conditional rows alone
        picks = binding.pick(len(sample), conditional=conditional).to(binding.tokens.device)
        given["encoder_hidden_states"] = binding.everyone[picks].to(sample)
        return (), {k: v for k, v in given.items() if k != "self"}

    def inside_the_region(net: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        return out if region is None else masked_residuals(out[0], out[1], region)

    with ExitStack() as stack:
        for net in nets:
            if method.net_reads == "face":
                stack.callback(net.register_forward_pre_hook(see_the_face, with_kwargs=True).remove)
            stack.callback(net.register_forward_hook(inside_the_region, with_kwargs=True).remove)
        layers = {name.replace("/", "."): layer for name, layer in method.adapter.layers.items()}
        bound = {path: BoundFace(pipe.unet.get_submodule(path).processor, layer, binding) for path, layer in layers.items()}
        stack.enter_context(processors_replaced(pipe.unet, bound))
        yield pipe
