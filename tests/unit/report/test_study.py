"""The report of a study from cells made by hand."""

import json
from dataclasses import replace

import pytest

from crossvit.errors import UserError
from crossvit.report.study import Grid, Plan, cell_file, figure
from crossvit.report.study_plots import plot_differences, plot_levels
from crossvit.report.study_tables import (
    claims,
    equal_compute,
    equal_steps,
    overview,
    speed,
    to_markdown,
    verdict,
    write_report,
)

PLAN = Plan(
    name="made up",
    base="base",
    arms=["base", "late", "twice", "dear"],
    seeds=[0, 1, 2],
    longer=["base", "twice"],
    primary="vlr",
    metrics={"vlr": ["vlr/Acc@1"], "both": ["vlr/Acc@1", "vqcmi/text->image/Acc@1"]},
    titles={"vlr": "VLR true/false"},
    escaped=0.9,
    goal=0.8,
    families={"fusion": ["late", "dear"], "compute": ["twice"]},
    claims={
        "R1": {
            "says": "late is worse",
            "evidence": [{"arm": "late", "expected": "lower", "than": "base", "metric": "vlr"}],
        },
        "R2": {
            "says": "above chance",
            "evidence": [{"arm": "base", "expected": "higher", "than": 0.5, "metric": "vlr"}],
        },
        "R3": {"says": "something else", "evidence": []},
    },
)
VALUES = {
    "base": {0: 0.90, 1: 0.80, 2: 0.94},
    "late": {0: 0.70, 1: 0.62, 2: 0.72},
    "twice": {0: 0.95, 1: 0.93, 2: 0.96},
}
FLOPS = {"base": 1000.0, "late": 600.0, "twice": 2000.0, "dear": 1900.0}


def row(task, direction, metric, value, candidates=2, chance=0.5):
    return {
        "task": task, "direction": direction, "metric": metric, "value": value, "candidates": candidates, "chance": chance
    }  # fmt: skip


def stage(fingerprint: str, weights: str = "", steps: int = 100) -> dict:
    return {"fingerprint": fingerprint, "weights": weights, "git_commit": "0123", "steps": steps}


def cell(arm: str, seed: int, value: float, **changed) -> dict:
    return {
        "arm": arm,
        "seed": seed,
        "settings": arm,
        "stages": [stage("coco"), stage(arm)],
        "git_commit": "0123456789abcdef+",
        "command": f"crossvit study study=made arm={arm} seed={seed}",
        "steps": 100,
        "seconds": 1.0,
        "flops": FLOPS[arm],
        "chain_flops": FLOPS[arm] + 500,
        "flops_per_pair": 10.0,
        "validation": [[50, value - 0.1], [100, value]],
        "mode": "max",
        "table": [
            row("vlr", None, "Acc@1", value),
            row("vqcmi", "image->text", "Acc@1", 0.0),
            row("vqcmi", "text->image", "Acc@1", value / 2, 100, 0.01),
        ],
    } | changed


def grid(values=VALUES, plan=PLAN) -> Grid:
    return Grid(plan, {(arm, seed): cell(arm, seed, v) for arm, seeds in values.items() for seed, v in seeds.items()})


def test_figure_by_task_direction_and_metric():
    one = cell("base", 0, 0.6)
    assert figure(one, "vlr/Acc@1")["value"] == 0.6
    assert figure(one, "vqcmi/text->image/Acc@1")["value"] == 0.3
    assert figure(one, "vqcmi/Acc@1") is None


def test_values_are_the_mean_of_the_figures_of_a_metric():
    assert grid().values("base", "both") == {0: pytest.approx(0.675), 1: pytest.approx(0.6), 2: pytest.approx(0.705)}
    assert grid().context("both") == (2, pytest.approx(0.255))
    without = {("base", 0): cell("base", 0, 0.9), ("base", 1): cell("base", 1, 0.9, table=[])}
    assert Grid(PLAN, without).values("base", "vlr") == {0: 0.9}


def test_differences_are_taken_over_the_seeds_that_both_have():
    values = VALUES | {"late": {0: 0.70, 2: 0.72}}
    found = grid(values).difference("late", "base", "vlr")
    assert (found.count, found.mean) == (2, pytest.approx(-0.21))
    assert grid(values).difference("dear", "base", "vlr") is None
    assert grid().difference("base", 0.5, "vlr").mean == pytest.approx(0.38)


