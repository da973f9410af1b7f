"""LoRA that Megatron cannot hold: it fuses layers, so that those share one lora_A, and adapts no vocabulary."""

import os
import re

from safetensors import safe_open

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import WEIGHTS

# Megatron fuses these, which then share one lora_A; the first of each names the fused layer.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
VOCABULARY = {"all-embedding", "embedding", "word_embeddings", "output_layer"}
MATRIX = re.compile(r"(?P<place>.*\.)(?P<layer>\w+)\.lora_A\.weight")


def check_targets(args) -> None:
    """Raises KDError if --target_modules names an embedding or output layer, which PEFT refuses late."""
    targets = args.target_modules if isinstance(args.target_modules, list) else []
    if found := sorted(VOCABULARY & set(targets)):
        raise KDError(
            f"--target_modules {found[0]}: Megatron's embedding and output layer take no adapter; leave it out, or "
            "train them as they are (--tuner_type full --trainable_parameters)."
        )


def check_continued_adapter(args) -> None:
    """Raises KDError if --adapters names a LoRA adapter that Megatron cannot hold."""
    for folder in args.adapters or ():
        file = os.path.join(folder, WEIGHTS)
        if os.path.isfile(file):
            with safe_open(file, framework="pt") as matrices:
                _check_shared(folder, matrices)


def _check_shared(folder: str, matrices: safe_open) -> None:
    names = set(matrices.keys())
    for name in sorted(names):
        found = MATRIX.fullmatch(name)
        group = next((group for group in FUSED if found and found["layer"] == group[0]), ())
        for other in group[1:]:
            partner = f"{found['place']}{other}.lora_A.weight"
            if partner in names and matrices.get_tensor(partner).equal(matrices.get_tensor(name)):
                continue
            if partner not in names and other == "v_proj":
                continue  # there are models without it
            why = "have a lora_A each" if partner in names else f"are not both adapted ({other} is not)"
            raise KDError(
                f"--adapters {folder}: {group[0]} and {other} of {found['place'].rstrip('.')} {why}, as PEFT and "
                "`swift sft` make them, and in Megatron they share one; merge it (`swift export --merge_lora true`) "
                "and train a new adapter on the merged model."
            )
