"""torch.cuda and the collectives on a machine without CUDA."""

import logging

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("this machine has CUDA; the backend is for those without", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("cpu_backend")


def test_cuda_devices_mean_the_cpu():
    tensor = torch.zeros(2, device="cuda")
    assert tensor.device.type == "cpu"
    assert torch.ones(2, device=torch.cuda.current_device()).device.type == "cpu"
    assert torch.ones(2, device=0).device.type == "cpu"
    assert tensor.cuda().to("cuda:0").to(device="cuda", dtype=torch.float64).dtype == torch.float64
    assert torch.tensor([1], device=torch.device("cuda", 1)).device.type == "cpu"
    assert torch.zeros(2, pin_memory=True).pin_memory().device.type == "cpu"
    assert torch.nn.Linear(2, 2).cuda().to("cuda").weight.device.type == "cpu"
    assert isinstance(torch.device(torch.cuda.current_device()), torch.device)
    assert torch.zeros(2, device="meta").device.type == "meta"


def test_half_precision_is_recognised_by_its_old_name():
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(1).type(torch.float64).dtype == torch.float64


def test_the_device_shares_the_cpu_generator():
    torch.manual_seed(3)
    first = torch.rand(3, device="cuda")
    state = torch.cuda.get_rng_state()
    second = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(second, torch.rand(3, device="cuda"))
    torch.cuda.manual_seed_all(3)
    assert torch.equal(first, torch.rand(3))
    assert torch.cuda.default_generators[torch.cuda.current_device()] is torch.default_generator


def test_memory_figures_are_real():
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_reserved()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert torch.cuda.memory_allocated() > 2**25
    assert torch.cuda.max_memory_reserved() - before > 48 * 2**20
    del block
    free, total = torch.cuda.mem_get_info()
    assert 0 < free < total == torch.cuda.get_device_properties(0).total_memory


def test_events_measure_time():
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    torch.cuda.synchronize()
    end.record()
    assert 0 <= start.elapsed_time(end) < 1000
    with pytest.raises(RuntimeError, match="must be recorded"):
        torch.cuda.Event().elapsed_time(end)


def test_cuda_graphs_are_refused_by_name():
    names = ("CUDAGraph", "graph", "make_graphed_callables", "graph_pool_handle")
    for name in names:
        with pytest.raises(NotImplementedError, match="CUDA graphs are not available on the CPU backend"):
            getattr(torch.cuda, name)(None)


def test_megatrons_forked_random_states_are_real(caplog):
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    tracker = CudaRNGStatesTracker()
    tracker.add("name", 1234)
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING), tracker.fork("name"):
        forked = torch.rand(4)
    after = torch.rand(4)
    with tracker.fork("name"):
        assert not torch.equal(forked, torch.rand(4))
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(4))
    assert not caplog.records


def test_groups_are_gloo_whatever_is_asked_for(tmp_path):
    from torch import distributed as dist

    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, device_id=None)
    try:
        group = dist.new_group([0], backend="nccl")
        assert dist.get_backend() == dist.get_backend(group) == "gloo"
        output = torch.empty(3)
        dist.all_to_all_single(output, torch.arange(3.0), torch.tensor([3]), torch.tensor([3]))
        assert output.tolist() == [0, 1, 2]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--sleep_level", "1", "--lr", "1"], {"--sleep_level": "0", "--lr": "1"}),
        (["--ddp-backend=nccl"], {"--ddp_backend": "gloo"}),
        (["--vllm_enforce_eager", "--lr", "1"], {"--vllm_enforce_eager": "true", "--lr": "1"}),
    ],
)
def test_a_recipe_for_gpus_runs_unchanged(given, expected):
    from swift_kd_plugin.cpu.cpu_flags import REPLACED, adapt_command_line

    argv = ["/x/swift/cli/_megatron/rlhf.py", *given]
    adapt_command_line(argv)
    parsed = dict(zip(argv[1::2], argv[2::2], strict=True))
    assert parsed == {**{f"--{flag}": value for flag, value in REPLACED.items()}, **expected}


def test_other_programs_keep_their_command_line():
    from swift_kd_plugin.cpu.cpu_flags import adapt_command_line

    argv = ["/x/swift/cli/deploy.py", "--sleep_level", "1"]
    adapt_command_line(argv)
    assert argv[1:] == ["--sleep_level", "1"]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("fp8_format", "hybrid", "--fp8_format: fp8 is"),
        ("optimizer_cuda_graph", "true", "--optimizer_cuda_graph: capturing CUDA graphs is"),
        (
            "megatron_extra_kwargs",
            '{"cuda_graph_impl": "local"}',
            "cuda_graph_impl in --megatron_extra_kwargs: capturing CUDA graphs is",
        ),
    ],
)
def test_flags_that_change_the_numbers_are_refused_by_name(capfd, flag, value, message):
    from swift_kd_plugin.cpu.cpu_flags import adapt_command_line

    with pytest.raises(SystemExit):
        adapt_command_line(["/x/swift/cli/_megatron/rlhf.py", f"--{flag}", value])
    assert f"{message} not available on the CPU backend" in capfd.readouterr().err


def test_harmless_extra_arguments_are_left_alone(tmp_path):
    from swift_kd_plugin.cpu.cpu_flags import adapt_command_line

    file = tmp_path / "extra.json"
    file.write_text('{"hidden_dropout": 0.1}')
    for value in ('{"cuda_graph_impl": "none", "fp8": null}', "{'hidden_dropout': 0.1}", "[1]", str(file)):
        argv = ["/x/swift/cli/_megatron/rlhf.py", "--megatron_extra_kwargs", value]
        adapt_command_line(argv)
        assert argv[1:3] == ["--megatron_extra_kwargs", value]


def test_a_data_loader_leaves_the_random_state_alone():
    """A resumed run starts its loader's iterator at another moment than the run that was not interrupted."""
    from torch.utils.data import DataLoader

    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    assert len(list(DataLoader([1, 2, 3]))) == 3
    assert torch.equal(first, torch.rand(3))


def test_the_backend_is_applied_and_undone():
    import subprocess
    import sys

    code = (
        "import torch; names = ('is_available', 'Stream', 'get_rng_state'); "
        "before = [getattr(torch.cuda, n) for n in names]; init = torch.distributed.init_process_group; "
        "from swift_kd_plugin.cpu import CPU_LEDGER, switch_on; switch_on(); "
        "assert torch.cuda.is_available() and torch.zeros(1, device='cuda').device.type == 'cpu'; "
        "CPU_LEDGER.disarm(); assert before == [getattr(torch.cuda, n) for n in names]; "
        "assert torch.distributed.init_process_group is init and not torch.cuda.is_available(); "
        "assert torch.zeros(1).type() == 'torch.FloatTensor'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