def test_p_values_are_corrected_within_the_family():
    values = VALUES | {"dear": {0: 0.8, 1: 0.7, 2: 0.84}}
    found = grid(values).corrected("vlr")
    late, twice = (grid().difference(arm, "base", "vlr").p for arm in ("late", "twice"))
    assert found == {
        "late": pytest.approx(late),
        "dear": 0.0,
        "twice": pytest.approx(twice),
    }  # dear: exactly -.1 in each seed
    assert "base" not in found


def test_arms_that_are_not_there_yet_count_in_their_family():
    late = grid().difference("late", "base", "vlr").p
    assert grid().corrected("vlr")["late"] == pytest.approx(2 * late)  # dear is to come
    alone = grid(plan=replace(PLAN, families={"fusion": ["late"]}))
    assert alone.corrected("vlr")["late"] == pytest.approx(late)


def test_overview():
    lines = overview(grid(VALUES | {"twice": {0: 0.95, 1: 0.93}})).splitlines()
    assert lines[0] == "| arm | seeds | VLR true/false | both | pair-passes |"
    assert lines[2] == "| base | 3 | 88.0 ± 7.2 | 66.0 ± 5.4 | 100 |"
    difference = grid().difference("late", "base", "vlr")
    low, high = (f"{100 * bound:+.1f}" for bound in (difference.low, difference.high))
    assert lines[3].startswith(f"| late | 3 | 68.0 ± 5.3 [{low}, {high}] | 51.0 ± 4.0 [")
    assert lines[4] == "| twice | 2 | 94.0 ± 1.4 | 70.5 ± 1.1 | 200 |"  # of two seeds no interval
    cells = {("base", 0): cell("base", 0, 0.9), ("late", 0): cell("late", 0, 0.8, table=[])}
    cells["twice", 0] = {
        "failed": "the loss is NaN",
        **{key: cells["base", 0][key] for key in ("settings", "git_commit")},
    }
    lines = overview(Grid(PLAN, cells)).splitlines()
    assert lines[3] == "| late | 1 | no figure | no figure | 60 |"
    assert lines[4] == "| twice (twice: 1 of 1 seeds diverged) | 0 | no figure | no figure |  |"


def test_equal_steps():
    text = equal_steps(grid(), "vlr")
    base, late, twice = text.splitlines()[2:]  # "dear" has not been begun
    assert base.startswith("| base | 3 of 3 | 88.0 ± 7.2 (80.0) |")
    assert "| late | 3 of 3 | 68.0 ± 5.3 (62.0) | -20.0 [-25.0, -15.0] | 0.003 | 0.007 | 0.250 | 0 |" in late
    assert late.endswith("| > 100 (3 of 3 never) | 60 |")
    assert twice.endswith("| 100 | 50 | 200 |")


def test_equal_compute_takes_the_shortest_base_that_spent_as_much():
    values = VALUES | {"dear": {0: 0.96, 1: 0.94, 2: 0.97}}
    assert grid(values).matched("late") == "base"
    assert grid(values).matched("dear") == "twice"
    text = equal_compute(grid(values))
    assert "| late | 110 | base | 3 | 1.36 | -20.0 [-25.0, -15.0] |" in text
    assert "| dear | 240 | twice | 3 | 1.04 | +1.0 [+1.0, +1.0] |" in text
    assert len(text.splitlines()[2].split(" | ")) == 5 + len(PLAN.metrics)
    assert "dear" not in equal_compute(grid())


def test_what_a_base_has_spent_is_compared_over_the_seeds_that_both_have():
    cells = dict(grid().cells)
    cells["base", 2] = cells["base", 2] | {"chain_flops": 9e9}
    del cells["late", 2]
    assert Grid(PLAN, cells).spent_by("base", "late") == pytest.approx(1500 / 1100)
    assert grid().spent_by("dear", "late") is None


def test_an_arm_dearer_than_every_base_has_no_equal():
    assert grid({"base": VALUES["base"], "dear": {0: 0.9}}).matched("dear") is None


def test_claims():
    found = claims(grid())
    assert (
        "| R1 | late is worse | late lower than base in VLR true/false | -20.0 [-25.0, -15.0] (seeds: 3) | supported |"
        in found
    )
    assert (
        "| R2 | above chance | base higher than 50.0 in VLR true/false | +38.0 [+20.1, +55.9] (seeds: 3) | supported |"
        in found
    )
    assert "| R3 | something else |  |  | not measured yet |" in found
    assert claims(Grid(PLAN, {})).count("not measured yet") == 3


