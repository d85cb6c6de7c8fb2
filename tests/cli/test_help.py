"""The help pages: nothing cut, the usual options first, every option once under its heading."""

from collections import Counter

import pytest
from typer.main import get_command

from transferkit import cli
from transferkit.cli import help
from transferkit.config import OptionField, option_fields
from transferkit.config.option import Option
from transferkit.errors import UserError

PROGRAM = get_command(cli.app)
COMMANDS = dict(PROGRAM.commands)  # type: ignore[attr-defined]
TABLE = {item.key.replace(".", "__"): item for item in option_fields()}
LONG = ("finetune", "plan", "find-lr", "pretrain", "predict", "evaluate", "view")


def page(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Return the lines of a help page."""
    assert not PROGRAM.main(list(words), prog_name="transferkit", standalone_mode=False)
    return capsys.readouterr().out.splitlines()


def flags(lines: list[str]) -> list[str]:
    """Return the long flags of a page in their order, without the other half of a pair."""
    rows = [line.split(" <")[0] for line in lines if line.startswith(("  -",))]
    return [row.split()[-1 if row.startswith("  -o,") else 0] for row in rows]


def shown(item: OptionField) -> str:
    """Return an option's flag as the page shows it."""
    flag, slash, _ = item.option.flag.partition("/")
    return "--[no-]" + flag.removeprefix("--") if slash else flag


def options_of(command: str) -> dict[str, OptionField]:
    """Return the options of the configuration that a command takes."""
    return {p.name: TABLE[p.name] for p in COMMANDS[command].params if p.name in TABLE}


def test_every_command_is_in_one_group_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    named = [name for names in help.GROUPS.values() for name in names]
    assert Counter(named) == Counter(dict.fromkeys(COMMANDS, 1))
    lines = page(capsys, "--help")
    headings = [line for line in lines if line in help.GROUPS]
    assert headings == ["Start", "Train", "Use", "Understand", "Share"]
    for heading, names in help.GROUPS.items():
        first = lines.index(heading) + 1
        rows = lines[first : first + len(names)]
        assert [row.split()[0] for row in rows] == list(names)
        assert all(row.endswith(".") and not row.endswith("..") for row in rows)


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_no_line_is_cut_or_wider_than_the_page(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = page(capsys, command, flag)
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert flag == "--help-all" or len(lines) <= 60


@pytest.mark.parametrize("command", LONG)
def test_the_first_page_has_the_usual_options_and_says_where_the_rest_is(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, options = page(capsys, command, "--help"), options_of(command)
    usual = [shown(item) for item in options.values() if item.option.usual]
    assert [flag for flag in flags(lines) if flag in map(shown, options.values())] == usual
    end = " ".join(lines[-4:])
    assert f"transferkit {command} --help-all lists all {len(options)} options" in end


@pytest.mark.parametrize("command", LONG)
def test_the_whole_page_has_every_option_once_under_its_heading(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, options = page(capsys, command, "--help-all"), options_of(command)
    sections = list(dict.fromkeys(item.key.split(".")[0] for item in options.values()))
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings[-len(sections) :] == [help.PANELS[section] for section in sections]
    for section in sections:
        first = lines.index(help.PANELS[section]) + 1
        last = lines.index("", first) if "" in lines[first:] else len(lines)
        wanted = [shown(i) for i in options.values() if i.key.startswith(f"{section}.")]
        assert flags(lines[first:last]) == wanted
        assert flags(page(capsys, command, "--help", section)) == wanted
    assert len(flags(lines)) == len(set(flags(lines)))


def test_what_finetune_users_need_is_usual() -> None:
    usual = {item.key for item in option_fields() if item.option.usual}
    wanted = {"training.budget", "backbone.name", "backbone.image_size", "augment.level"}
    wanted |= {"data.balance", "training.seed", "device.accelerator", "pretraining.method"}
    assert wanted | {"predict.mc_dropout"} <= usual
    assert {item.key.split(".")[0] for item in option_fields()} <= help.PANELS.keys()


def test_after_two_dashes_help_is_a_file_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("--help", "--help-all"):
        with pytest.raises(UserError, match="nowhere"):
            PROGRAM.main(["predict", "nowhere", "--", name], standalone_mode=False)
    assert "Usage" not in capsys.readouterr().out


def test_a_default_is_written_as_a_person_reads_it() -> None:
    def text(default: object, said: str = "") -> str:
        return OptionField("a.b", None, default, Option("--b", "", said)).shown_default

    assert [text(v) for v in (True, False, 1e-3, (0.2, 3), None, "x")] == [
        *("yes", "no", "0.001", "0.2,3", "", "x")
    ]
    assert text(None, "by method") == "by method"


def test_headings_are_bold_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert help._bold("Use") == "\x1b[1mUse\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert help._bold("Use") == "Use"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert help._bold("Use") == "Use"
