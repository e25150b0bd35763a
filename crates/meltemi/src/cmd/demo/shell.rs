// SPDX-License-Identifier: Apache-2.0
//! Runs one step of the walkthrough as a user types it, and holds its output against what must be seen.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// One step: what is typed and what must be seen.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// What the step is about, printed before it.
    pub say: &'static str,
    /// What is typed, for `bash`.
    pub run: String,
    /// The exit code that must be seen.
    pub code: i32,
    /// Texts that must be in the output.
    pub shows: Vec<&'static str>,
    /// Texts that must not be in the output.
    pub hides: Vec<&'static str>,
    /// Repeated until it holds, for at most this long; run once when zero.
    pub within: Duration,
}

impl Step {
    /// What is typed ends well and shows these texts.
    pub fn new<const N: usize>(say: &'static str, run: impl Into<String>, shows: [&'static str; N]) -> Self {
        Self { say, run: run.into(), shows: shows.into(), ..Self::default() }
    }

    /// It ends with this code instead.
    pub fn exits(self, code: i32) -> Self {
        Self { code, ..self }
    }

    /// These texts are not shown.
    pub fn hides<const N: usize>(self, texts: [&'static str; N]) -> Self {
        Self { hides: texts.into(), ..self }
    }

    /// It may take this long, and is repeated until then.
    pub fn within(self, limit: Duration) -> Self {
        Self { within: limit, ..self }
    }
}

/// Where the steps run.
#[derive(Clone, Debug)]
pub struct Shell {
    /// Working directory: has `samples/`.
    pub dir: PathBuf,
    /// Kubeconfig of the mesh.
    pub kubeconfig: PathBuf,
    /// Directories searched before `$PATH`: the links `meltemi` and `istioctl`, and a chosen kubectl.
    pub path: Vec<PathBuf>,
}

/// What a command printed, both streams in order, and its exit code.
#[derive(Clone, Debug)]
struct Seen {
    output: String,
    code: i32,
}

/// Longest that a single command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

impl Shell {
    /// Runs a step, prints it with its real output, and fails with what did not hold.
    pub fn step(&self, step: &Step) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n# {}\n$ {}", step.say, step.run)?;
        out.flush()?;
        let begun = Instant::now();
        loop {
            let seen = self.seen(&step.run)?;
            match fault(step, &seen) {
                None => {
                    write!(out, "{}", seen.output)?;
                    if !seen.output.is_empty() && !seen.output.ends_with('\n') {
                        writeln!(out)?;
                    }
                    writeln!(out, "✔ as expected")?;
                    return Ok(());
                }
                Some(_) if begun.elapsed() < step.within => std::thread::sleep(Duration::from_millis(100)),
                Some(fault) => {
                    writeln!(out, "{}", seen.output)?;
                    bail!("step {:?} did not hold: {fault}", step.say);
                }
            }
        }
    }

    /// Starts a command in the background; the caller ends it.
    pub fn background(&self, run: &str) -> anyhow::Result<Background> {
        println!("\n$ {run} &");
        // `exec` so that the process that is ended is the command and not a shell around it.
        let child =
            self.command(&format!("exec {run}")).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Background(child))
    }

    fn command(&self, run: &str) -> Command {
        let mut command = Command::new("bash");
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let all = self.path.iter().cloned().chain(std::env::split_paths(&inherited));
        let path = std::env::join_paths(all).unwrap_or(inherited);
        command
            .args(["-c", run])
            .current_dir(&self.dir)
            .env("PATH", path)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null());
        command
    }

    fn seen(&self, run: &str) -> anyhow::Result<Seen> {
        // One pipe for both streams keeps their order; `timeout` bounds a command that hangs.
        let limited =
            format!("exec 2>&1; exec timeout {} bash -c \"$MELTEMI_STEP\"", COMMAND_LIMIT.as_secs());
        let output = self
            .command(&limited)
            .env("MELTEMI_STEP", run)
            .output()
            .context("running bash (is it installed?)")?;
        Ok(Seen {
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            code: output.status.code().unwrap_or(-1),
        })
    }
}

/// A background command, ended when dropped.
#[derive(Debug)]
pub struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fault(step: &Step, seen: &Seen) -> Option<String> {
    if seen.code != step.code {
        return Some(format!("exit code {} instead of {}", seen.code, step.code));
    }
    if let Some(text) = step.shows.iter().find(|text| !seen.output.contains(**text)) {
        return Some(format!("the output does not show {text:?}"));
    }
    step.hides
        .iter()
        .find(|text| seen.output.contains(**text))
        .map(|text| format!("the output shows {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_does_not_hold_is_a_fault() {
        let step = Step::new("", "", ["Running"]).hides(["Error"]);
        let cases = [
            ("Running", 0, None),
            ("Running", 1, Some("exit code 1 instead of 0")),
            ("Pending", 0, Some("the output does not show \"Running\"")),
            ("Running Error", 0, Some("the output shows \"Error\"")),
        ];
        for (output, code, expected) in cases {
            let seen = Seen { output: output.into(), code };
            assert_eq!(fault(&step, &seen).as_deref(), expected, "{output} {code}");
        }
    }
}
