"""Break one protection at a time in a copy of the tree, and see the tests that hold it fail.

    python tests/mutations.py            all of them; exit code 1 where one survives
    python tests/mutations.py lock csv   those whose name has one of the words

Prints a table in Markdown, the one of docs/reliability.md.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("transferkit", "tests", "recipes", "data_samples", "pyproject.toml", "README.md")
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
LONGEST_S = 900
LOOP = "tests/training/test_loop.py"


@dataclass(frozen=True)
class Mutation:
    """One protection taken away. old: a text that `file` has once. tests: each has to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "files written in place",
        "transferkit/files/atomic_write.py",
        'path.with_name(f".{path.name}.tmp")',
        "path",
        ("tests/runs/test_folder.py::test_failed_write_leaves_old_file_and_no_other",),
    ),
    Mutation(
        "checksum of a model not compared",
        "transferkit/files/tensor_files.py",
        "if written is not None and written != checksum(tensors):",
        "if False:",
        ("tests/files/test_tensor_files.py::test_a_flipped_bit_is_refused",),
    ),
    Mutation(
        "checksum of a checkpoint not compared",
        "transferkit/files/tensor_files.py",
        "if broken is not None:",
        "if False:",
        (
            "tests/files/test_tensor_files.py::test_a_changed_checkpoint_is_refused_though_torch_loads_it",
        ),
    ),
    Mutation(
        "checksum of a cached row not compared",
        "transferkit/training/boundary_cache.py",
        "row * self.row_bytes)) != expected:",
        "row * self.row_bytes)) < 0 * expected:",
        (
            "tests/training/test_boundary_cache.py"
            "::test_a_damaged_row_and_all_after_it_are_computed_again",
        ),
    ),
    Mutation(
        "SHA-256 of the weights in the package not compared",
        "transferkit/backbones/create.py",
        "if digest != embedded.sha256:",
        "if False:",
        ("tests/backbones/test_create.py::TestEmbedded::test_changed_file_is_refused",),
    ),
    Mutation(
        "resumed one epoch late",
        "transferkit/training/checkpoints.py",
        'RunState.from_dict(checkpoint["state"])',
        'RunState.from_dict({**checkpoint["state"], "epoch": checkpoint["state"]["epoch"] + 1})',
        (f"{LOOP}::test_a_resumed_run_equals_an_uninterrupted_one",),
    ),
    Mutation(
        "resumed one step late",
        "transferkit/training/midway.py",
        'return Tally(**saved["tally"])',
        'return Tally(**{**saved["tally"], "steps": saved["tally"]["steps"] + 1})',
        (f"{LOOP}::test_a_run_that_is_stopped_within_an_epoch_goes_on_from_that_step",),
    ),
    Mutation(
        "pretraining resumed one epoch late",
        "transferkit/pretraining/run.py",
        'PretrainingState(**checkpoint["state"])',
        'PretrainingState(**{**checkpoint["state"], "epoch": checkpoint["state"]["epoch"] + 1})',
        (
            "tests/pretraining/test_pretraining_loop.py"
            "::test_interrupted_and_resumed_equals_uninterrupted",
        ),
    ),
    Mutation(
        "a stage entered again",
        "transferkit/training/loop.py",
        "if run.state.entered < run.state.stage else",
        "if run.state.epoch == 0 and run.state.halvings == 0 else",
        (
            "tests/training/test_entering.py"
            "::test_a_stage_that_is_stopped_in_its_first_epoch_is_not_entered_again",
        ),
    ),
    Mutation(
        "rewound into the middle of an epoch",
        "transferkit/training/checkpoints.py",
        'return take(run, "last", last.get("epoch_start") or last)',
        "return last",
        (
            "tests/training/test_divergence.py"
            "::test_rewinding_goes_to_the_start_of_the_epoch_though_a_step_of_it_was_saved",
        ),
    ),
    Mutation(
        "the end of a run not compared with its epochs",
        "transferkit/training/end_check.py",
        "if not (other <",
        "if False and not (other <",
        (
            "tests/training/test_end_check.py"
            "::test_a_best_checkpoint_that_is_not_what_was_recorded_is_not_passed_off_as_it",
        ),
    ),
    Mutation(
        "the end of a run not compared with its best checkpoint",
        "transferkit/training/end_check.py",
        "!= weights_digest(kept):",
        "== 0:",
        (
            "tests/training/test_end_check.py"
            "::test_a_run_that_forgets_to_restore_its_best_weights_says_so",
        ),
    ),
    Mutation(
        "a run that diverged leaves no model",
        "transferkit/verbs/finetune.py",
        "            end_early(run, show, problem)\n",
        "            pass\n",
        (
            "tests/training/test_divergence.py"
            "::test_a_run_that_stops_ends_with_its_best_weights_and_one_can_go_on",
        ),
    ),
    Mutation(
        "what is cached decided anew",
        "transferkit/training/cache_choice.py",
        "if decided == UNDECIDED:",
        "if True:",
        (
            "tests/training/test_entering.py"
            "::test_a_run_whose_cache_fits_no_more_goes_on_to_the_same_weights_or_not_at_all",
            "tests/training/test_entering.py"
            "::test_a_run_that_began_live_stays_so_though_there_is_room_now",
        ),
    ),
    Mutation(
        "a torn last row kept",
        "transferkit/files/row_files.py",
        'if line.endswith(b"\\n") and quotes % 2 == 0:',
        "if True:",
        (
            "tests/files/test_row_files.py::test_wherever_a_job_is_killed_the_next_one_ends_the_same",
        ),
    ),
    Mutation(
        "lock not taken",
        "transferkit/runs/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_UN",
        ("tests/runs/test_lock.py::test_a_second_process_is_turned_away_until_the_first_is_gone",),
    ),
    Mutation(
        "run folder not held while it begins",
        "transferkit/runs/creation.py",
        "        hold(held, path)\n",
        "",
        ("tests/runs/test_folder.py::test_a_folder_is_held_from_its_creation_on",),
    ),
    Mutation(
        "drafts written through links",
        "transferkit/files/atomic_write.py",
        '    path.unlink(missing_ok=True)\n    return path.open("xb")',
        '    return path.open("wb")',
        (
            "tests/files/test_atomic_write.py"
            "::test_a_draft_is_never_written_through_what_lies_there",
        ),
    ),
    Mutation(
        "rows of several models in one file",
        "transferkit/files/row_files.py",
        "if there.get(name) != now.get(name)]:",
        "if False]:",
        (
            "tests/files/test_row_files.py"
            "::test_rows_of_another_model_or_other_options_are_not_mixed",
        ),
    ),
    Mutation(
        "weights_only dropped for weights",
        "transferkit/backbones/weights.py",
        "weights_only=True",
        "weights_only=False",
        ("tests/backbones/test_weights.py::test_code_in_a_pickle_never_runs",),
    ),
    Mutation(
        "weights_only dropped for checkpoints",
        "transferkit/runs/folder.py",
        "weights_only=True",
        "weights_only=False",
        ("tests/hostile/test_foreign_models.py::test_a_pickle_in_a_run_folder_runs_nothing",),
    ),
    Mutation(
        "programs opened without --trust",
        "transferkit/inference/exported.py",
        "if path.suffix in PROGRAMS and not trusted:",
        "if False:",
        ("tests/hostile/test_foreign_models.py::test_an_archive_that_is_a_program_needs_trust",),
    ),
    Mutation(
        "tensors of ONNX models in other files",
        "transferkit/inference/exported.py",
        'raise ValueError("it has tensors in other files")',
        "pass",
        (
            "tests/hostile/test_foreign_models.py"
            "::test_an_onnx_model_that_names_other_files_is_refused",
        ),
    ),
    Mutation(
        "weights of OpenVINO models behind links",
        "transferkit/inference/exported.py",
        "if os.path.islink(weights) and not is_inside(os.path.realpath(weights), path):",
        "if False:",
        (
            "tests/hostile/test_foreign_models.py"
            "::test_the_weights_of_an_openvino_model_lie_beside_it",
        ),
    ),
    Mutation(
        "newer formats read",
        "transferkit/runs/folder.py",
        "if version > FORMAT_VERSION:",
        "if False:",
        (
            "tests/runs/test_folder.py::test_newer_format_refused",
            "tests/end_to_end/test_first_runs.py"
            "::test_a_run_of_a_newer_format_is_refused_with_advice",
        ),
    ),
    Mutation(
        "formulas in CSV cells",
        "transferkit/files/csv_rows.py",
        'return "\'" + value',
        "return value",
        (
            "tests/files/test_csv_rows.py::test_formula_like_text_is_escaped",
            "tests/runs/test_folder.py::test_predictions_escape_formulas",
            "tests/files/test_row_files.py::test_formulas_are_escaped_and_come_back",
        ),
    ),
    Mutation(
        "manifests name files anywhere",
        "transferkit/data/manifest.py",
        "if os.path.isabs(location) and not rows.allow_outside:",
        "if False:",
        ("tests/data/test_manifest.py::test_paths_start_from_data_where_it_is_given",),
    ),
    Mutation(
        "archives name members anywhere",
        "transferkit/data/tar_members.py",
        'if info.name.startswith("/") or ".." in parts:',
        "if False:",
        ("tests/data/test_tar_members.py::test_a_name_that_leads_outside_refuses_the_archive",),
    ),
    Mutation(
        "no limit of pixels",
        "transferkit/data/decode.py",
        "if pixels > max_pixels:",
        "if False:",
        (
            "tests/data/test_decode.py"
            "::test_a_picture_over_the_limit_is_refused_before_it_is_decoded",
        ),
    ),
    Mutation(
        "HTML not escaped",
        "transferkit/reporting/page.py",
        "autoescape=True",
        "autoescape=False",
        ("tests/reporting/test_page.py::test_names_cannot_become_code",),
    ),
    Mutation(
        "view answers under any host",
        "transferkit/viewing/gate.py",
        "if len(named) != 1 or named[0] not in hosts(port):",
        "if False:",
        (
            "tests/viewing/test_gate.py::test_pages_are_given_to_their_own_address",
            "tests/viewing/test_gate.py::test_two_hosts_are_none",
        ),
    ),
    Mutation(
        "secrets in a run folder",
        "transferkit/runs/folder.py",
        "data = redacted(text).encode(",
        "data = text.encode(",
        ("tests/end_to_end/test_secrets.py::test_a_password_in_an_address_is_kept_nowhere",),
    ),
    Mutation(
        "secrets on the screen",
        "transferkit/console.py",
        '}", redacted(text))',
        '}", text)',
        ("tests/end_to_end/test_secrets.py::test_messages_and_tracebacks_hide_secrets",),
    ),
    Mutation(
        "blocks that start random thought to stay frozen",
        "transferkit/config/__init__.py",
        "return not self.backbone.has_random_blocks",
        "return True",
        (
            "tests/config/test_config.py::test_options_of_blocks_are_taken_where_random_blocks_train",
            "tests/training/test_stages.py::test_the_options_tell_which_plans_train_the_head_alone",
        ),
    ),
    Mutation(
        "streams that break end a run",
        "transferkit/cli/__init__.py",
        "    outlast()\n    try:",
        "    try:",
        (
            "tests/end_to_end/test_standard_streams.py"
            "::test_a_run_is_finished_though_nobody_can_read_it",
        ),
    ),
    Mutation(
        "a hangup ends a run at once",
        "transferkit/stopping.py",
        "*([HANGUP] if HANGUP else [])",
        "",
        ("tests/test_stopping.py::test_a_hangup_asks_once_however_often_it_is_told",),
    ),
    Mutation(
        "view answers without the token",
        "transferkit/viewing/server.py",
        "if not (self.server.opens(given) if in_address",
        "if not (True if True",
        ("tests/viewing/test_server.py::test_who_has_not_the_token_is_given_nothing",),
    ),
    Mutation(
        "strangers keep their connections to view",
        "transferkit/viewing/server.py",
        "request.shutdown(socket.SHUT_RDWR)",
        "pass",
        (
            "tests/viewing/test_server.py::test_slow_strangers_keep_nobody_out",
            "tests/viewing/test_server.py::test_a_request_has_to_arrive_in_time",
        ),
    ),
    Mutation(
        "folders merged into a class without a word",
        "transferkit/data/listing.py",
        "if first.setdefault(label, name) != name:",
        "if False:",
        ("tests/data/test_names_alike.py::test_folders_that_become_one_class_are_told_of",),
    ),
    Mutation(
        "no advice for an unusable cache",
        "transferkit/files/cache_dir.py",
        "name another place with the variable TRANSFERKIT_CACHE, or --cache-dir where there is one",
        "",
        (
            "tests/training/test_boundary_cache.py"
            "::test_without_a_home_the_advice_is_another_place",
            "tests/data/test_addresses.py::test_copies_that_cannot_be_kept_are_told_of_with_advice",
        ),
    ),
    Mutation(
        "OpenMP's threads spin",
        "transferkit/cli/__init__.py",
        "    sleep_soon()  #",
        "    #",
        ("tests/backbones/test_waiting.py::test_openmp_hears_of_it_however_a_command_is_started",),
    ),
    Mutation(
        "the user's way of waiting overruled",
        "transferkit/backbones/waiting.py",
        "if not any(name in os.environ for name in CHOICES):",
        "if True:",
        ("tests/backbones/test_waiting.py::test_what_the_user_chose_stays",),
    ),
    Mutation(
        "ONNX Runtime's threads spin",
        "transferkit/backbones/engine.py",
        "options.add_session_config_entry(key, value)",
        "pass",
        ("tests/backbones/test_engine.py::test_threads_of_onnx_runtime_sleep_while_they_wait",),
    ),
    Mutation(
        "files of others overwritten by predict",
        "transferkit/files/row_files.py",
        "        if not is_ours(path):",
        "        if False:",
        ("tests/files/test_row_files.py::test_what_somebody_else_wrote_is_not_overwritten",),
    ),
)


