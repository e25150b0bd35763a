// SPDX-License-Identifier: Apache-2.0
//! The guide as a reader types it: every `console` block of these pages is run, and what it prints is compared.

use std::path::Path;
use std::time::{Duration, Instant};

use super::machine::{KUBECTLS, LIMIT, Machine};

/// Pages in the order in which a reader comes to them; all of them on one mesh.
const PAGES: [&str; 3] = ["docs/guide/first-policy.md", "docs/guide/waypoints.md", "docs/guide/concepts.md"];
/// Stands for any text in a line, and alone for any lines.
const ANYTHING: char = '…';
/// How a page writes an exit code other than 0: as `kubectl exec` does, or alone.
const EXIT_CODES: [&str; 2] = ["command terminated with exit code ", "exit code "];

struct Example {
    command: String,
    shows: Vec<String>,
    code: i32,
}

/// The commands of a page: lines that begin with `$ `, continued by `> `, each with the output that follows it.
fn examples(page: &str) -> Vec<Example> {
    let mut all: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ => {
                if let Some(command) = line.strip_prefix("$ ") {
                    all.push(Example { command: command.to_owned(), shows: Vec::new(), code: 0 });
                    continue;
                }
                let example = all.last_mut().expect("a console block begins with a command");
                if let Some(more) = line.strip_prefix("> ") {
                    example.command += "\n";
                    example.command += more;
                    continue;
                }
                if let Some(code) = EXIT_CODES.iter().find_map(|words| line.strip_prefix(words)) {
                    example.code = code.parse().unwrap();
                }
                if !line.starts_with("exit code ") {
                    example.shows.push(line.to_owned());
                }
            }
        }
    }
    all
}

/// Whether the expected lines come in this order in a text; columns may be wider or narrower.
fn shows(text: &str, expected: &[String]) -> bool {
    let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines = text.lines().map(squeeze);
    expected.iter().all(|expected| {
        let expected = squeeze(expected);
        let parts: Vec<&str> = expected.split(ANYTHING).map(str::trim).collect();
        parts.iter().all(|part| part.is_empty()) || lines.any(|line| holds_in_order(&line, &parts))
    })
}

fn holds_in_order(line: &str, parts: &[&str]) -> bool {
    let mut rest = line;
    parts.iter().all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[test]
fn a_page_is_read_and_an_output_compared_as_the_pages_write_them() {
    let page = "text\n```sh\n$ not run\n```\n```console\n$ cat <<END\n> a\n> END\na … c\n$ false\nexit code 1\n```\n";
    let read = examples(page);
    assert_eq!(read.iter().map(|e| e.command.as_str()).collect::<Vec<_>>(), ["cat <<END\na\nEND", "false"]);
    assert_eq!((read[0].code, read[1].code, read[1].shows.len()), (0, 1, 0));
    for (text, expected, holds) in [
        ("a  b   c\nd", vec!["a … c", "d"], true),
        ("a b c\nd", vec!["d", "a … c"], false),
        ("x\ny\nz", vec!["x", "…", "z"], true),
        ("abc", vec!["…c…a"], false),
        ("RBAC: access denied", vec!["RBAC: access granted"], false),
    ] {
        let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(shows(text, &expected), holds, "{text:?} {expected:?}");
    }
}

#[test]
fn every_command_of_the_guide_does_what_the_guide_says() {
    let machine = Machine::start(KUBECTLS[1]);
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let mut run = 0;
    for page in PAGES {
        for example in examples(&std::fs::read_to_string(repository.join(page)).unwrap()) {
            follow(&machine, page, &example);
            run += 1;
        }
    }
    assert!(run > 12, "only {run} commands found: the pages look otherwise than this test thinks");
}

/// Runs a command until it does what the page says: some of it follows from a write on its own time.
fn follow(machine: &Machine, page: &str, example: &Example) {
    let begun = Instant::now();
    loop {
        let (text, code) = machine.run(&example.command);
        if code == Some(example.code) && shows(&text, &example.shows) {
            return;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "{page}\n$ {}\n{text}\nexit {code:?} instead of {}, must show {:#?}",
            example.command,
            example.code,
            example.shows,
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Markdown files of the repository, without what is built.
fn documents(folder: &Path, all: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                documents(&path, all);
            }
        } else if path.extension().is_some_and(|end| end == "md") {
            all.push(path);
        }
    }
}

#[test]
fn every_link_between_documents_leads_to_a_file() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let mut all = Vec::new();
    documents(repository, &mut all);
    let mut checked = 0;
    for page in all {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let target = page.parent().unwrap().join(link);
            assert!(target.exists(), "{}: {link} does not exist", page.display());
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} links found");
}
