"""Makes the tiny models and pictures that the recipes train on a laptop: random weights, real configs, in seconds.

python examples/tiny_models.py [OUT]      # output/tiny_models by default

OUT/medium, OUT/small   dense Qwen3 students of two sizes, with the tokenizer of examples/base_model
OUT/moe, OUT/moe_large  Qwen3-MoE models with 4 experts, likewise
OUT/adapter             a LoRA adapter for examples/base_model that changes it a little
OUT/vision, OUT/vision_large, OUT/pictures    Qwen3-VL models, and questions about coloured shapes
"""

import json
import random
from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

BASE_MODEL = Path(__file__).resolve().parent / "base_model"
# ms-swift's template of Qwen's vision models knows the image token by its number, so the vocabulary has the real size.
VISION_VOCABULARY = 151936
VISION_TOKENS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
VISION_MODELS = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, "Qwen2_5_VLProcessor", 14),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration, "Qwen3VLProcessor", 16),
}
# A model folder may bring its own processor. This one has no video half, which would need torchvision.
PROCESSOR = """from transformers import {base}


class ImagesOnlyProcessor({base}):
    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
"""
COLOURS = ("red", "green", "blue", "yellow", "black")
SHAPES = ("rectangle", "ellipse")


def text_shape(hidden: int, tokenizer: PreTrainedTokenizerFast, **changes) -> dict:
    """A Qwen3 with 4 layers and grouped-query attention. Its head dimension is the smallest that vLLM runs on a CPU."""
    # Weights are drawn wide: with small ones every distribution is uniform and no error can show.
    return {
        "vocab_size": -(-len(tokenizer) // 16) * 16,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "initializer_range": 0.08,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        **changes,
    }


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dense(folder: Path, tokenizer: PreTrainedTokenizerFast, hidden: int = 64, seed: int = 0, **changes) -> Path:
    """A Qwen3 with an output layer of its own."""
    torch.manual_seed(seed)
    return save(Qwen3ForCausalLM(Qwen3Config(**text_shape(hidden, tokenizer, **changes))), tokenizer, folder)


def make_moe(
    folder: Path, tokenizer: PreTrainedTokenizerFast, hidden: int = 64, seed: int = 0, active: int = 2, **changes
) -> Path:
    """A Qwen3-MoE with 4 experts, `active` of them used by each token."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        **text_shape(hidden, tokenizer, **changes),
        num_experts=4,
        num_experts_per_tok=active,
        moe_intermediate_size=hidden,
        decoder_sparse_step=1,
        norm_topk_prob=True,
    )
    return save(Qwen3MoeForCausalLM(config), tokenizer, folder)


def make_adapter(folder: Path, model: Path, seed: int = 0, size: float = 1.0) -> Path:
    """A LoRA adapter of rank 8 on every linear layer of `model`, both of its matrices random.

    Megatron fuses q, k and v, and gate and up: each of these groups has one lora_A.

    Args:
        size: 1 for an adapter that changes the model through and through; less changes it less.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=8, lora_alpha=32 * size, lora_dropout=0.0, target_modules="all-linear", init_lora_weights=False
    )
    adapted = get_peft_model(Qwen3ForCausalLM.from_pretrained(model), config)
    for name, module in adapted.named_modules():
        if name.endswith(("self_attn", "mlp")):
            fused = ("q_proj", "k_proj", "v_proj") if name.endswith("self_attn") else ("gate_proj", "up_proj")
            first, *others = (getattr(module, projection).lora_A["default"].weight.data for projection in fused)
            for weight in others:
                weight.copy_(first)
    adapted.save_pretrained(folder)
    return folder


