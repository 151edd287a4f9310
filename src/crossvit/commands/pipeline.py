"""`crossvit pipeline`: the chain, its test, and the table."""

from omegaconf import DictConfig

from crossvit.commands.run import run_directory, task_overrides, write_chain
from crossvit.commands.table import present
from crossvit.config import chain_configs
from crossvit.stages.chain import describe, run_chain
from crossvit.stages.evaluating import check_suite, evaluate_stages
from crossvit.stages.transfer import evaluate_transfers, plan_transfers, run_transfers


def run(cfg: DictConfig):
    """Trains what is missing, evaluates every stage of the chain, and of `transfer`, on the suite, writes and prints the table."""
    check_suite(cfg)
    overrides = task_overrides()
    plan = plan_transfers(cfg, overrides, chain_configs(overrides, "pipeline"))
    links = run_chain(overrides, primary="pipeline")
    directory = run_directory()
    write_chain(directory, links)
    print(describe(links))
    cells = evaluate_stages([link.stored for link in links], cfg.suite, cfg.paths, cfg.scenes)
    transfers = run_transfers(plan, links)
    if transfers:
        print(describe(transfers))
    return present([*cells, *evaluate_transfers(plan, transfers, cfg)], directory)
