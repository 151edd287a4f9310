"""BatchNorm whose statistics are those of all processes."""

from lightning.pytorch.plugins.layer_sync import LayerSync
from torch.nn import Module


class SyncedNorm(LayerSync):
    """As Lightning's `sync_batchnorm`, with activations kept: some of timm's BatchNorm layers hold the activation that follows, and
    torch's own conversion puts a layer without one in their place."""

    def apply(self, model: Module) -> Module:
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)

    def revert(self, model: Module) -> Module:
        """As it is: outside of a process group, or in evaluation, a synchronised layer is an ordinary one."""
        return model