def test_the_interval_of_a_claim_holds_for_all_its_comparisons():
    lower = PLAN.claims["R1"]["evidence"][0]
    plan = replace(PLAN, claims={"R1": {"says": "", "evidence": [lower, lower | {"than": 0.5}]}})
    wide = grid(plan=plan).difference("late", "base", "vlr", confidence=0.975)
    assert f"[{100 * wide.low:+.1f}, {100 * wide.high:+.1f}]" in claims(grid(plan=plan))
    assert wide.low < grid().difference("late", "base", "vlr").low


def test_an_arm_may_be_compared_with_another_metric_of_its_own():
    evidence = PLAN.claims["R2"]["evidence"][0] | {"arm": "late", "than": {"metric": "both"}}
    plan = replace(PLAN, claims={"R2": {"says": "", "evidence": [evidence]}})
    plan.check(PLAN.arms)
    found = grid(plan=plan).difference("late", {"metric": "both"}, "vlr")
    assert (found.count, found.mean) == (3, pytest.approx(0.17))  # x - (x + x / 2) / 2
    assert "late higher than both in VLR true/false | +17.0" in claims(grid(plan=plan))


def test_verdict():
    difference = grid().difference("late", "base", "vlr")
    assert [verdict(difference, word) for word in ("lower", "higher")] == ["supported", "refuted"]
    assert verdict(difference._replace(low=-0.1, high=0.1), "lower") == "undecided"
    assert verdict(difference._replace(count=2), "lower") == "undecided: fewer than 3 seeds"
    assert verdict(None, "lower") == "not measured yet"


def test_a_difference_against_expectation_may_be_tolerated():
    difference = grid().difference("late", "base", "vlr")._replace(low=-0.015, high=0.003)
    asked = [(word, margin) for word in ("higher", "lower") for margin in (0, 0.01, 0.02)]
    found = [verdict(difference, word, margin) for word, margin in asked]
    assert found == ["undecided", "undecided", "supported", "undecided", "supported", "supported"]
    assert verdict(difference._replace(high=-0.012), "higher", 0.013) == "undecided"
    assert verdict(difference._replace(high=-0.012), "higher", 0.01) == "refuted"
    evidence = {"arm": "late", "expected": "higher", "than": "base", "metric": "vlr", "margin": 0.02}
    plan = replace(PLAN, claims={"R1": {"says": "", "evidence": [evidence]}})
    assert "| late no more than 2.0 lower than base in VLR true/false |" in claims(grid(plan=plan))


def test_cells_with_further_overrides_are_named():
    cells = dict(grid().cells)
    cells["late", 1] = cell("late", 1, 0.7, command="crossvit study arm=late seed=1 study=made optimizer.lr=1e-3")
    assert "**Run with further overrides:** late-seed1: optimizer.lr=1e-3." in to_markdown(Grid(PLAN, cells))
    assert "further overrides" not in to_markdown(grid())


def test_speed_is_the_median_seed_and_says_who_never_got_there():
    curves = {0: [[10, 0.9]], 1: [[10, 0.1], [30, 0.8]], 2: [[10, 0.2]]}
    cells = {("base", s): cell("base", s, 0.5, validation=curve) for s, curve in curves.items()}
    assert speed(Grid(PLAN, cells), "base") == "30 (1 of 3 never)"


def test_an_incomplete_grid_says_so():
    text = to_markdown(grid())
    assert "9 of 12 cells: 4 arms x 3 seeds." in text
    assert "**The grid is not complete:** not begun: dear." in text
    full = grid(VALUES | {"dear": VALUES["base"]})
    assert full.complete and "not complete" not in to_markdown(full)


def failed(arm: str, seed: int, **changed) -> dict:
    keys = ("arm", "seed", "settings", "git_commit", "command")
    whole = cell(arm, seed, 0.0)
    return {key: whole[key] for key in keys} | {"failed": "the loss is not finite in step 7"} | changed


def test_a_training_that_has_diverged_counts(tmp_path):
    cells = dict(grid().cells) | {("late", 1): failed("late", 1), ("twice", 0): failed("twice", 0)}
    found = Grid(PLAN, cells)
    assert found.values("late", "vlr").keys() == {0, 2}
    text = to_markdown(found)
    assert "9 of 12 cells" in text and "**Diverged:** late-seed1: the loss is not finite in step 7" in text
    assert "| late | 2 of 3, 1 diverged |" in text and "| late (late: 1 of 3 seeds diverged) |" in text
    assert "| undecided: (late: 1 of 3 seeds diverged) |" in claims(found)
    assert "(3 of 3 never)" in speed(found, "late")
    row = next(line for line in equal_steps(found, "vlr").splitlines() if line.startswith("| twice"))
    assert row.split(" | ")[7] == "67"  # two of three at 90 or above
    write_report(found, tmp_path)


