"""Tiny vision-language models made on the spot, with real configs, tokenizers and image processors; and pictures."""

import json
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.tiny_models import CHAT_TEMPLATE, make_tokenizer

# ms-swift's template of Qwen's vision models knows the image token by its number, so the vocabulary has the real size.
VOCABULARY = 151936
SPECIAL_TOKENS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
MODELS = {
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


def make_vision_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny text models, its special tokens at the numbers they have in Qwen's models."""
    plain = make_tokenizer(list(SPECIAL_TOKENS))
    state = json.loads(plain.backend_tokenizer.to_str())
    state["model"]["vocab"].update(SPECIAL_TOKENS)
    for token in state["added_tokens"]:
        token["id"] = SPECIAL_TOKENS[token["content"]]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_vision_model(folder: Path, kind: str, hidden: int = 64, seed: int = 0) -> Path:
    """A Qwen2.5-VL or Qwen3-VL: 2 language layers with multimodal rotary positions, 2 vision layers."""
    config_class, model_class, processor, patch = MODELS[kind]
    tokens = {
        "image_token_id": SPECIAL_TOKENS["<|image_pad|>"],
        "video_token_id": SPECIAL_TOKENS["<|video_pad|>"],
        "vision_start_token_id": SPECIAL_TOKENS["<|vision_start|>"],
        "vision_end_token_id": SPECIAL_TOKENS["<|vision_end|>"],
    }
    vision = _vision_shape(hidden, patch, kind)
    config = config_class(
        text_config=_text_shape(hidden, kind), vision_config=vision, tie_word_embeddings=False, **tokens
    )
    torch.manual_seed(seed)
    model = model_class(config)
    _draw_wide(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    make_vision_tokenizer().save_pretrained(folder)
    _save_processor(folder, processor, patch)
    return folder


def _draw_wide(model: torch.nn.Module) -> None:
    """Biases away from zero, where a step is all sign, and logits that are sure of a few tokens among so many."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.08)
        model.lm_head.weight.mul_(4)


def _text_shape(hidden: int, kind: str) -> dict:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.08,
        "bos_token_id": None,
        "eos_token_id": SPECIAL_TOKENS["<|im_end|>"],
        "pad_token_id": SPECIAL_TOKENS["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    }
    if kind == "qwen3_vl":
        shape.update(num_attention_heads=4, head_dim=32)
        shape["rope_parameters"]["mrope_interleaved"] = True
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
    folder.mkdir()
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