def make_vision_tokenizer(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """`plain` with Qwen's special tokens at the numbers that they have in Qwen's vision models."""
    state = json.loads(plain.backend_tokenizer.to_str())
    others = [token for token in state["added_tokens"] if token["content"] not in VISION_TOKENS]
    state["added_tokens"] = others
    state["model"]["vocab"] = {
        token: number for token, number in state["model"]["vocab"].items() if token not in VISION_TOKENS
    } | VISION_TOKENS
    backend = Tokenizer.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in VISION_TOKENS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = plain.chat_template
    return tokenizer


def make_vision_model(folder: Path, kind: str, plain: PreTrainedTokenizerFast, hidden: int = 64, seed: int = 0) -> Path:
    """A Qwen2.5-VL or Qwen3-VL: 2 language layers with multimodal rotary positions, 2 vision layers.

    Args:
        kind: qwen2_5_vl or qwen3_vl.
        plain: a text tokenizer, to which the vision tokens are added.
    """
    config_class, model_class, processor, patch = VISION_MODELS[kind]
    tokens = {
        "image_token_id": VISION_TOKENS["<|image_pad|>"],
        "video_token_id": VISION_TOKENS["<|video_pad|>"],
        "vision_start_token_id": VISION_TOKENS["<|vision_start|>"],
        "vision_end_token_id": VISION_TOKENS["<|vision_end|>"],
    }
    tokenizer = make_vision_tokenizer(plain)
    text, vision = _text_shape_of_vision(hidden, kind, tokenizer), _vision_shape(hidden, patch, kind)
    torch.manual_seed(seed)
    model = model_class(config_class(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens))
    _draw_wide(model)
    save(model, tokenizer, folder)
    _save_processor(folder, processor, patch)
    return folder


def _draw_wide(model: torch.nn.Module) -> None:
    """Biases away from zero, where a step is all sign, and logits that are sure of a few tokens among so many."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.08)
        model.lm_head.weight.mul_(4)


def _text_shape_of_vision(hidden: int, kind: str, tokenizer: PreTrainedTokenizerFast) -> dict:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    changes = {"vocab_size": VISION_VOCABULARY, "num_hidden_layers": 2, "rope_parameters": rope}
    shape = text_shape(hidden, tokenizer, **changes)
    if kind == "qwen3_vl":
        rope["mrope_interleaved"] = True
    else:
        shape["num_attention_heads"] = hidden // shape.pop("head_dim")
    return shape


def _vision_shape(hidden: int, patch: int, kind: str) -> dict:
    own = {
        "qwen2_5_vl": {"window_size": 4 * patch, "fullatt_block_indexes": [1]},
        "qwen3_vl": {"deepstack_visual_indexes": [0], "num_position_embeddings": 64},
    }
    return {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": patch,
        "out_hidden_size": hidden,
        "initializer_range": 0.08,
        **own[kind],
    }


def _save_processor(folder: Path, base: str, patch: int) -> None:
    Qwen2VLImageProcessorPil(patch_size=patch).save_pretrained(folder)
    (folder / "processing_images.py").write_text(PROCESSOR.format(base=base), encoding="utf-8")
    config = {"auto_map": {"AutoProcessor": "processing_images.ImagesOnlyProcessor"}}
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **config}), encoding="utf-8")


def make_pictures(folder: Path, rows: int = 32, seed: int = 0) -> Path:
    """Questions about one or two pictures of unequal sizes, each a coloured shape; returns the file of rows."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pictures.jsonl").open("w", encoding="utf-8") as out:
        for row in range(rows):
            pictures = [
                (folder / f"{row}_{i}.png", rng.choice(COLOURS), rng.choice(SHAPES)) for i in range(1 + row % 2)
            ]
            for file, colour, shape in pictures:
                draw_picture(file, colour, shape, (rng.randint(56, 120), rng.randint(56, 120)))
            answer = " ".join(f"The {shape} is {colour}." for _, colour, shape in pictures)
            messages = [
                {"role": "user", "content": "<image>" * len(pictures) + "What colour is it?"},
                {"role": "assistant", "content": answer},
            ]
            out.write(json.dumps({"messages": messages, "images": [str(file) for file, *_ in pictures]}) + "\n")
    return folder / "pictures.jsonl"


def draw_picture(file: Path, colour: str, shape: str, size: tuple[int, int]) -> None:
    """A white PNG with one filled rectangle or ellipse."""
    image = Image.new("RGB", size, "white")
    width, height = size
    getattr(ImageDraw.Draw(image), shape)((width // 5, height // 5, 4 * width // 5, 4 * height // 5), fill=colour)
    image.save(file)


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path("output/tiny_models"),
) -> None:
    """Write the tiny models and pictures of the recipes."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE_MODEL)
    make_dense(out / "medium", tokenizer, hidden=96, seed=1)
    make_dense(out / "small", tokenizer, hidden=64, seed=2, num_hidden_layers=2)
    make_moe(out / "moe", tokenizer, seed=3)
    make_moe(out / "moe_large", tokenizer, hidden=128, seed=4)
    make_adapter(out / "adapter", BASE_MODEL, seed=5, size=0.02)
    make_vision_model(out / "vision", "qwen3_vl", tokenizer, seed=6)
    make_vision_model(out / "vision_large", "qwen3_vl", tokenizer, hidden=128, seed=7)
    make_pictures(out / "pictures")
    print(f"the tiny models are in {out}")


if __name__ == "__main__":
    typer.run(main)