def test_an_arm_that_has_always_diverged_is_no_arm_that_is_lacking():
    cells = dict(grid().cells) | {("dear", seed): failed("dear", seed, settings=str(seed)) for seed in range(3)}
    found = Grid(PLAN, cells)
    assert found.complete
    text = to_markdown(found)
    assert "not begun" not in text and "| dear | 0 of 3, 3 diverged | no figure |" in text
    assert "The seeds of dear were run with different settings" in text
    assert speed(found, "dear") == "> 0 (3 of 3 never)"


def test_the_primary_metric_comes_first_and_says_who_has_escaped():
    plan = replace(PLAN, primary="both")
    text = to_markdown(grid(plan=plan))
    assert text.index("## both") < text.index("## VLR true/false")
    assert "seeds >= 90" in equal_steps(grid(plan=plan), "both") and "seeds >=" not in equal_steps(
        grid(plan=plan), "vlr"
    )


def test_arms_that_cannot_have_a_figure_are_not_corrected_for():
    values = VALUES | {"dear": {0: 0.8, 1: 0.7, 2: 0.84}}
    cells = dict(grid(values).cells)
    late = grid().difference("late", "base", "vlr").p
    for seed in range(3):
        cells["dear", seed] = cell("dear", seed, 0.9, table=[])
    assert Grid(PLAN, cells).corrected("vlr")["late"] == pytest.approx(late)


def test_what_an_attack_says_against_itself_stands_under_its_figures():
    plan = replace(PLAN, metrics=PLAN.metrics | {"attacked": ["robustness_text/eps 0.05"]})
    checks = {"robustness_text": {"loss rises with eps": True, "unbounded attack leaves next to nothing": False}}
    checks["robustness_patch"] = {"loss rises with eps": False}  # of another metric
    attacked = [row("robustness_text", None, "eps 0.05", 0.4)]
    cells = {("base", 0): cell("base", 0, 0.9, table=attacked), ("base", 1): cell("base", 1, 0.9)}
    cells["late", 1] = cell("late", 1, 0.7, table=attacked, checks=checks)
    found = Grid(plan, cells)
    assert found.doubts("attacked") == {
        "its checks were made": ["base-seed0"],
        "unbounded attack leaves next to nothing": ["late-seed1"],
    }
    assert not found.doubts("vlr")
    assert "Not so in late-seed1: unbounded attack leaves next to nothing." in to_markdown(found)


def test_several_commits_say_what_was_run_with_each():
    cells = dict(grid().cells)
    assert "committed): 012345678+.\n" in to_markdown(Grid(PLAN, cells))
    for seed in (0, 2):
        cells["late", seed] = cell("late", seed, 0.7, git_commit="fedcba9876543210")
    text = to_markdown(Grid(PLAN, cells))
    assert "with arms and seeds: 012345678+ (base 0 1 2, late 1, twice 0 1 2); fedcba987 (late 0 2)." in text


def test_metrics_that_are_null_are_left_out():
    node = {**PLAN.__dict__, "metrics": {**PLAN.metrics, "twins": None}}
    assert Plan.of(node) == PLAN


def test_seeds_of_different_settings_are_pointed_out():
    cells = {("base", seed): cell("base", seed, 0.9, settings=f"s{seed // 2}") for seed in range(3)}
    assert "**The seeds of base were run with different settings:** seeds 0, 1 | seeds 2." in to_markdown(
        Grid(PLAN, cells)
    )


def test_costs_that_were_not_counted_are_left_empty():
    cells = {("base", 0): cell("base", 0, 0.9, flops=None, chain_flops=None, flops_per_pair=None)}
    found = Grid(PLAN, cells)
    assert (found.passes("base"), found.matched("late")) == (None, None)
    assert equal_steps(found, "vlr").splitlines()[2].endswith("|  |")


