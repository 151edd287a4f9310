"""The text tower of an open_clip model as a text encoder."""

from pathlib import Path

from torch import Tensor, nn

from crossvit.errors import UserError
from crossvit.models.text_encoder import TextFeatures, pool_text, real_tokens
from crossvit.models.weights import WeightReport, read_state_dict, transfer

END_OF_TEXT = 49407


class OpenCLIPTextEncoder(nn.Module):
    """A causal CLIP text Transformer by open_clip's model name, e.g. `ViT-B-32`; pooled at the end-of-text token,
    unprojected.

    pretrained: None, a tag that open_clip fetches (`openai`), or a local file of weights of the whole model or its text
        tower.
    freeze: the tower keeps its weights. OpenAI's weights, and all that were trained with its activation, belong to the
        names that end in `-quickgelu`. Raises UserError for an unknown name or weights that cannot be had or do not
        fit.
    """

    report: WeightReport | None = None

    def __init__(self, name: str = "ViT-B-32", pretrained: str | None = None, freeze: bool = False) -> None:
        super().__init__()
        import open_clip
        from open_clip.transformer import QuickGELU, TextTransformer

        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if config is None:
            raise UserError(f"text_encoder.name={name}: open_clip has no such model; see open_clip.list_models()")
        text = config["text_cfg"]
        if set(text) - {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}:
            raise UserError(
                f"text_encoder.name={name}: its text tower is no plain CLIP Transformer; choose e.g. ViT-B-32"
            )
        self.width = self.word_width = text["width"]
        quick, tag = config.get("quick_gelu", False), _tag(name, pretrained)
        # the activation goes by the name, which stays with the weights of a stage
        if tag and tag.get("quick_gelu", False) != quick:
            right = name.removesuffix("-quickgelu") if quick else f"{name}-quickgelu"
            raise UserError(
                f"text_encoder.pretrained={pretrained}: these weights were trained with another activation than {name} has: set "
                f"text_encoder.name={right}"
            )
        self.tower = TextTransformer(**text, proj_type="none", act_layer=QuickGELU if quick else nn.GELU)
        self.context_length = self.tower.context_length
        self.vocab_size = self.tower.vocab_size
        if pretrained is not None:
            self.report = self._load(name, pretrained)
        if freeze:
            self.requires_grad_(False)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, M) -> word embeddings (B, M, word_width), before positions."""
        return self.tower.token_embedding(tokens)

    def word_table(self) -> Tensor:
        """(vocab_size, word_width), what `embed` looks words up in."""
        return self.tower.token_embedding.weight

    def forward(self, tokens: Tensor, mask: Tensor | None = None, words: Tensor | None = None) -> TextFeatures:
        """tokens (B, M) of CLIP's BPE with M <= context_length; mask (B, M) or None for everything up to the first
        end-of-text; words (B, M, word_width) or None for `embed(tokens)`."""
        mask = real_tokens(tokens, pad_id=0, eot_id=END_OF_TEXT, mask=mask)
        tower, length = self.tower, tokens.shape[1]
        states = (self.embed(tokens) if words is None else words) + tower.positional_embedding[:length]
        states = tower.ln_final(tower.transformer(states, attn_mask=tower.attn_mask[:length, :length]))
        return TextFeatures(states, pool_text(states, mask, "eot"), mask)

    def _load(self, name: str, pretrained: str) -> WeightReport:
        """Takes the tower's names out of a whole model's; the picture side and the projection stay behind."""
        weights = read_state_dict(_locate(name, pretrained))
        prefix = "text." if "text.token_embedding.weight" in weights else ""
        left_out = (
            "visual",
            "logit_scale",
            "logit_bias",
            "text_projection",
            "attn_mask",
            "context_length",
            "vocab_size",
            "input_resolution",
        )
        try:
            return transfer(self.tower, weights, prefix=prefix, allow_unexpected=left_out)
        except UserError as error:
            raise UserError(f"{pretrained} as the text tower of {name}: {error}") from error


def _locate(name: str, pretrained: str) -> str | Path:
    """A local file: the one named, or the one that open_clip fetches for a tag."""
    import open_clip

    source = _tag(name, pretrained)
    if not source:
        if Path(pretrained).is_file():
            return pretrained
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:5]) or "none"
        raise UserError(
            f"text_encoder.pretrained={pretrained}: no such file, and no such tag of {name} (first tags: {tags})"
        )
    try:
        return open_clip.download_pretrained(source)
    except Exception as error:
        raise UserError(
            f"text_encoder.pretrained={pretrained} could not be fetched ({error}); give a local file"
        ) from error


def _tag(name: str, pretrained: str | None) -> dict:
    """open_clip's description of a tag of its published weights, empty for anything else."""
    import open_clip

    return (open_clip.get_pretrained_cfg(name, pretrained) or {}) if pretrained is not None else {}
