//! `--live` on a terminal, on a narrow one, on one without colours, and without a terminal; `--log-format` beside it.
//!
//! The terminal is a pseudo-terminal of the system, and a small model of one that reads what was drawn.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};

/// The view begins with it.
const HEADING: &str = "tiny-ping-pong ping_pong:3";
const PROMPTS: [&str; 6] = ["--prompt", "Once upon a time", "--prompt", "Long ago, a", "--prompt", "Nora"];

fn rally(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rally"));
    let run = ["run", "graphs/tiny-ping-pong.json", "--live", "--max-tokens", "300"];
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(run).args(PROMPTS).args(arguments).stdin(Stdio::null());
    for variable in ["NO_COLOR", "RALLY_LOG", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command.env("TERM", "xterm-256color");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Terminal {
    controller: OwnedFd,
    side: File,
}

impl Terminal {
    fn new(rows: u16, columns: u16) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("the system has pseudo-terminals");
        grantpt(&controller).expect("it is ours");
        unlockpt(&controller).expect("it is ours");
        let name = ptsname(&controller, Vec::new()).expect("it has a name");
        let side = File::options().read(true).write(true).open(OsStr::from_bytes(name.as_bytes()));
        let side = side.expect("it can be opened");
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&side, size).expect("it has a size");
        Self { controller, side }
    }

    /// Runs `command` with its stderr here. What was written here, and its stdout.
    fn run(self, mut command: Command) -> (String, String) {
        let Self { controller, side } = self;
        let mut child = command.stderr(side).stdout(Stdio::piped()).spawn().expect("the binary starts");
        // Its copy of the terminal's other side is the command's alone; with it gone, reading ends.
        drop(command);
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let reader = std::thread::spawn(move || {
            let mut drawn = Vec::new();
            // Linux ends the reading of a terminal whose other side is closed with an error.
            let _ = File::from(controller).read_to_end(&mut drawn);
            text(&drawn)
        });
        let mut results = String::new();
        stdout.read_to_string(&mut results).expect("results are text");
        assert!(child.wait().expect("the child is ours").success());
        (reader.join().expect("the reader does not panic"), results)
    }
}

/// What was drawn from the view's first heading on; before it a bar shows weights being loaded.
fn view(drawn: &str) -> &str {
    &drawn[drawn.find(HEADING).expect("there was a view")..]
}

/// Without the lines that are printed once all is over.
fn before_digest(drawn: &str) -> &str {
    &drawn[..drawn.find("3 requests, ").expect("there is a digest")]
}

/// What is on a screen that is high enough after `written`, line by line; and the widest line that ever was.
fn screen(written: &str) -> (Vec<String>, usize) {
    let (mut lines, mut row, mut column, mut widest) = (vec![Vec::<char>::new()], 0, 0, 0);
    let mut characters = written.chars();
    while let Some(character) = characters.next() {
        match character {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                lines.resize(lines.len().max(row + 1), Vec::new());
            }
            '\x1b' => {
                let code = control_sequence(&mut characters);
                match (code.trim_end_matches(char::is_alphabetic).parse(), code.chars().last()) {
                    (Ok(up), Some('A')) => row = row.checked_sub(up).expect("never above the first line"),
                    (_, Some('J')) => {
                        lines.truncate(row + 1);
                        lines[row].truncate(column);
                    }
                    (_, Some('m')) => {}
                    (_, other) => panic!("{other:?} is more than this model of a terminal knows: {code}"),
                }
            }
            character => {
                let line: &mut Vec<char> = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = character;
                column += 1;
                widest = widest.max(column);
            }
        }
    }
    (lines.into_iter().map(|line| line.into_iter().collect()).collect(), widest)
}

/// What follows the escape and its bracket, up to the letter that ends it.
fn control_sequence(characters: &mut impl Iterator<Item = char>) -> String {
    let mut taken = String::new();
    for character in characters.skip(1) {
        taken.push(character);
        if character.is_ascii_alphabetic() {
            break;
        }
    }
    taken
}

/// Texts of the prompts, which follow each other with an empty line between.
fn stories(results: &str) {
    assert_eq!(results.split("\n\n").count(), 3, "{results}");
    assert!(results.starts_with("Once upon a time") && !results.contains('\x1b'), "{results}");
}