def test_files(tmp_path):
    for arm, seeds in VALUES.items():
        for seed, value in seeds.items():
            cell_file(tmp_path, arm, seed).write_text(json.dumps(cell(arm, seed, value)))
    cell_file(tmp_path, "base", 7).write_text("of a seed that the plan does not have")
    found = Grid.read(PLAN, tmp_path)
    assert found.cells == grid().cells
    path = write_report(found, tmp_path)
    text = path.read_text()
    for picture in ("levels.png", "differences.png"):
        assert f"]({picture})" in text
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_two_seeds_have_no_interval_and_no_p_value(monkeypatch):
    two = {arm: {seed: value for seed, value in seeds.items() if seed < 2} for arm, seeds in VALUES.items()}
    found = grid(two).difference("late", "base", "vlr")
    assert (found.mean, found.low, found.high, found.p, found.count) == (pytest.approx(-0.19), None, None, None, 2)
    assert grid(two).corrected("vlr") == {}
    assert grid().difference("late", "base", "vlr").low is not None
    assert "| late | 2 of 3 | 66.0 ± 5.7 (62.0) | -19.0 |  |  |  |" in equal_steps(grid(two), "vlr")
    assert "| late | 110 | base | 2 | 1.36 | -19.0 |" in equal_compute(grid(two))
    figures = []
    monkeypatch.setattr("crossvit.report.study_plots.save_png", lambda found, path: figures.append(found))
    for plot in (plot_levels, plot_differences):
        plot(grid(two), "unused")
    lines = [line for figure in figures for line in figure.axes[0].lines]
    assert not [line for line in lines if line.get_linewidth() == 1.2 and line.get_linestyle() == "-"]  # no whisker


def test_seeds_that_did_not_start_from_the_bases_weights_are_named():
    cells = {(arm, seed): cell(arm, seed, 0.5) for arm in ("base", "late", "twice") for seed in (0, 1)}
    assert Grid(PLAN, cells).trained_anew() == {}
    assert "own weights" not in to_markdown(Grid(PLAN, cells))
    cells["late", 1]["stages"][0] = stage("coco", "other weights")  # the same settings, another outcome
    cells["twice", 0]["stages"][0] = stage("coco of its own", "other weights")  # what the arm changes
    cells["twice", 1]["stages"][-1] = stage("twice", "other weights")  # the last stage is every arm's own
    assert Grid(PLAN, cells).trained_anew() == {"late": [1]}
    assert "**Not from the base's own weights:** late 1." in to_markdown(Grid(PLAN, cells))
    del cells["late", 1]["stages"][0]["weights"]  # a cell without digests
    assert Grid(PLAN, cells).trained_anew() == {}
    cells["late", 1]["stages"][0]["steps"] = 90
    assert Grid(PLAN, cells).trained_anew() == {"late": [1]}
    del cells["base", 1]
    assert Grid(PLAN, cells).trained_anew() == {}


def test_of_the_base_alone_there_are_no_differences_to_draw(tmp_path):
    text = write_report(grid({"base": VALUES["base"]}), tmp_path).read_text()
    assert (tmp_path / "levels.png").is_file() and not (tmp_path / "differences.png").exists()
    assert "differences.png" not in text


def test_what_is_null_is_left_out():
    study = {**vars(PLAN), "claims": {**PLAN.claims, "R1": None}, "longer": None, "families": None, "titles": None}
    plan = Plan.of(study)
    plan.check(PLAN.arms)
    assert "R1" not in plan.claims and "R2" in plan.claims
    assert "| R2 |" in to_markdown(grid(plan=plan))
    with pytest.raises(UserError, match="study.claims.R1: write what it says, and its evidence"):
        replace(PLAN, claims={"R1": {"says": "", "evidence": None}}).check(PLAN.arms)


def test_a_title_of_no_metric_is_named():
    node = {name: getattr(PLAN, name) for name in PLAN.__dataclass_fields__}
    assert Plan.of(node) == PLAN
    assert Plan.of(node | {"metrics": {**PLAN.metrics, "vlr": None}, "titles": {"vlr": "of one that is left out"}})
    with pytest.raises(UserError, match=r"study.titles.vrl: there is no such metric"):
        Plan.of(node | {"titles": {"vrl": "VLR true/false"}})


def test_an_arm_that_cannot_have_a_figure_is_not_one_that_lacks_it():
    cells = {(arm, seed): cell(arm, seed, 0.5) for arm in ("base", "late") for seed in (0, 1, 2)}
    for seed in (0, 1, 2):
        cells["late", seed]["table"] = []
    assert "| late | 0 of 3 | no figure |  |  |  |  |" in equal_steps(Grid(PLAN, cells), "vlr")


def test_a_metric_without_a_title_goes_by_its_name():
    assert (PLAN.title("vlr"), PLAN.title("both")) == ("VLR true/false", "both")


