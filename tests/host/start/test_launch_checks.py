"""What the launcher says of the flags of `megatron rlhf`, before a rank is started."""

import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save_file

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.flag_aliases import FLAG_ALIASES, VALUES
from swift_kd_plugin.host.start.launch_checks import check_command, parse
from swift_kd_plugin.host.start.megatron_flags import megatron_flags
from tests.json_lines import write_json_lines
from tests.paths import BASE_MODEL, EXAMPLES

CPU = {"SWIFT_KD_DEVICE": "cpu"}


@pytest.fixture
def words(tmp_path):
    """A command line that is right, of flags by name."""
    write_json_lines(tmp_path / "rows.jsonl", [{"query": str(number), "response": "4"} for number in range(10)])
    flags = {"rlhf_type": "gkd", "model": BASE_MODEL, "teacher_model": BASE_MODEL, "lmbda": 0}
    flags |= {"dataset": tmp_path / "rows.jsonl", "train_iters": 2}

    def make(**changes) -> list[str]:
        found = []
        for name, value in {**flags, **changes}.items():
            if value is not None:
                found += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return found

    return make


def message(words: list[str], **env: str) -> str:
    with pytest.raises(KDError) as error:
        check_command(words, {**CPU, **env})
    return str(error.value)


def test_a_right_command_is_silent(words):
    check_command(words(), CPU)
    check_command(words(global_batch_size=8, micro_batch_size=2), {**CPU, "NPROC_PER_NODE": "4"})
    check_command(words(tensor_model_parallel_size=2), {**CPU, "NPROC_PER_NODE": "auto"})
    fill = {"kd_teacher_cache": "c", "kd_teacher_cache_mode": "fill", "train_iters": None, "num_train_epochs": 1}
    check_command(words(**fill), CPU)  # 10 rows, and a batch has 16
    nobody_writes = {"lmbda": 1, "use_vllm": "false", "kd_teacher_cache": ".", "kd_teacher_cache_mode": "read"}
    assert "--kd_teacher_cache . holds no rows of any teacher" in message(words(**nobody_writes))  # and nothing else
    check_command(words(dataset=["AI-ModelScope/alpaca-gpt4-data-en#500", "hf::a/b:c", "swift/self-cognition"]), CPU)


