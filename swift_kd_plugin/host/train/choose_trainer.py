"""Which trainer a command line asks for."""

from swift_kd_plugin.host.train.base_trainer import BaseTrainer
from swift_kd_plugin.host.train.stock_trainer import StockLossTrainer
from swift_kd_plugin.host.train.trainer import KDTrainer


def choose_trainer(args, template, **kwargs) -> type[BaseTrainer]:
    """Takes what ms-swift constructs its trainer with."""
    return StockLossTrainer if args.kd_divergence == "stock" else KDTrainer
