"""`crossvit pipeline`: the chain, its test, and the table."""

from omegaconf import DictConfig

from crossvit.commands.run import run_directory, task_overrides, write_chain
from crossvit.commands.table import present
from crossvit.stages.chain import describe, run_chain
from crossvit.stages.evaluating import check_suite, evaluate_stages


def run(cfg: DictConfig):
    """Trains what is missing, evaluates every stage of the chain on the suite, writes and prints the table."""
    check_suite(cfg)
    links = run_chain(task_overrides(), primary="pipeline")
    directory = run_directory()
    write_chain(directory, links)
    print(describe(links))
    cells = evaluate_stages([link.stored for link in links], cfg.suite, cfg.paths)
    return present(cells, directory)
