"""`crossvit pipeline`: the chain, its test, and the table."""

from omegaconf import DictConfig

from crossvit.commands.run import run_directory, task_overrides, write_chain
from crossvit.commands.table import present
from crossvit.config import chain_configs
from crossvit.stages.chain import describe, run_chain, watched
from crossvit.stages.evaluating import check_suite, evaluate_stages, reliability_curves
from crossvit.stages.ranks import go_on
from crossvit.stages.transfer import evaluate_transfers, plan_transfers, run_transfers


def run(cfg: DictConfig) -> float | None:
    """Trains what is missing, evaluates every stage of the chain, and of `transfer`, on the suite, writes and prints the table.

    Returns the figure that the last stage watches.
    """
    check_suite(cfg)
    overrides = task_overrides()
    plan = plan_transfers(cfg, overrides, chain_configs(overrides, "pipeline"))
    links = run_chain(overrides, primary="pipeline")
    transfers = run_transfers(plan, links)
    if not go_on():
        return watched(links[-1])
    directory = run_directory()
    write_chain(directory, links)
    print(describe(links))
    stages = [link.stored for link in links]
    cells = evaluate_stages(stages, cfg.suite, cfg.paths, cfg.scenes)
    if transfers:
        print(describe(transfers))
    curves = reliability_curves(stages, cells)
    present([*cells, *evaluate_transfers(plan, transfers, cfg)], directory, curves)
    return watched(links[-1])
