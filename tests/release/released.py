"""Names and shapes of the released vocoder, written as formulas of its sizes."""

Shapes = dict[str, tuple[int, ...]]


def _layer(name: str, *weight: int, bias: bool = True) -> Shapes:
    """A layer whose bias is as long as its weight's first axis."""
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def flow(
    *,
    tokens: int = 5121,
    width: int = 512,
    heads: int = 8,
    inner: int = 2048,
    layers: int = 6,
    mel: int = 80,
    speaker: int = 192,
    regulator: int = 4,
    channels: int = 256,
    attention: int = 512,
    blocks: int = 4,
    middle: int = 12,
) -> Shapes:
    """Tensors of flow.pt."""
    w, c, unet = width, channels, "decoder.estimator"
    found = {"input_embedding.weight": (tokens, w)} | _layer("spk_embed_affine_layer", mel, speaker)
    found |= _layer("encoder.embed.out.0", w, w) | _layer("encoder.embed.out.1", w)
    found |= _layer("encoder.after_norm", w) | _layer("encoder_proj", mel, w)
    for i in range(layers):
        at = f"encoder.encoders.{i}"
        for part in ("q", "k", "v", "out"):
            found |= _layer(f"{at}.self_attn.linear_{part}", w, w)
        found |= _layer(f"{at}.self_attn.linear_pos", w, w, bias=False)
        found |= {f"{at}.self_attn.pos_bias_{p}": (heads, w // heads) for p in "uv"}
        found |= _layer(f"{at}.feed_forward.w_1", inner, w)
        found |= _layer(f"{at}.feed_forward.w_2", w, inner)
        found |= _layer(f"{at}.norm_ff", w) | _layer(f"{at}.norm_mha", w)
    for i in range(regulator):
        found |= _layer(f"length_regulator.model.{3 * i}", mel, mel, 3)
        found |= _layer(f"length_regulator.model.{3 * i + 1}", mel)
    found |= _layer(f"length_regulator.model.{3 * regulator}", mel, mel, 1)
    found |= _layer(f"{unet}.time_mlp.linear_1", 4 * c, 4 * mel)
    found |= _layer(f"{unet}.time_mlp.linear_2", 4 * c, 4 * c)
    levels = {"down_blocks.0": 4 * mel, "down_blocks.1": c, "up_blocks.0": 2 * c,
              "up_blocks.1": 2 * c, **{f"mid_blocks.{i}": c for i in range(middle)}}  # fmt: skip
    for level, before in levels.items():
        at = f"{unet}.{level}"
        found |= _layer(f"{at}.0.mlp.1", c, 4 * c) | _layer(f"{at}.0.res_conv", c, before, 1)
        for block, into in (("block1", before), ("block2", c)):
            found |= _layer(f"{at}.0.{block}.block.0", c, into, 3)
            found |= _layer(f"{at}.0.{block}.block.1", c)
        for i in range(blocks):
            part = f"{at}.1.{i}"
            for projection in "qkv":
                found |= _layer(f"{part}.attn1.to_{projection}", attention, c, bias=False)
            found |= _layer(f"{part}.attn1.to_out.0", c, attention)
            found |= _layer(f"{part}.norm1", c) | _layer(f"{part}.norm3", c)
            found |= _layer(f"{part}.ff.net.0.proj", 4 * c, c)
            found |= _layer(f"{part}.ff.net.2", c, 4 * c)
    found |= _layer(f"{unet}.down_blocks.0.2.conv", c, c, 3)
    found |= _layer(f"{unet}.up_blocks.0.2.conv", c, c, 4)
    found |= _layer(f"{unet}.down_blocks.1.2", c, c, 3) | _layer(f"{unet}.up_blocks.1.2", c, c, 3)
    found |= _layer(f"{unet}.final_block.block.0", c, c, 3)
    found |= _layer(f"{unet}.final_block.block.1", c)
    return found | _layer(f"{unet}.final_proj", mel, c, 1)


def _normed(name: str, channels: int, first: int, second: int, kernel: int) -> Shapes:
    """A convolution under weight norm."""
    return {
        f"{name}.bias": (channels,),
        f"{name}.weight_g": (first, 1, 1),
        f"{name}.weight_v": (first, second, kernel),
    }


def head(*, channels: int = 512, pitch: int = 512, mel: int = 80, harmonics: int = 8) -> Shapes:
    """Tensors of hift.pt."""
    found = _layer("m_source.l_linear", 1, harmonics + 1)
    found |= _normed("conv_pre", channels, channels, mel, 7)
    for step, (source_kernel, down) in enumerate(((7, 16), (11, 1))):
        wide, narrow = channels // 2**step, channels // 2 ** (step + 1)
        found |= _normed(f"ups.{step}", narrow, wide, narrow, 16)
        found |= _layer(f"source_downs.{step}", narrow, 18, down)
        blocks = {f"source_resblocks.{step}": source_kernel}
        blocks |= {f"resblocks.{3 * step + i}": k for i, k in enumerate((3, 7, 11))}
        for name, kernel in blocks.items():
            for i in range(3):
                for half in "12":
                    found |= _normed(f"{name}.convs{half}.{i}", narrow, narrow, narrow, kernel)
                    found[f"{name}.activations{half}.{i}.alpha"] = (narrow,)
    found |= _normed("conv_post", 18, 18, channels // 4, 7)
    for i in range(5):
        into = pitch if i else mel
        found |= _normed(f"f0_predictor.condnet.{2 * i}", pitch, pitch, into, 3)
    return found | _layer("f0_predictor.classifier", 1, pitch)
