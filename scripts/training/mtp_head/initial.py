"""A head that begins as the target's last layer, so that training starts from something."""

import torch
from torch import Tensor

from cgbench.models.heads.families import HeadFamily
from cgbench.models.heads.head import DraftHead
from cgbench.models.target import Target
from mtp_training.chain import CausalAttention, positions
from mtp_training.model import Model

EMBED_STD = 1e-3


@torch.no_grad()
def new_model(target: Target, family: HeadFamily, ids: Tensor) -> Model:
    """``target``, frozen, with a float32 head of ``family`` that is fitted to ``ids [B, S]``.

    The block and the output norm are copies of the target's last ones. The projection passes the
    hidden state on, at the size it has in the target, for which that block was trained. The
    embedding comes in at the same size, with weights near zero: were it smaller, its weights
    would have to grow far beyond what a learning rate for the block reaches.
    """
    target.model.requires_grad_(False)
    with torch.device(target.device):
        head = DraftHead(family, target.model).float()
    *_, last_layer = target.backbone.get_submodule("layers").children()
    head.block.load_state_dict(last_layer.state_dict())
    head.out_norm.load_state_dict(target.backbone.get_submodule("norm").state_dict())
    model = Model(target, head, target.device)
    hidden = model.head.to_input(target.forward(ids, positions(ids), CausalAttention()))
    # The median, for a sequence's first rows are often many times larger.
    scale = hidden.float().square().mean(-1).sqrt().median()
    for norm in (head.hidden_norm, head.embed_norm):
        norm.get_parameter("weight").fill_(scale)
    size = target.hidden_size
    keep, embed = torch.eye(size), torch.randn(size, size) * EMBED_STD
    parts = (embed, keep) if family.concat == "EH" else (keep, embed)
    head.proj.weight.copy_(torch.cat(parts, dim=1))
    return model