def test_the_pictures_have_a_line_for_each_arm_that_has_been_begun(monkeypatch):
    figures = []
    monkeypatch.setattr("crossvit.report.study_plots.save_png", lambda found, path: figures.append(found))
    many = replace(PLAN, metrics=PLAN.metrics | {f"more {k}": ["vlr/Acc@1"] for k in range(3)})
    for plot in (plot_levels, plot_differences):
        plot(grid(plan=many), "unused")
    assert [len(found.axes) for found in figures] == [5, 5]  # in two rows, without the panels that are left over
    for found, arms in zip(figures, (["base", "late", "twice"], ["late", "twice"]), strict=True):  # not dear
        assert [label.get_text() for label in found.axes[0].get_yticklabels()] == arms
    levels, differences = (found.axes[0] for found in figures)
    assert [list(line.get_xdata()) for line in levels.lines if line.get_marker() == "o"] == [
        pytest.approx([100 * value for value in seeds.values()]) for seeds in VALUES.values()
    ]
    whisker = next(line.get_xdata() for line in levels.lines if list(line.get_ydata()) == [0, 0])
    assert whisker[1] == 100  # that of base would end at 106
    late = sum(VALUES["late"][k] - VALUES["base"][k] for k in range(3)) / 3
    means = [line.get_xdata()[0] for line in differences.lines if line.get_marker() == "|"]
    assert means[0] == pytest.approx(100 * late) and len(means) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps(cell("late", 0, 0.5)), '{"arm": "base", "seed": 0}'])
def test_a_file_that_is_no_such_cell(tmp_path, content):
    cell_file(tmp_path, "base", 0).write_text(content)
    with pytest.raises(UserError, match=r"base-seed0.json is not the cell of arm base and seed 0"):
        Grid.read(PLAN, tmp_path)


def test_a_cell_that_no_report_would_show():
    PLAN.check_cell("late", 2)
    with pytest.raises(UserError, match=r"arm=lat is not in study.arms \(base, late, twice, dear\)"):
        PLAN.check_cell("lat", 2)
    with pytest.raises(UserError, match=r"seed=3 is not in study.seeds \(0, 1, 2\)"):
        PLAN.check_cell("late", 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": []}, "study.seeds"),
        ({"seeds": [1, 1]}, "study.seeds"),
        ({"base": "bsae"}, "study.base: 'bsae'"),
        ({"longer": ["thrice"]}, "study.longer: 'thrice'"),
        ({"families": {"fusion": ["mergde"]}}, "study.families.fusion: 'mergde'"),
        ({"families": {"a": ["late"], "b": ["late"]}}, "'late' stands in two"),
        ({"arms": [*PLAN.arms, "mergde"]}, "study.arms: there is no arm 'mergde'"),
        (
            {"claims": {"R1": {"says": "", "evidence": [PLAN.claims["R1"]["evidence"][0] | {"than": "baes"}]}}},
            "study.claims.R1: there is no arm 'baes'",
        ),
        (
            {"claims": {"R1": {"says": "", "evidence": [PLAN.claims["R1"]["evidence"][0] | {"margin": -1}]}}},
            "margin -1",
        ),
        ({"metrics": {}}, "study.metrics"),
        ({"primary": "vrl"}, r"study.primary=vrl: choose one of study.metrics \(vlr, both\)"),
        (
            {
                "claims": {
                    "R1": {"says": "", "evidence": [PLAN.claims["R1"]["evidence"][0] | {"than": {"metric": "x"}}]}
                }
            },
            "metric 'x' is not in study.metrics",
        ),
        (
            {
                "claims": {
                    "R1": {"says": "", "evidence": [PLAN.claims["R1"]["evidence"][0] | {"than": {"arm": "base"}}]}
                }
            },
            "name an arm, a number or",
        ),
        (
            {"claims": {"R1": {"says": "", "evidence": [PLAN.claims["R2"]["evidence"][0] | {"metric": "vrl"}]}}},
            "metric 'vrl'",
        ),
        (
            {"claims": {"R1": {"says": "", "evidence": [PLAN.claims["R2"]["evidence"][0] | {"expected": "better"}]}}},
            "'better'",
        ),
    ],
)
def test_a_plan_that_makes_no_sense(changed, message):
    PLAN.check(PLAN.arms)
    with pytest.raises(UserError, match=message):
        replace(PLAN, **changed).check([*PLAN.arms, "there"])
