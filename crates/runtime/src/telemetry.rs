// SPDX-License-Identifier: Apache-2.0
//! Logging of a process: text or JSON to standard output, with a level that can be changed while running.

use std::sync::OnceLock;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `<time> <level> <target> <message> key=value…`, for people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    /// `json`, or `plain` (`text`, nothing), as `LOG_FORMAT` says it.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "plain" | "text" | "" => Ok(Self::Text),
            other => Err(format!("LOG_FORMAT={other:?}: expected json or plain")),
        }
    }
}

static RELOAD: OnceLock<reload::Handle<EnvFilter, tracing_subscriber::Registry>> = OnceLock::new();

/// Starts logging to standard error for this process; a second call changes nothing.
///
/// `directives` is in the syntax of `RUST_LOG`, e.g. `info,meltemi_node=debug`.
pub fn init(format: Format, directives: &str) {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(directives));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let started = match format {
        Format::Text => registry.with(layer).try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    if started.is_ok() {
        let _ = RELOAD.set(handle);
    }
}

/// Changes the level of the running process.
///
/// # Errors
/// The directives cannot be parsed, or logging was never started.
pub fn set_level(directives: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(directives).map_err(|e| format!("log level {directives:?}: {e}"))?;
    let handle = RELOAD.get().ok_or_else(|| "logging has not been started".to_owned())?;
    handle.reload(filter).map_err(|e| e.to_string())
}

/// The directives in force.
pub fn level() -> String {
    RELOAD.get().and_then(|h| h.with_current(ToString::to_string).ok()).unwrap_or_default()
}