def test_every_flag_is_known_in_every_spelling():
    for name in megatron_flags():
        for spelling in (f"--{name}", f"--{name.replace('_', '-')}"):
            with pytest.raises(KDError) as error:
                parse([spelling, "--none_such"])
            assert "unknown on the command line: --none_such" in str(error.value) or "expected" in str(error.value)
    assert parse(["--no_save_optim", "true"]).no_save_optim is True


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1e-5}, "unknown on the command line: --learning_rate (here it is --lr)"),
        ({"per_device_train_batch_size": 1}, "--per_device_train_batch_size (here it is --micro_batch_size)"),
        ({"kd_divergance": "jsd"}, "unknown on the command line: --kd_divergance (did you mean 'kd_divergence'?)"),
        ({"train_iters": "many"}, "argument --train_iters/--train-iters: invalid int value: 'many'"),
        ({"lr": "1e"}, "argument --lr: invalid float value: '1e'"),
        ({"kd_divergence": "kl"}, "argument --kd_divergence/--kd-divergence: invalid choice: 'kl' (choose from"),
        ({"kd_fused_loss": "maybe"}, "'maybe'"),
        ({"train_iters": 0}, "--train_iters 0 must be at least 1."),
        ({"train_iters": None, "num_train_epochs": 0}, "--num_train_epochs 0 must be at least 1."),
        ({"train_iters": None}, "nothing says how long to train; give --num_train_epochs or --train_iters."),
        (
            {"micro_batch_size": 3},
            "--global_batch_size 16 is no multiple of --micro_batch_size 3 x 1 replicas of the mod",
        ),
        ({"tensor_model_parallel_size": 2}, "--context_parallel_size 1 does not divide the 1 processes"),
        (
            {"train_iters": None, "num_train_epochs": 1},
            "10 rows make no step of --global_batch_size 16; give more, or lo",
        ),
        ({"model": "/none"}, "--model /none does not exist"),
        ({"teacher_model": "./none"}, "--teacher_model ./none does not exist"),
        ({"kd_teacher_adapters": "./none"}, "--kd_teacher_adapters ./none does not exist; give an existing folder."),
        (
            {"dataset": "units/rows.jsonl"},
            "--dataset units/rows.jsonl does not exist, nor does its folder; check the pat",
        ),
        ({"val_dataset": "/none#100"}, "--val_dataset /none does not exist"),
        (
            {"tuner_type": "lora", "target_modules": ["all-linear", "all-embedding"]},
            "--target_modules all-embedding: Megatron's embedding and output layer take no adapter",
        ),
        (
            {"tuner_type": "lora", "target_regex": ".*linear_qkv"},
            "--target_regex: ms-swift cannot save such an",
        ),
        (
            {"tuner_type": "lora", "modules_to_save": "lm_head"},
            "--modules_to_save lm_head is Hugging Face's name",
        ),
        ({"tuner_type": "lora", "lora_rank": 0}, "--lora_rank 0 must be at least 1."),
        ({"kd_feature_layers": "1:1"}, "--kd_feature_layers has no effect without features; give --kd_feature_weight"),
        ({"kd_feature_weight": -1}, "--kd_feature_weight is -1.0; it must be a number of at least 0."),
        ({"kd_feature_weight": 1, "kd_feature_layers": "1:9"}, "names layer 9 of --teacher_model"),
        ({"kd_feature_weight": 1, "kd_feature_weight_final": 0}, "--kd_feature_weight_final needs --kd_schedule"),
        ({"kd_feature_weight": 1, "kd_divergence": "stock"}, "--kd_feature_weight has no effect on ms-swift's own"),
        (
            {"kd_feature_weight": 1, "teacher_model": None, "teacher_model_server": "http://x", "kd_topk": 4},
            "--kd_feature_weight matches hidden states, which a --teacher_model_server does not send; give a local",
        ),
        ({"tuner_type": "lora", "lora_bias": "all"}, "--lora_bias all: ms-swift trains biases and saves none of them"),
        ({"tuner_type": "lora", "expert_tensor_parallel_size": 2}, "--expert_tensor_parallel_size above 1: Megatron's"),
        ({"tuner_type": "lora", "modules_to_save": "linear_qkv"}, "--modules_to_save linear_qkv: ms-swift does not sa"),
        ({"tuner_type": "lora", "modules_to_save": "router"}, "--modules_to_save router: ms-swift does not save this"),
        (
            {"tuner_type": "lora", "target_modules": ["all-linear", "all-router"]},
            "--target_modules all-router stays in the router when the adapter is switched off, and with LoRA and the s",
        ),
        (
            {"tuner_type": "lora", "mcore_model": BASE_MODEL},
            f"--mcore_model {BASE_MODEL} is loaded in its place, and with LoRA and the same --teacher_model as --model",
        ),
        (
            {"kd_teacher_adapters": BASE_MODEL},
            f"--kd_teacher_adapters {BASE_MODEL} has no adapter_config.json; give the folder of a PEFT adapter.",
        ),
        (
            {"tuner_type": "lora", "kd_teacher_adapters": BASE_MODEL},
            "there is no model to merge others into; give the teacher as another folder.",
        ),
        ({"teacher_model": None, "kd_teacher_adapters": BASE_MODEL}, "give one with --teacher_model (a server loads"),
        ({"kd_teacher_bits": 2}, "argument --kd_teacher_bits/--kd-teacher-bits: invalid choice"),
        ({"kd_teacher_bits": 8, "teacher_model": None}, "--kd_teacher_bits 8: in self-distillation the teacher is"),
        ({"kd_teacher_bits": 8, "tuner_type": "lora"}, "--kd_teacher_bits 8: in self-distillation the teacher is"),
        (
            {"kd_teacher_bits": 4, "teacher_model": None, "teacher_model_server": "http://x:1", "gkd_logits_topk": 8},
            "--kd_teacher_bits 4 is about a teacher that is loaded here, and --teacher_model_server is one elsewhere;",
        ),
        ({"kd_teacher_bits": 4, "kd_divergence": "stock"}, "--kd_teacher_bits 4 needs a loss of the plugin; drop it"),
        ({"kd_teacher_bits": 4, "bridge_backend": "megatron-bridge"}, "--kd_teacher_bits 4 needs --bridge_backend mc"),
        (
            {"kd_teacher_bits": 4, "fp8_param_gather": "true"},
            "--kd_teacher_bits 4 and --fp8_param_gather or --fp4",
        ),
        ({"kd_teacher_head_bits": 8}, "--kd_teacher_head_bits 8 goes with --kd_teacher_bits; add it or drop the flag."),
        (
            {"kd_teacher_bits": 8, "kd_teacher_head_bits": 8},
            f"--kd_teacher_head_bits 8: the output layer of the teacher {BASE_MODEL} is its embedding, which stays",
        ),
        (
            {"teacher_model": None, "kd_teacher_cache": "c"},
            "the student is its own teacher at each step; give",
        ),
        (
            {"teacher_model": None, "teacher_model_server": "http://x:1"},
            "--teacher_model_server needs --kd_topk, how many",
        ),
        ({"kd_teacher_cache_mode": "read"}, "--kd_teacher_cache_mode needs the folder of the cache in --kd_teacher_c"),
        ({"kd_teacher_cache": "c", "kd_teacher_cache_mode": "read"}, "--kd_teacher_cache c does not exist, and --kd_t"),
        *(
            (
                {"kd_teacher_cache": ".", "kd_teacher_cache_mode": "read", **writes},
                "a response that was just written is never among those that a teacher has scored before",
            )
            for writes in (
                {"lmbda": 1, "use_vllm": "false", "kd_student_engine": "megatron"},
                {"lmbda": 0.5, "use_vllm": "false", "kd_student_engine": "transformers"},
                {"lmbda": 0, "kd_lmbda_final": 1, "kd_schedule": "linear", "vllm_mode": "colocate"},
                {"lmbda": 1, "vllm_mode": "colocate"},
                {"lmbda": 1, "vllm_mode": "colocate", "teacher_model": None, "teacher_model_server": "http://x:1"},
            )
        ),
        ({"kd_teacher_cache": f"{BASE_MODEL}/config.json"}, "config.json is a file; give a folder."),
        (
            {"kd_teacher_cache": "c", "kd_divergence": "stock"},
            "--kd_teacher_cache has no effect on ms-swift's own",
        ),
        (
            {
                "kd_teacher_cache": "c",
                "kd_topk": 3,
                "kd_temperature": 1,
                "kd_temperature_final": 2,
                "kd_schedule": "cosine",
            },
            "--kd_temperature_final moves it; drop it, or --kd_topk, as hidden states serve every temperature.",
        ),
        ({"tensor_model_parallel_size": 0}, "--tensor_model_parallel_size 0 must be at least 1."),
        ({"max_length": 0}, "--max_length 0 must be at least 1."),
        ({"expert_model_parallel_size": 3}, "--expert_model_parallel_size 3 x --pipeline_model_parallel_size 1"),
        ({"mcore_model": "out/checkpoint-4"}, "--mcore_model out/checkpoint-4 does not exist"),
        ({"model": "output/run/checkpoint-4"}, "--model output/run/checkpoint-4 does not exist"),
        ({"model": None}, "--model is missing; give a folder or the id of a model on a hub."),
        ({"external_plugins": ["swift_kd_plugin", "none.py"]}, "--external_plugins none.py does not exist"),
        ({"dataset": "rows.jsonl#many"}, "--dataset rows.jsonl#many: what stands behind # is no number of rows"),
        ({"dataset": EXAMPLES / "README.md"}, "README.md is none of the files that are read"),
        ({"torch_dtype": "float32"}, "--torch_dtype float32 trains in fp16; add --fp16 false --bf16 false"),
        (
            {"resume_from_checkpoint": "x"},
            "--resume_from_checkpoint (here it is --mcore_model, the checkpoint, with finetune false)",
        ),
        ({"warmup_ratio": 0.1}, "--warmup_ratio (here it is --lr_warmup_fraction)"),
        ({"tp": 2}, "unknown on the command line: --tp (here it is --tensor_model_parallel_size)"),
        ({"output": "x"}, "unknown on the command line: --output (did you mean --output_dir?)"),
        ({"micro_batch_size": 16}, "10 rows are fewer than --micro_batch_size 16 x 1 replicas of the model take at a"),
        ({"max_length": 1}, "--max_length 1: none of the 10 rows fits into it, the shortest has at least 2 tokens"),
        ({"kd_lambda": 7}, "--kd_lambda is 7.0; it must lie between 0 and 1."),
        ({"kd_beta": 0.3, "kd_divergence": "skew_kl"}, "--kd_beta belongs to --kd_divergence jsd."),
        ({"kd_ce_alpha_final": 0.5}, "--kd_ce_alpha_final is where a schedule ends; say with --kd_ce_alpha where it"),
        ({"lmbda": 0.5}, "--lmbda 0.5 lets the student write with vLLM; say where: --vllm_mode colocate"),
        ({"rlhf_type": "dpo", "kd_topk": 3}, "--kd_topk has a meaning for --rlhf_type gkd only, and --rlhf_type is d"),
        ({"mtp_num_layers": 1}, "--mtp_num_layers: distillation gives the multi-token prediction layers no loss"),
        ({"temperature": 3, "seq_kd": "true"}, "--temperature 3: vLLM writes responses with 2 at most"),
        ({"kd_datasets": "data.yaml"}, "--kd_datasets data.yaml does not exist"),
    ],
)
def test_mistakes_are_one_sentence(words, changes, said):
    assert said in message(words(**changes))