def misfits(mutation: Mutation) -> list[str]:
    """Return what of a mutation is no longer there: its text, or a test."""
    found = []
    if (ROOT / mutation.file).read_text().count(mutation.old) != 1:
        found.append(f"{mutation.name}: {mutation.file} has not once: {mutation.old}")
    for test in mutation.tests:
        file, name = test.partition("::")[0], test.rpartition("::")[2]
        if f"def {name}(" not in (ROOT / file).read_text():
            found.append(f"{mutation.name}: there is no {test}")
    return found


def copy_of_the_tree(folder: Path) -> Path:
    """Copy what the tests need; return the copy."""
    tree = folder / "tree"
    tree.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


def in_tree(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy, whose package comes before an installed one."""
    settings = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env=settings,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )


def survivors(tree: Path, mutation: Mutation) -> list[str]:
    """Apply a mutation to the copy, run its tests, undo it; return the tests that still pass."""
    path = tree / mutation.file
    before = path.read_text()
    path.write_text(before.replace(mutation.old, mutation.new))
    try:
        done = in_tree(tree, *PYTEST, *mutation.tests)
    finally:
        path.write_text(before)
    failed = re.findall(r"^FAILED (\S+?)(?:\[| |$)", done.stdout, re.MULTILINE)
    return [test for test in mutation.tests if test not in failed]


def main(words: list[str]) -> int:
    """Run the mutations whose name has one of the words; return the exit code."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    if problems := [problem for mutation in chosen for problem in misfits(mutation)]:
        print("\n".join(problems), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_tree(Path(folder))
        where = in_tree(tree, "-c", "import transferkit; print(transferkit.__file__)").stdout
        if not where.startswith(str(tree)):
            print(f"the tests would run {where.strip()}, not the copy", file=sys.stderr)
            return 1
        every = dict.fromkeys(test for mutation in chosen for test in mutation.tests)
        if in_tree(tree, *PYTEST, *every).returncode:
            print("some of the tests fail without any mutation", file=sys.stderr)
            return 1
        print("| what is broken | where | caught by | |\n| --- | --- | --- | --- |", flush=True)
        survived = 0
        for mutation in chosen:
            left = survivors(tree, mutation)
            survived += bool(left)
            tests = ", ".join(f"`{test.rpartition('::')[2]}`" for test in mutation.tests)
            verdict = f"SURVIVED {', '.join(left)}" if left else "caught"
            print(f"| {mutation.name} | `{mutation.file}` | {tests} | {verdict} |", flush=True)
    print(f"\n{len(chosen)} mutations, {len(chosen) - survived} caught, {survived} survived")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
