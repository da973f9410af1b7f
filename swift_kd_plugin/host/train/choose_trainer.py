"""Which trainer a command line asks for."""

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.train.base_trainer import BaseTrainer
from swift_kd_plugin.host.train.stock_trainer import StockLossTrainer
from swift_kd_plugin.host.train.trainer import KDTrainer


def choose_trainer(kind: type[BaseTrainer], args=None, template=None) -> type[BaseTrainer]:
    """`kind`, which is constructed with the rest, or in place of `BaseTrainer` what --kd_divergence says.

    Raises:
        KDError: `kind` would train by ms-swift's loss, whatever --kd_divergence says.
    """
    if kind is BaseTrainer:
        return StockLossTrainer if args.kd_divergence == "stock" else KDTrainer
    if issubclass(kind, (StockLossTrainer, KDTrainer)):
        return kind
    raise KDError(
        f"{kind.__name__} extends ms-swift's MegatronGKDTrainer; let it extend swift_kd_plugin.host.train.trainer."
        "KDTrainer, or StockLossTrainer of stock_trainer beside it."
    )