def test_a_file_that_is_called_nearly_so_is_named(words, tmp_path):
    said = message(words(dataset=f"{tmp_path}/row.jsonl#5"))
    assert said == f"--dataset {tmp_path}/row.jsonl does not exist; did you mean 'rows.jsonl' in the same folder?"


def test_rows_are_counted_over_epochs_and_files(words, tmp_path):
    both = [str(tmp_path / "rows.jsonl"), str(tmp_path / "more.jsonl")]
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"query": "?"}) for _ in range(6)) + "\n\n\n")
    check_command(words(train_iters=None, num_train_epochs=1, dataset=both), CPU)
    check_command(words(train_iters=None, num_train_epochs=2), CPU)
    said = message(words(train_iters=None, num_train_epochs=2, global_batch_size=32))
    assert said == "10 rows make no step of --global_batch_size 32 in 2 epochs; give more, or lower it."


def test_sizes_are_those_of_all_machines(words):
    env = {"NPROC_PER_NODE": "2", "NNODES": "2"}
    check_command(words(tensor_model_parallel_size=4), {**CPU, **env})
    assert "micro_batch_size 8 x 4 replicas" in message(words(micro_batch_size=8), **env)


def test_without_transformer_engine_the_way_is_said(words, monkeypatch):
    """Also for --help, which a rank would have to answer."""
    monkeypatch.setattr("swift_kd_plugin.host.start.launch_checks.find_spec", lambda name: None)
    for given in (words(), ["--help"]):
        with pytest.raises(KDError, match="there is no Transformer Engine here: on GPUs `pip install"):
            check_command(given, {})
    check_command(["--help"], CPU)