#[test]
fn a_terminal_is_redrawn_in_place() {
    let (drawn, results) = Terminal::new(24, 80).run(rally(&[]));
    stories(&results);
    let (lines, _) = screen(view(&drawn));
    let (_, widest) = screen(view(before_digest(&drawn)));
    assert!(widest < 80, "{widest} columns");
    assert!(drawn.contains("\x1b[32m█"), "busy lanes are drawn in colour: {drawn}");
    let headings: Vec<usize> = (0..lines.len()).filter(|line| lines[*line].starts_with(HEADING)).collect();
    assert_eq!(headings.len(), 1, "one view is left: {lines:#?}");
    let view = &lines[headings[0]..];
    assert!(view[0].ends_with(" s  3 of 3 requests done"), "{view:#?}");
    assert!(view[1].starts_with("attn ") && view[1].contains(" % busy"), "{view:#?}");
    assert!(view[2].starts_with("ffn  "), "{view:#?}");
    assert!(view[3].starts_with("TPOT  p50 ") && view[3].contains("target 50 ms kept by"), "{view:#?}");
    assert!(view[4].contains(" tokens/s  0 running  0 waiting  KV 0 %"), "{view:#?}");
    assert!(view[5..].iter().any(|line| line.starts_with("3 requests, ")), "the digest is below: {view:#?}");
}

#[test]
fn a_narrow_terminal_without_colours_is_not_overrun() {
    let mut command = rally(&[]);
    command.env("NO_COLOR", "1");
    let (drawn, results) = Terminal::new(5, 40).run(command);
    stories(&results);
    let (lines, widest) = screen(view(before_digest(&drawn)));
    assert!(widest < 40 && !drawn.contains("\x1b[3"), "{widest} columns: {drawn}");
    // A screen of five rows: four of them are drawn, and the cursor is in the fifth.
    assert!(lines.iter().filter(|line| !line.is_empty()).count() <= 4, "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("lanes more")), "{lines:#?}");
}

fn without_terminal(command: &mut Command) -> (String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
    assert!(status.success(), "{}", text(&stderr));
    (text(&stdout), text(&stderr))
}

#[test]
fn without_a_terminal_there_are_lines_on_stderr_and_results_on_stdout() {
    let (results, progress) = without_terminal(&mut rally(&[]));
    stories(&results);
    assert!(!progress.contains('\x1b'), "{progress}");
    let line = progress.lines().find(|line| line.contains("3 of 3 requests done")).expect("the last line is the whole");
    assert!(line.starts_with("tiny-ping-pong ping_pong:3: ") && line.contains("busy: attn "), "{line}");
    // A terminal that cannot be redrawn is none.
    let mut dumb = rally(&[]);
    dumb.env("TERM", "dumb");
    let (drawn, _) = Terminal::new(24, 200).run(dumb);
    assert!(drawn.contains("3 of 3 requests done, TPOT") && !drawn.contains("\x1b["), "{drawn}");
}

#[test]
fn a_bench_shows_each_of_its_rounds() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_rally"));
    let compare = ["--compare", "sequential:1,ping_pong:2", "--repeats", "1", "--format", "json", "--num-prompts", "4"];
    bench.current_dir(env!("CARGO_MANIFEST_DIR")).args(["bench", "graphs/tiny-ping-pong.json", "--live"]).args(compare);
    let (result, progress) = without_terminal(bench.args(["--metrics", "127.0.0.1:0"]).stdin(Stdio::null()));
    serde_json::from_str::<serde_json::Value>(&result).expect("one object is all of stdout");
    assert!(progress.starts_with("metrics on http://127.0.0.1:"), "{progress}");
    for title in ["sequential:1 1/1: ", "ping_pong:2 1/1: "] {
        let last = progress.lines().rfind(|line| line.starts_with(title)).expect("every round is shown");
        assert!(last.contains("4 of 4 requests done"), "the warm-up is not watched: {last}");
    }
}

#[test]
fn logs_are_lines_of_json_if_asked_for_and_quiet_if_not() {
    let (_, quiet) = without_terminal(&mut rally(&["--log-format", "json"]));
    assert!(quiet.lines().all(|line| !line.starts_with('{')), "nothing is logged at default levels: {quiet}");
    for variable in ["RALLY_LOG", "RUST_LOG"] {
        let mut command = rally(&["--log-format", "json"]);
        command.env(variable, "info");
        let (results, logs) = without_terminal(&mut command);
        stories(&results);
        let objects = logs.lines().filter(|line| line.starts_with('{'));
        let objects: Vec<serde_json::Value> =
            objects.map(|line| serde_json::from_str(line).expect("a line is an object")).collect();
        let decoding = objects.iter().find(|object| object["fields"]["message"] == "decoding");
        assert_eq!(decoding.expect("a run is logged")["fields"]["requests"], 3, "{variable}: {logs}");
        assert_eq!(objects[0]["level"], "INFO");
    }
    let output = rally(&[]).env("RALLY_LOG", "a=b=c").output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("RALLY_LOG=a=b=c"), "{}", text(&output.stderr));
}
