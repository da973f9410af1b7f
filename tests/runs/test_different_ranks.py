"""Two machines whose commands are not the same."""

from concurrent.futures import ThreadPoolExecutor

from tests.launching.commands import environment, flags_to_argv, free_port, run_command


def test_two_nodes_with_two_rates(flags, tmp_path):
    port = str(free_port())

    def start(node: int) -> tuple[int, str, float]:
        folder = tmp_path / str(node)
        folder.mkdir()
        changed = {**flags, "lr": (1e-4, 1e-3)[node], "output_dir": tmp_path / "output", "add_version": False}
        changed |= {"tensor_model_parallel_size": 1 + node}
        env = environment(1, NNODES="2", NODE_RANK=str(node), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        return run_command(["megatron", "rlhf", *flags_to_argv(changed)], folder, env, timeout=150)

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(start, (0, 1)))
    for rank, (code, log, _) in enumerate(runs):
        assert code == 1, log[-3000:]
        sentence = (
            f"swift_kd_plugin [rank {rank}]: error: the ranks were started differently: --lr is 0.001 on rank 1 and "
            "0.0001 on rank 0; --tensor_model_parallel_size is 2 on rank 1 and 1 on rank 0. Start all with"
        )
        assert log.count(sentence) == 1, log[-3000:]
        assert "Traceback" not in log