def test_bits_without_their_library_are_refused(words, monkeypatch):
    given = words(kd_teacher_bits=8)
    check_command(given, CPU)
    monkeypatch.setattr("swift_kd_plugin.generation.few_bits.find_spec", lambda name: None)
    assert "--kd_teacher_bits 8 needs bitsandbytes, which is not installed; `pip install" in message(given)


def test_an_adapter_of_one_end_of_a_tied_teacher_is_refused(words, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    layer = "base_model.model.lm_head"
    matrices = {f"{layer}.lora_A.weight": torch.ones(1, 2), f"{layer}.lora_B.weight": torch.ones(2, 1)}
    save_file(matrices, tmp_path / "adapter/adapter_model.safetensors")
    for tied in (True, False):
        teacher = tmp_path / f"tied_{tied}"
        teacher.mkdir()
        (teacher / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        (teacher / "tokenizer_config.json").write_text("{}")
        given = words(teacher_model=teacher, kd_teacher_adapters=tmp_path / "adapter")
        if tied:
            said = f"{tmp_path}/adapter changes lm_head.weight, and the teacher {teacher} has one tensor for embedding"
            assert said.replace("changes ", "changes base_model.model.") in message(given)
        else:
            check_command(given, CPU)


def copy_model(folder, *left_out: str) -> None:
    folder.mkdir(parents=True)
    for file in BASE_MODEL.iterdir():
        if file.name not in left_out:
            (folder / file.name).symlink_to(file)


def test_a_checkpoint_is_found_below_or_beside_what_was_given(words, tmp_path):
    run = tmp_path / "output/student"
    for version, step in (("v0-20261129-012931", 80), ("v2-20261130-090000", 8), ("v2-20261130-090000", 60)):
        copy_model(run / version / f"checkpoint-{step}")
        (run / version / f"checkpoint-{step}/latest_checkpointed_iteration.txt").write_text(f"{step}")
        (run / version / f"checkpoint-{step}/adapter_config.json").write_text("{}")
    (run / "v2-20261130-090000/args.json").write_text("{}")
    newest, old = run / "v2-20261130-090000/checkpoint-60", run / "v0-20261129-012931/checkpoint-80"
    for given, meant in ((run, newest), (run.parent, newest), (run / "checkpoint-80", old), (newest.parent, newest)):
        for flags in (
            *({"model": given}, {"teacher_model": given}, {"mcore_model": given}, {"kd_teacher_adapters": given}),
            *({"mcore_adapter": given, "tuner_type": "lora"}, {"adapters": given, "tuner_type": "lora"}),
        ):
            assert f"did you mean {meant}?" in message(words(**flags)), flags
    check_command(words(model=newest), CPU)


def test_a_model_without_a_tokenizer_is_refused(words, tmp_path):
    copy_model(tmp_path / "bare", "tokenizer.json", "tokenizer_config.json")
    for flag in ("model", "teacher_model"):
        said = message(words(**{flag: tmp_path / "bare"}))
        assert said.startswith(f"--{flag} {tmp_path}/bare has no tokenizer; copy its files (tokenizer.json, ...)")


def test_names_of_other_trainers_are_none_of_ours():
    assert set(FLAG_ALIASES.values()) <= set(megatron_flags())
    assert not set(FLAG_ALIASES) & set(megatron_flags())
    assert set(VALUES) <= set(FLAG_ALIASES)


def test_flags_of_ms_swifts_other_trainer_are_translated():
    """Those of `swift sft` that people change, and that are no flags of `megatron rlhf`."""
    from swift.arguments import SftArguments

    of_sft = {field.name for field in fields(SftArguments)}
    changed = {
        *("learning_rate", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("max_steps", "warmup_ratio", "warmup_steps", "lr_scheduler_type", "max_grad_norm", "optim", "eval_strategy"),
        *("gradient_checkpointing", "adam_epsilon", "resume_from_checkpoint", "save_only_model", "logging_dir"),
    }
    assert changed - of_sft <= {"warmup_ratio", "logging_dir"}  # gone from transformers 5, and still typed
    assert changed <= set(FLAG_ALIASES)


def write_adapter(folder, settings: dict | None = None, **layers: int) -> None:
    """lora_A of layers by name, alike where the numbers are."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **(settings or {})}))
    place = "base_model.model.model.layers.0.self_attn"
    matrices = {f"{place}.{name}.lora_A.weight": torch.full([2, 4], float(value)) for name, value in layers.items()}
    save_file(matrices, folder / "adapter_model.safetensors")


ALL = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "gate_proj": 2, "up_proj": 2, "o_proj": 3, "down_proj": 4}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (ALL, None),
        ({**ALL, "k_proj": 2}, "q_proj and k_proj of base_model.model.model.layers.0.self_attn have a lora_A each"),
        ({**ALL, "v_proj": 2}, "q_proj and v_proj of"),
        ({**ALL, "up_proj": 1}, "gate_proj and up_proj of"),
        ({"q_proj": 1}, "are not both adapted (k_proj is not), as PEFT and `swift sft` make them"),
        (
            {"o_proj": 1, "down_proj": 2},
            "has adapted down_proj, o_proj, and --target_modules says all-linear; give --target_modules linear_fc2 lin",
        ),
        ({"q_proj": 1, "k_proj": 1}, "give --target_modules linear_qkv."),
        ({**ALL, "lm_head": 1}, "changes lm_head, and Megatron's embedding and output layer take no adapter; merge it"),
        ({"q_proj": 1, "kv_a_proj_with_mqa": 2}, None),  # MLA
        ({**ALL, "gate": 1}, None),  # of layers that are not known nothing is said
    ],
)
def test_an_adapter_that_megatron_cannot_hold_is_refused(words, tmp_path, layers, said):
    write_adapter(tmp_path / "adapter", **layers)
    given = words(adapters=tmp_path / "adapter", tuner_type="lora")
    if said is None:
        check_command(given, CPU)
    else:
        assert said in message(given)


def test_an_adapter_of_some_layers_goes_on_with_their_names(words, tmp_path):
    write_adapter(tmp_path / "adapter", o_proj=1, down_proj=2)
    check_command(words(adapters=tmp_path / "adapter", target_modules=["linear_proj", "linear_fc2"]), CPU)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "has use_dora True, which Megatron's LoRA does not have; merge it"),
        ({"init_lora_weights": "pissa"}, "was started from pissa, which changes the base model"),
        ({"alpha_pattern": {"q_proj": 4}}, "has alpha_pattern {'q_proj': 4}"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank_pattern"),
        ({"lora_bias": True}, "has lora_bias True"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"peft_type": "IA3"}, "is IA3 and not LoRA"),
        (
            {"modules_to_save": ["lm_head"]},
            "lm_head as a whole, which would be left out; give --modules_to_save output",
        ),
        ({"use_rslora": True, "lora_dropout": 0.1}, None),
    ],
)
def test_an_adapter_that_would_be_another_model_is_refused(words, tmp_path, settings, said):
    write_adapter(tmp_path / "adapter", settings, **ALL)
    given = words(adapters=tmp_path / "adapter")
    if said is None:
        check_command(given, CPU)
    else:
        assert said in message(given)


def test_an_adapter_of_a_vision_tower_has_matrices_of_its_own(words, tmp_path):
    write_adapter(tmp_path / "adapter", **ALL)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tower = {
        f"base_model.model.visual.blocks.0.mlp.{name}.lora_A.weight": torch.rand(2, 4)
        for name in ("gate_proj", "up_proj")
    }
    save_file({**load_file(file), **tower}, file)
    check_command(words(adapters=tmp_path / "adapter"), CPU)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, None),
        ({"lora_rank": 4}, "was trained with --lora_rank 8, and here it is 4; give the same."),
        ({"lora_alpha": 8}, "was trained with --lora_alpha 32, and here it is 8; give the same."),
        ({"use_rslora": "false"}, "was trained with --use_rslora true, and here it is false; give the same."),
        ({"target_modules": "linear_qkv"}, "and --target_modules says linear_qkv; give --target_modules linear_fc1"),
    ],
)
def test_a_resumed_adapter_has_the_flags_that_it_was_trained_with(words, tmp_path, flags, said):
    write_adapter(tmp_path / "adapter", {"r": 8, "lora_alpha": 32, "use_rslora": True}, **ALL)
    (tmp_path / "adapter/latest_checkpointed_iteration.txt").write_text("4")
    given = words(mcore_adapter=tmp_path / "adapter", **{"use_rslora": "true", **flags})
    if said is None:
        check_command(given, CPU)
    else:
        assert said in message(given)


def test_an_adapter_whose_files_are_damaged_is_named(words, tmp_path):
    write_adapter(tmp_path / "adapter", **ALL)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    for flag in ("adapters", "kd_teacher_adapters"):
        assert f"{weights} cannot be read" in message(words(**{flag: tmp_path / "adapter"}))
    weights.unlink()
    assert "has no adapter_model.safetensors" in message(words(adapters=tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in message(words(adapters=tmp_path / "adapter"))
    said = message(words(adapters="output/lora/checkpoint-44"))
    assert said == "--adapters output/lora/checkpoint-44 does not exist; give an existing folder."


def test_an_embedding_that_is_the_output_layer_is_not_saved_beside_an_adapter(words, tmp_path):
    for tied in (True, False):
        model = tmp_path / f"tied_{tied}"
        model.mkdir()
        (model / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        (model / "tokenizer_config.json").write_text("{}")
        given = words(model=model, tuner_type="lora", modules_to_save="word_embeddings")
        if tied:
            assert f"the embedding of {model} is its output layer, too" in message(given)
        else:
            check_command(given, CPU)


BROKEN_CONFIGS = ["[1]", "null", "{", '{"num_attention_heads": "4", "num_key_value_heads": [1]}', b"\xff\xfe{}"]


@pytest.mark.parametrize("content", BROKEN_CONFIGS)
def test_a_config_that_is_none_is_one_sentence_or_left_to_who_reads_it(words, tmp_path, content):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    (model / "tokenizer_config.json").write_text("{}")
    if "heads" in str(content):
        check_command(words(model=model), CPU)
    else:
        assert f"{model}/config.json" in message(words(model=model))


def test_what_ms_swift_understands_is_not_refused(words, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}\n")
    (tmp_path / "data.yaml").write_text("pairs.jsonl: {type: rows, source: rows.jsonl}\n")
    monkeypatch.setenv("HOME", str(BASE_MODEL.parent))
    check_command(words(model=f"~/{BASE_MODEL.name}", teacher_model=f"~/{BASE_MODEL.name}"), CPU)
    check_command(words(dataset=[f"{folder}:default", f"{folder}:default#10"]), CPU)
    check_command(words(dataset="pairs.jsonl", kd_datasets=tmp_path / "data.yaml"), CPU)
    check_command(words(dataset="hf::user/foo.json"), CPU)
    check_command(words(dataset="swift/self-cognition:default/qwen3#500"), CPU)
    check_command(words(cached_dataset=f"{folder}#10"), CPU)
    check_command(words(kd_feature_weight=1, kd_teacher_cache=tmp_path / "new"), CPU)
    check_command(words(tuner_type="lora", expert_tensor_parallel_size=1, target_modules=["linear_qkv"]), CPU)
    check_command(words(tensor_model_parallel_size=2), {**CPU, "RANK": "0", "WORLD_SIZE": "2"})
    epochs = {"train_iters": None, "num_train_epochs": 1}
    check_command(words(**epochs, cached_dataset=folder), CPU)
    check_command(words(**epochs, dataset=[tmp_path / "rows.jsonl"] * 2, interleave_prob=[0.5, 0.5]), CPU)
    for word in ("--no_moe", "--no_enable"):
        with pytest.raises(KDError, match="unknown on the command line"):
            parse([word, "true"])


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--num_train_epoch", r"did you mean --num_train_epochs\?"), ("--tp", "here it is --tensor_model_parallel_size")],
)
def test_a_part_of_a_flag_is_no_flag(word, meant):
    """argparse takes any beginning that is clear."""
    with pytest.raises(KDError, match=f"unknown on the command line: {word} .*{meant}"):
        parse([word, "1"])


def test_one_negation_is_that_of_the_parser():
    """--no_X is a flag where X is true by default, and nowhere else."""
    assert parse(["--no_use_vllm"]).use_vllm is False
    with pytest.raises(KDError, match="unknown on the command line: --no_sequence_parallel"):
        parse(["--no_sequence_parallel"])


def test_a_flag_from_a_file_is_a_key_of_it(words):
    with pytest.raises(KDError, match=r"^run.yaml: unknown key 'lrr' \(did you mean 'lr'\?\)"):
        check_command(words(lrr=1), CPU, "run.yaml", {"lrr": 1})
    assert message(["none.yaml"]) == "none.yaml does not exist; check the path."


def test_a_length_into_which_no_row_fits_is_said(words, tmp_path):
    def rows(*texts):
        messages = ([{"role": "user", "content": text}, {"role": "assistant", "content": "4"}] for text in texts)
        write_json_lines(tmp_path / "long.jsonl", [{"messages": turns} for turns in messages])
        return words(dataset=tmp_path / "long.jsonl", max_length=8)

    assert message(rows("a b c d " * 9, "a b c d " * 5)) == (
        "--max_length 8: none of the 2 rows fits into it, the shortest has at least 41 tokens; raise it."
    )
    check_command([*rows("a b c d " * 9), "--truncation_strategy", "left"], CPU)
    check_command(rows("a b c d " * 9, "4"), CPU)
    write_json_lines(tmp_path / "rows.jsonl", [{"query": "a b c d " * 9}])
    check_command(words(max_length=8), CPU)  # of rows in another form ranks say it


def saved(folder, **changes):
    """A checkpoint as far as its args.json, saved by one process."""
    args = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "use_distributed_optimizer": True}
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({**args, "global_batch_size": 8, **changes}))
    return folder


@pytest.mark.parametrize(
    ("settings", "flags", "said"),
    [
        ({}, {}, "this run has --tensor_model_parallel_size 2"),
        ({"tensor_model_parallel_size": 2}, {}, None),
        ({"dist_ckpt_optim_fully_reshardable": True}, {}, None),
        ({"use_distributed_optimizer": False}, {}, None),
        ({}, {"no_load_optim": "true", "no_load_rng": "true"}, None),
        ({}, {"finetune": "true"}, None),
        ({"no_save_optim": True}, {}, "--no_save_optim true and holds no optimizer; begin a new run"),
    ],
)
def test_an_optimizer_of_another_layout_is_refused(words, tmp_path, settings, flags, said):
    resume = {"mcore_model": saved(tmp_path / "checkpoint-2", **settings), "finetune": "false"}
    given = words(**{**resume, "tensor_model_parallel_size": 2, **flags})
    two = {**CPU, "NPROC_PER_NODE": "2"}
    if said is None:
        check_command(given, two)
    else:
        with pytest.raises(KDError, match=said):
            check_command(given, two)


def test_a_size_of_files_has_a_unit(words):
    for size in ("5GB", "500MB", "0.5 GiB", "1000000"):
        check_command(words(max_shard_size=size), CPU)
    for size in ("5G", "big", "0MB", "1 2GB"):
        assert f"--max_shard_size {size} is no size; give one as 5GB or 500MB" in message(words(max_shard_size=size))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_iters": None, "num_train_epochs": 1}, "has no end that is known before; give --train_iters."),
        ({"val_dataset": "rows"}, "--val_dataset is a stream too; give --eval_iters, or 0"),
        ({"save_strategy": "epoch"}, "a stream has no epochs that are known before; give --save_steps."),
    ],
)
def test_a_stream_says_how_long(words, tmp_path, changes, said):
    file = {name: tmp_path / "rows.jsonl" for name, value in changes.items() if value == "rows"}
    assert said in message(words(streaming="true", **changes | file))
    check_command(words(streaming="true", val_dataset=tmp_path / "rows.jsonl", eval_iters=0), CPU)
    check_command(words(streaming="true", num_train_epochs=1, save_strategy="steps"), CPU)
